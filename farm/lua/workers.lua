-- Reads the live workers.
local found = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', NOW, NOW + REGISTERED)) do
  local record = redis.call('HMGET', P .. 'worker:' .. worker, 'boot', 'state', 'host', 'pid', 'info', 'seen_ms', 'queues')
  if record[1] then
    local drained = redis.call('SISMEMBER', P .. 'draining', worker)
    found[#found + 1] = {worker, record, drained, redis.call('SMEMBERS', P .. 'held:' .. worker), isolated(worker)}
  end
end
return found
