-- Reads a job and where the executions of its stages are.
local job = arg()
if redis.call('EXISTS', jk(job)) == 0 then return refuse('not_found', 'there is no job ' .. job) end
local n, at, publishing = get(jk(job), 'n', 'at', 'publishing')
local stages = {}
for i = 0, n - 1 do
  local exec, queue = get(jk(job), 'x' .. i, 'q' .. i)
  if publishing == '1' and i == tonumber(at) then exec = 'p:' .. job end
  stages[i + 1] = {exec, queue, redis.call('HMGET', xk(exec), 'state', 'phase', 'step', 'steps', 'worker', 'attempt',
    'crash', 'oom', 'lapses', 'code', 'message', 'started_ms', 'committed_ms', 'preview')}
end
return {record(job), stages}
