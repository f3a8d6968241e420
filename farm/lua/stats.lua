-- Reads the counters.
local found, flat = {}, redis.call('HGETALL', P .. 'stats')
for i = 1, #flat, 2 do found[#found + 1] = {flat[i], flat[i + 1]} end
return found
