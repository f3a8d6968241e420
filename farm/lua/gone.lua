-- Reads which of jobs are no more.
local found = {}
for _ = 1, tonumber(arg()) do
  local job = arg()
  if redis.call('EXISTS', jk(job)) == 0 then found[#found + 1] = job end
end
return found
