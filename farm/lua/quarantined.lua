-- Reads executions in quarantine, in the order given.
local found = {}
for i = 1, tonumber(arg()) do
  local exec = arg()
  local since = redis.call('ZSCORE', P .. 'quarantine', exec)
  local row = redis.call('HMGET', xk(exec), 'queue', 'code', 'message', 'attempt', 'payload')
  if since and row[1] then found[#found + 1] = {exec, since, row, redis.call('SCARD', ek(exec))} end
end
return found
