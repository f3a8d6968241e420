-- Takes outputs, each from the holder of its token alone, and moves every waiter on.
local function take(exec, token, output, published)
  local key = xk(exec)
  local epoch, publish, worker = get(key, 'epoch', 'publish', 'worker')
  leave(exec)
  if publish ~= '1' then clear(worker) end
  redis.call('HSET', key, 'output', output, 'committed_token', token, 'committed_ms', NOW)
  redis.call('HDEL', key, 'code', 'message')
  redis.call('DEL', ck(exec))
  rest(exec, 'committed')
  stat('commits')
  local subject, waiters = about(exec), redis.call('SMEMBERS', wk(exec))
  redis.call('DEL', wk(exec))
  for i, job in ipairs(waiters) do
    local at, n = get(jk(job), 'at', 'n')
    if publish == '1' then
      event(job, 'committed', subject)
      finish(job, 'done', '', '', subject)
    elseif at + 1 == tonumber(n) and published[job] then
      event(job, 'committed', subject)
      redis.call('HSET', jk(job), 'out' .. at, output, 'epoch' .. at, epoch)
      finish(job, 'done', '', '', subject)
    elseif i <= FAN then
      event(job, 'committed', subject)
      attach(job, exec)
    else
      defer(job, 'attach', '', '')
    end
  end
end

local flags = {}
for i = 1, tonumber(arg()) do
  local exec, token, output, published = arg(), arg(), arg(), {}
  for _ = 1, tonumber(arg()) do published[arg()] = true end
  if is_held(exec, token) then
    take(exec, token, output, published)
    flags[i] = 1
  elseif redis.call('HGET', xk(exec), 'committed_token') == token then
    flags[i] = 1
  else
    stat('stale_commits')
    flags[i] = 0
  end
end
return {flags, named()}
