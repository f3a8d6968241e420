-- Lists what is in quarantine, newest first.
local limit, found = tonumber(arg()), {}
for _, exec in ipairs(redis.call('ZREVRANGE', P .. 'quarantine', 0, limit - 1)) do
  local row = redis.call('HMGET', xk(exec), 'queue', 'code', 'message', 'attempt', 'payload')
  if row[1] then
    found[#found + 1] = {exec, redis.call('ZSCORE', P .. 'quarantine', exec), row, redis.call('SCARD', ek(exec))}
  end
end
return found
