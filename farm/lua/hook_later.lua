-- Puts a delivery off, if it still waits.
local endpoint, message, text, pause = arg(), arg(), arg(), tonumber(arg())
local key = P .. 'webhook:' .. endpoint
if redis.call('ZSCORE', key .. ':due', message) then
  redis.call('HSET', key .. ':waiting', message, text)
  redis.call('ZADD', key .. ':due', NOW + pause, message)
end
return 1
