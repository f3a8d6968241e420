-- Reads every known queue.
local found = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local ready = 0
  for _, schema in ipairs(redis.call('SMEMBERS', P .. 'schemas')) do
    for _, lane in ipairs(LANES) do ready = ready + redis.call('ZCARD', ready_key(queue, lane, schema)) end
  end
  local running = redis.call('HGET', P .. 'running', queue) or 0
  found[#found + 1] = {queue, ready, running, #serving(queue)}
end
return found
