-- Attaches a paused job again.
local job = arg()
local refused, state = check(job, {queued = true, running = true, paused = true})
if refused then return refused end
if state == 'paused' then
  redis.call('SREM', pk(current(job)), job)
  redis.call('HSET', jk(job), 'publishing', 0)
  turn(job, 'queued')
  event(job, 'resumed')
  attach(job)
end
return {named()}
