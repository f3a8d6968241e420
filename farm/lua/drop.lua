-- Lifts the quarantine of an execution: its jobs stay ended, a new one starts with cleared counters.
local exec, call = arg(), arg()
if redis.call('HGET', xk(exec), 'dropped_by') == call then return {} end
if redis.call('HGET', xk(exec), 'state') ~= 'quarantined' then
  return refuse('not_found', 'nothing of this name is in quarantine')
end
renew(exec)
redis.call('HSET', xk(exec), 'dropped_by', call)
redis.call('DEL', ek(exec))
return {}
