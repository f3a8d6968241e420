-- Reads how many stages each queue and each worker has done, and how many jobs each worker has ended, in each of the last minutes, the oldest first.
local minute, found = math.floor(NOW / 60000), {}
for at = minute - tonumber(arg()) + 1, minute do
  found[#found + 1] = {at * 60000, redis.call('HGETALL', P .. 'minute:' .. at)}
end
return found
