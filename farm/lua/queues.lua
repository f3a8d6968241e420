-- Reads every known queue.
local found = {}
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  local ready, live = 0, nil
  for _, schema in ipairs(redis.call('SMEMBERS', P .. 'schemas')) do
    local here = 0
    for _, lane in ipairs(LANES) do here = here + redis.call('ZCARD', ready_key(queue, lane, schema)) end
    -- Where something is ready, those workers count that know its schema.
    if here > 0 then live = math.max(live or 0, #serving(queue, schema)) end
    ready = ready + here
  end
  local running = redis.call('HGET', P .. 'running', queue) or 0
  found[#found + 1] = {queue, ready, running, live or #serving(queue)}
end
return found
