-- Takes a job off its execution until `resume`; one that runs may commit.
local job = arg()
local refused, state = check(job, {queued = true, running = true, paused = true})
if refused then return refused end
if state ~= 'paused' then
  local exec = current(job)
  detach(job)
  if redis.call('HGET', xk(exec), 'state') == 'running' then redis.call('SADD', pk(exec), job) end
  turn(job, 'paused')
  event(job, 'paused', about(exec))
end
return {}
