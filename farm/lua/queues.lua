-- Reads every known queue.
local found = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local ready = redis.call('ZCARD', ready_key(queue, 'interactive')) + redis.call('ZCARD', ready_key(queue, 'bulk'))
  local running = redis.call('HGET', P .. 'running', queue) or 0
  found[#found + 1] = {queue, ready, running, #serving(queue)}
end
return found
