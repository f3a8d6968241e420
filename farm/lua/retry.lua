-- Opens an ended, unfinished job again at the stage it stopped at.
local job = arg()
local refused = check(job, {failed = true, quarantined = true, cancelled = true, expired = true})
if refused then return refused end
local key = jk(job)
local at, idem = get(key, 'at', 'idem')
redis.call('PERSIST', key)
redis.call('PERSIST', P .. 'events:' .. job)
if idem ~= '' then redis.call('PERSIST', P .. 'idem:' .. idem) end
redis.call('ZREM', P .. 'ended', job)
redis.call('HSET', key, 'code', '', 'message', '', 'publishing', 0)
redis.call('HDEL', key, 'ended_ms')
set_deadline(job)
turn(job, 'queued')
event(job, 'retried')
renew(redis.call('HGET', key, 'x' .. at))
renew('p:' .. job)
attach(job)
return {named()}
