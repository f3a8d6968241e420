-- Enters a worker, until it says so again or its entry runs out.
local worker, boot, state, host, pid, info = arg(), arg(), arg(), arg(), arg(), arg()
local key, queues, schemas = P .. 'worker:' .. worker, {}, {}
for i = 1, tonumber(arg()) do queues[i] = arg() end
for i = 1, tonumber(arg()) do schemas[i] = arg() end
for queue in string.gmatch(redis.call('HGET', key, 'queues') or '', '[^\n]+') do
  redis.call('ZREM', P .. 'serves:' .. queue, worker)
end
redis.call('HSET', key, 'boot', boot, 'state', state, 'host', host, 'pid', pid, 'info', info, 'seen_ms', NOW,
  'queues', table.concat(queues, '\n'), 'schemas', '\n' .. table.concat(schemas, '\n') .. '\n')
redis.call('PEXPIRE', key, REGISTERED)
redis.call('ZADD', P .. 'workers', NOW + REGISTERED, worker)
for _, queue in ipairs(queues) do
  redis.call('ZADD', P .. 'serves:' .. queue, NOW + REGISTERED, worker)
  redis.call('SADD', P .. 'queues', queue)
end
return {}
