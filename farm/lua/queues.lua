-- Reads every known queue.
local found = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local ready, here = 0, nil
  for _, schema in ipairs(redis.call('SMEMBERS', P .. 'schemas')) do
    local waiting = 0
    for _, lane in ipairs(LANES) do waiting = waiting + redis.call('ZCARD', ready_key(queue, lane, schema)) end
    -- Where something is ready, those workers count that know its schema.
    if waiting > 0 then here = math.max(here or 0, #serving(queue, schema)) end
    ready = ready + waiting
  end
  local running = redis.call('HGET', P .. 'running', queue) or 0
  found[#found + 1] = {queue, ready, running, here or #serving(queue), times(queue)}
end
return found
