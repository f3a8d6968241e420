-- Forgets ended jobs, with the executions that only they needed: whoever submitted them has their outputs.
local FORGOTTEN = {committed = true, idle = true, failed = true}
local left = {}
for _ = 1, tonumber(arg()) do
  local job = arg()
  local state, n, owner, run = get(jk(job), 'state', 'n', 'owner', 'run')
  if state and not ENDED[state] then
    left[#left + 1] = job
  elseif state then
    local execs = {}
    for i = 0, n - 1 do execs[i + 1] = redis.call('HGET', jk(job), 'x' .. i) end
    event(job, 'deleted', nil, '', 'owner', owner or '', 'run', run)
    forget_job(job)
    for _, exec in ipairs(execs) do
      if FORGOTTEN[redis.call('HGET', xk(exec), 'state') or ''] and redis.call('SCARD', wk(exec)) == 0 then
        redis.call('DEL', xk(exec), ck(exec))
      end
    end
  end
end
return left
