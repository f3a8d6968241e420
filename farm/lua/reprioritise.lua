-- Changes a job's place in the line.
local job, priority, lane = arg(), arg(), arg()
local refused, state = check(job, {queued = true, running = true, paused = true})
if refused then return refused end
redis.call('HSET', jk(job), 'priority', priority)
if lane ~= '' then redis.call('HSET', jk(job), 'lane', lane) end
event(job, 'reprioritised')
if state ~= 'paused' then
  -- A lesser place is looked for among all waiters, unless they are very many: then the execution keeps the one it has.
  local exec = current(job)
  if redis.call('SCARD', wk(exec)) > FAN then
    rank(exec, {job}, true)
  else
    rank(exec, redis.call('SMEMBERS', wk(exec)), false)
  end
end
return {}
