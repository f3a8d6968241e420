-- Renews leases and stores progress.
local phase, step, steps = arg(), arg(), arg()
local found = {}
for i = 1, tonumber(arg()) do
  local exec, token = arg(), arg()
  if is_held(exec, token) then
    redis.call('ZADD', P .. 'leases', NOW + LEASE, exec)
    redis.call('HSET', xk(exec), 'phase', phase, 'step', step, 'steps', steps)
    local wanted = redis.call('SCARD', wk(exec)) + redis.call('SCARD', pk(exec))
    found[i] = wanted == 0 and 'cancelled' or is_watched(exec) and 'watched' or 'ok'
  else
    found[i] = 'stale'
  end
end
return found
