-- Opens an ended, unfinished job again at the stage it stopped at.
local job, call = arg(), arg()
-- A repeated call, whose first reply was lost, is answered as the first was.
if redis.call('HGET', jk(job), 'retried_by') == call then return {named()} end
local refused = check(job, {failed = true, quarantined = true, cancelled = true, expired = true})
if refused then return refused end
local key = jk(job)
local at, idem = get(key, 'at', 'idem')
redis.call('PERSIST', key)
redis.call('PERSIST', P .. 'events:' .. job)
if idem ~= '' then redis.call('PERSIST', P .. 'idem:' .. idem) end
redis.call('ZREM', P .. 'ended', job)
redis.call('HSET', key, 'code', '', 'message', '', 'publishing', 0, 'retried_by', call)
redis.call('HDEL', key, 'ended_ms')
set_deadline(job)
turn(job, 'queued')
event(job, 'retried')
for _, exec in ipairs({redis.call('HGET', key, 'x' .. at), 'p:' .. job}) do
  renew(exec)
  redis.call('SREM', ek(exec), job)
end
attach(job)
return {named()}
