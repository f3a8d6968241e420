-- Gives a worker the best ready work of one of its queues.
local worker, boot, limit = arg(), arg(), tonumber(arg())
local randoms, queues, schemas, spooled = {}, {}, {}, {}
for i = 1, limit do randoms[i] = arg() end
for i = 1, tonumber(arg()) do queues[i] = arg() end
for i = 1, tonumber(arg()) do schemas[i] = arg() end
for _ = 1, tonumber(arg()) do spooled[arg()] = true end

-- A worker claims when it runs nothing: what it still holds is a reply that was lost, or belonged to a life before;
-- or a finished output that waits for its upload, which it keeps.
for _, exec in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
  local token, from = get(xk(exec), 'token', 'boot')
  if not spooled[token] then
    if from == boot then release(exec) else lapse(exec) end
  end
end

-- A worker under suspicion first tries what has not failed on it: one success clears it.
local suspected = redis.call('EXISTS', P .. 'failing:' .. worker, P .. 'health:' .. worker) > 0
local others = {}
local function may_take(exec, queue, schema, fresh)
  local failed_on = redis.call('HGET', xk(exec), 'failed_on') or ''
  if not string.find(failed_on, '\n' .. worker .. '\n', 1, true) then return true end
  if fresh then return false end
  local key = schema .. queue
  others[key] = others[key] or serving(queue, schema)
  for _, other in ipairs(others[key]) do
    if not string.find(failed_on, '\n' .. other .. '\n', 1, true) then return false end
  end
  return true
end

local function pick(queue, lane, schema, wanted, company, fresh)
  local found = {}
  for _, exec in ipairs(redis.call('ZRANGE', ready_key(queue, lane, schema), 0, 255)) do
    if #found == wanted then break end
    local alone = redis.call('HGET', xk(exec), 'alone') == '1'
    if may_take(exec, queue, schema, fresh) and not (alone and company) then
      found[#found + 1] = exec
      if alone then break end
      company = true
    end
  end
  return found
end

local chosen, version, lane_at, best
local function choose(fresh)
  for at, lane in ipairs(LANES) do
    for _, queue in ipairs(queues) do
      for _, schema in ipairs(schemas) do
        local first = pick(queue, lane, schema, 1, false, fresh)[1]
        local score = first and tonumber(redis.call('ZSCORE', ready_key(queue, lane, schema), first))
        if first and (not best or score < best) then chosen, version, lane_at, best = queue, schema, at, score end
      end
    end
    if chosen then return end
  end
end

if not is_draining(worker) and isolated(worker) == 0 then
  if suspected then choose(true) end
  if not chosen then
    suspected = false
    choose(false)
  end
end

local execs = {}
if chosen then
  execs = pick(chosen, LANES[lane_at], version, limit, false, suspected)
  local alone = redis.call('HGET', xk(execs[1]), 'alone') == '1'
  if lane_at == 1 and #execs < limit and not alone then
    for _, exec in ipairs(pick(chosen, LANES[2], version, limit - #execs, true, suspected)) do execs[#execs + 1] = exec end
  end
end

local claims = {}
for i, exec in ipairs(execs) do
  local key = xk(exec)
  local token = string.format('%d', redis.call('INCR', P .. 'tokens')) .. ':' .. randoms[i]
  unplace(exec)
  redis.call('HSET', key, 'state', 'running', 'token', token, 'worker', worker, 'boot', boot, 'started_ms', NOW,
    'phase', '', 'step', 0, 'steps', 0, 'preview', 0, 'mates', #execs)
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
      if at + 1 == tonumber(n) and not is_collected(job) then finishing[#finishing + 1] = job end
    elseif state == 'queued' then
      defer(job, 'run', '', '')
    end
  end
  local epoch, payload, input, publish, stage, oom, crash, lapses =
    get(key, 'epoch', 'payload', 'input', 'publish', 'stage', 'oom', 'crash', 'lapses')
  claims[i] = {exec, token, epoch, chosen, payload, input, waiters, finishing, publish, attempt, stage, oom or 0,
    (crash or 0) + (lapses or 0)}
end

-- A claim that took nothing asks for no ring on its own queues: what is left there is for others, and the bell would come
-- straight back. What it gave back is rung for.
local left, looked = {}, named()
if #claims > 0 then
  for _, queue in ipairs(queues) do looked[#looked + 1] = queue end
end
for _, queue in ipairs(looked) do
  local ready = 0
  for _, schema in ipairs(schemas) do
    for _, lane in ipairs(LANES) do ready = ready + redis.call('ZCARD', ready_key(queue, lane, schema)) end
  end
  if ready > 0 then left[#left + 1] = queue end
end
return {claims, left}
