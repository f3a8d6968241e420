-- Gives a seat to whoever asks first, and renews it for its holder; for no time at all its holder gives it back.
local name, me, hold = arg(), arg(), tonumber(arg())
local key = P .. name
local holder = redis.call('GET', key)
if holder and holder ~= me then return 0 end
if hold > 0 then
  redis.call('SET', key, me, 'PX', hold)
elseif holder then
  redis.call('DEL', key)
end
return 1
