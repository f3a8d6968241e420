-- Reads jobs with their stages, in the order given; those that there are.
local found = {}
for i = 1, tonumber(arg()) do
  local job = arg()
  if redis.call('EXISTS', jk(job)) == 1 then found[#found + 1] = record(job, true) end
end
return found
