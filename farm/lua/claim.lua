-- Gives a worker the best ready work of one of its queues.
local worker, boot, limit = arg(), arg(), tonumber(arg())
local randoms, queues = {}, {}
for i = 1, limit do randoms[i] = arg() end
for i = 1, tonumber(arg()) do queues[i] = arg() end

-- A worker claims when it runs nothing: what it still holds is a reply that was lost, or belonged to a life before.
for _, exec in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
  if redis.call('HGET', xk(exec), 'boot') == boot then release(exec) else lapse(exec) end
end

local others = {}
local function may_take(exec, queue)
  local failed_on = redis.call('HGET', xk(exec), 'failed_on') or ''
  if not string.find(failed_on, '\n' .. worker .. '\n', 1, true) then return true end
  others[queue] = others[queue] or serving(queue)
  for _, other in ipairs(others[queue]) do
    if not string.find(failed_on, '\n' .. other .. '\n', 1, true) then return false end
  end
  return true
end

local function pick(queue, lane, wanted, company)
  local found = {}
  for _, exec in ipairs(redis.call('ZRANGE', ready_key(queue, lane), 0, 255)) do
    if #found == wanted then break end
    local alone = redis.call('HGET', xk(exec), 'alone') == '1'
    if may_take(exec, queue) and not (alone and company) then
      found[#found + 1] = exec
      if alone then break end
      company = true
    end
  end
  return found
end

local chosen, lane_at, best
if not is_draining(worker) then
  for at, lane in ipairs(LANES) do
    for _, queue in ipairs(queues) do
      local first = pick(queue, lane, 1, false)[1]
      local score = first and tonumber(redis.call('ZSCORE', ready_key(queue, lane), first))
      if first and (not best or score < best) then chosen, lane_at, best = queue, at, score end
    end
    if chosen then break end
  end
end

local execs = {}
if chosen then
  execs = pick(chosen, LANES[lane_at], limit, false)
  local alone = redis.call('HGET', xk(execs[1]), 'alone') == '1'
  if lane_at == 1 and #execs < limit and not alone then
    for _, exec in ipairs(pick(chosen, LANES[2], limit - #execs, true)) do execs[#execs + 1] = exec end
  end
end

local claims = {}
for i, exec in ipairs(execs) do
  local key = xk(exec)
  local token = string.format('%d', redis.call('INCR', P .. 'tokens')) .. ':' .. randoms[i]
  unplace(exec, chosen)
  redis.call('HSET', key, 'state', 'running', 'token', token, 'worker', worker, 'boot', boot, 'started_ms', NOW,
    'phase', '', 'step', 0, 'steps', 0)
  redis.call('ZADD', P .. 'leases', NOW + LEASE, exec)
  redis.call('SADD', P .. 'held:' .. worker, exec)
  redis.call('HINCRBY', P .. 'running', chosen, 1)
  stat('claims')
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  local subject, waiters, finishing = about(exec), {}, {}
  for j, job in ipairs(redis.call('SMEMBERS', wk(exec))) do
    local state, at, n = get(jk(job), 'state', 'at', 'n')
    if j <= FAN then
      set_running(job, subject)
      waiters[j] = job
      if at + 1 == tonumber(n) then finishing[#finishing + 1] = job end
    elseif state == 'queued' then
      defer(job, 'run', '', '')
    end
  end
  local epoch, payload, input, publish, stage = get(key, 'epoch', 'payload', 'input', 'publish', 'stage')
  claims[i] = {exec, token, epoch, chosen, payload, input, waiters, finishing, publish, attempt, stage}
end

-- A claim that took nothing asks for no ring on its own queues: what is left there is for others, and the bell would come
-- straight back. What it gave back is rung for.
local left, looked = {}, named()
if #claims > 0 then
  for _, queue in ipairs(queues) do looked[#looked + 1] = queue end
end
for _, queue in ipairs(looked) do
  if redis.call('ZCARD', ready_key(queue, LANES[1])) + redis.call('ZCARD', ready_key(queue, LANES[2])) > 0 then
    left[#left + 1] = queue
  end
end
return {claims, left}
