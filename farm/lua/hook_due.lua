-- What is due at an endpoint, the longest due first: how much waits in all, in how many ms the next is due, then message and text.
local endpoint, most = arg(), tonumber(arg())
local key = P .. 'webhook:' .. endpoint
local first = redis.call('ZRANGE', key .. ':due', 0, 0, 'WITHSCORES')
local found = {redis.call('ZCARD', key .. ':due'), first[2] and math.max(0, math.ceil(first[2] - NOW)) or -1}
for _, message in ipairs(redis.call('ZRANGEBYSCORE', key .. ':due', '-inf', NOW, 'LIMIT', 0, most)) do
  local text = redis.call('HGET', key .. ':waiting', message)
  if text then
    found[#found + 1] = message
    found[#found + 1] = text
  else
    redis.call('ZREM', key .. ':due', message) -- whoever was done with it died in between
  end
end
return found
