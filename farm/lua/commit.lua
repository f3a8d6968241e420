-- Takes outputs, each from the holder of its token alone, and moves every waiter on.
local WEIGHT = tonumber(arg())

-- How long the executions of a queue take, as a mean that forgets. One that waited on its worker's disk for the store tells
-- nothing, nor does one that began before the clock went back. How much work they are is a mean of the same weights.
local function measure(exec)
  local queue, began, mates, phase, work = get(xk(exec), 'queue', 'started_ms', 'mates', 'phase', 'work')
  local took = NOW - began
  if phase == 'spool' or took < 0 then return end
  local key = P .. 'times:' .. queue
  local count, mean, wall, works = get(key, 'count', 'mean_ms', 'wall_ms', 'work')
  count, mean, wall = (count or 0) + 1, mean or 0, wall or 0
  local weight = math.max(WEIGHT, 1 / count)
  mean, wall = mean + weight * (took / (mates or 1) - mean), wall + weight * (took - wall)
  works, work = tonumber(works or 0), tonumber(work or 0)
  if works > 0 and work > 0 then works = works + weight * (work - works) elseif work > 0 then works = work end
  redis.call('HSET', key, 'count', count, 'mean_ms', string.format('%.3f', mean), 'wall_ms', string.format('%.3f', wall),
    'work', string.format('%.3f', works))
end

-- How many stages each queue and each worker has done in each minute, and how many jobs each worker has ended with their
-- picture, for a day.
local DAY = 86400000
local function count(what, name)
  if not name then return end
  local key = P .. 'minute:' .. math.floor(NOW / 60000)
  redis.call('HINCRBY', key, what .. ' ' .. name, 1)
  redis.call('PEXPIRE', key, DAY)
end

local function take(exec, token, output, published)
  local key = xk(exec)
  local epoch, publish, worker, queue = get(key, 'epoch', 'publish', 'worker', 'queue')
  leave(exec)
  if publish ~= '1' then
    clear(worker)
    measure(exec)
    count('queue', queue)
    count('worker', worker)
  end
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
      count('image', worker)
    -- Of the published ones there are no more than a claim told of; thousands may be collected.
    elseif at + 1 == tonumber(n) and (published[job] or (i <= FAN and is_collected(job))) then
      event(job, 'committed', subject)
      redis.call('HSET', jk(job), 'out' .. at, output, 'epoch' .. at, epoch)
      finish(job, 'done', '', '', subject)
      count('image', worker)
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
