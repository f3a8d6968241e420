-- Notes at once what is to be delivered and how far the events were read; refused to one who leads no more.
local leader, position, quiet = arg(), arg(), tonumber(arg())
if redis.call('GET', P .. 'webhooks:leader') ~= leader then return 0 end
for _ = 1, tonumber(arg()) do
  local endpoint, message, text = arg(), arg(), arg()
  -- What was found in two ways waits once, and nothing waits for an endpoint that was removed meanwhile.
  if redis.call('HGET', P .. 'webhooks', endpoint)
      and redis.call('HSETNX', P .. 'webhook:' .. endpoint .. ':waiting', message, text) == 1 then
    redis.call('ZADD', P .. 'webhook:' .. endpoint .. ':due', NOW, message)
  end
end
for _ = 1, tonumber(arg()) do redis.call('ZADD', P .. 'webhooks:runs', NOW + quiet, arg()) end
for _ = 1, tonumber(arg()) do redis.call('ZREM', P .. 'webhooks:runs', arg()) end
if position ~= '' then redis.call('SET', P .. 'webhooks:position', position) end
return 1
