-- Lifts the quarantine of an execution: its jobs stay ended, a new one starts with cleared counters.
local exec = arg()
if redis.call('HGET', xk(exec), 'state') ~= 'quarantined' then
  return refuse('not_found', 'nothing of this name is in quarantine')
end
renew(exec)
redis.call('DEL', ek(exec))
return {}
