-- Reads jobs in the order given, those that there are; where they are looked at whole, with their stages.
local whole, found = arg() == '1', {}
for i = 1, tonumber(arg()) do
  local job = arg()
  if redis.call('EXISTS', jk(job)) == 1 then found[#found + 1] = record(job, whole) end
end
return found
