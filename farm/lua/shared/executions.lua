-- How does an execution come to be ready, run, rest and end?

-- An execution that nobody waits on and nobody runs. One that never did anything leaves no trace; charges and epochs stay.
local function rest(exec, state)
  local key = xk(exec)
  local epoch, crash, oom, lapses = get(key, 'epoch', 'crash', 'oom', 'lapses')
  if state == 'idle' and epoch == '1' and not (crash or oom or lapses) then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, 'state', state)
    redis.call('EXPIRE', key, RETENTION)
  end
end

local function schema_of(key) return redis.call('HGET', key, 'schema') or '1' end

local function unplace(exec)
  local queue, schema = redis.call('HGET', xk(exec), 'queue'), schema_of(xk(exec))
  for _, lane in ipairs(LANES) do redis.call('ZREM', ready_key(queue, lane, schema), exec) end
end

local function place(exec)
  local queue, lane, priority, seniority = get(xk(exec), 'queue', 'lane', 'priority', 'seniority_ms')
  local schema = schema_of(xk(exec))
  redis.call('ZADD', ready_key(queue, lane, schema), (100 - priority) * 2 ^ 42 + seniority, exec)
  redis.call('SADD', P .. 'schemas', schema)
  return queue
end

local function make_ready(exec)
  redis.call('HSET', xk(exec), 'state', 'ready')
  local queue = place(exec)
  redis.call('SADD', P .. 'queues', queue)
  NAMED[queue] = true
end

-- Lane, priority and seniority of the execution are each the best among `jobs`, and what it has already where `keep`.
local function rank(exec, jobs, keep)
  local lane, priority, seniority, state
  if keep then lane, priority, seniority = get(xk(exec), 'lane', 'priority', 'seniority_ms') end
  for _, job in ipairs(jobs) do
    local l, p, s = get(jk(job), 'lane', 'priority', 'created_ms')
    if not lane or l == 'interactive' then lane = l end
    if not priority or tonumber(p) > tonumber(priority) then priority = p end
    if not seniority or tonumber(s) < tonumber(seniority) then seniority = s end
  end
  redis.call('HSET', xk(exec), 'lane', lane, 'priority', priority, 'seniority_ms', seniority)
  if redis.call('HGET', xk(exec), 'state') == 'ready' then
    unplace(exec)
    place(exec)
  end
end

local function is_held(exec, token)
  local state, holds = get(xk(exec), 'state', 'token')
  return state == 'running' and holds == token
end

-- Whether somebody looks at pictures of the running execution. Not where all who wait do so in bulk.
local function is_watched(exec)
  return redis.call('EXISTS', P .. 'watched:' .. exec) == 1 and redis.call('HGET', xk(exec), 'lane') ~= 'bulk'
end

-- Ends a running claim; the caller says what follows.
local function leave(exec)
  local queue, worker = get(xk(exec), 'queue', 'worker')
  redis.call('ZREM', P .. 'leases', exec)
  redis.call('SREM', P .. 'held:' .. worker, exec)
  redis.call('HINCRBY', P .. 'running', queue, -1)
  redis.call('DEL', pk(exec), P .. 'preview:' .. exec)
end

-- Ready again where somebody waits.
local function give_back(exec)
  if redis.call('SCARD', wk(exec)) > 0 then make_ready(exec) else rest(exec, 'idle') end
end

-- Why an attempt failed, with its worker's last words, for whoever looks into it later.
local function explain(exec, code, message, log)
  local worker, attempt = get(xk(exec), 'worker', 'attempt')
  redis.call('XADD', ck(exec), 'MAXLEN', 10, '*', 'worker', worker, 'attempt', attempt, 'code', code, 'message', message,
    'log', log, 't', NOW)
  redis.call('EXPIRE', ck(exec), RETENTION)
end

-- Which jobs a quarantine ended, so that all of them can be retried together.
local function remember(exec, job)
  redis.call('SADD', ek(exec), job)
  redis.call('EXPIRE', ek(exec), RETENTION)
end

local function end_execution(exec, state, code, message)
  redis.call('HSET', xk(exec), 'code', code, 'message', message)
  if state == 'quarantined' then
    stat('quarantined')
    redis.call('ZADD', P .. 'quarantine', NOW, exec)
    redis.call('SUNIONSTORE', ek(exec), ek(exec), wk(exec))
    redis.call('EXPIRE', ek(exec), RETENTION)
  end
  finish_all(exec, state, code, message)
  rest(exec, state)
end

local function release(exec)
  leave(exec)
  tell(exec, 'released')
  give_back(exec)
end

local function avoid(exec)
  local worker, failed_on = get(xk(exec), 'worker', 'failed_on')
  if not string.find(failed_on or '', '\n' .. worker .. '\n', 1, true) then
    redis.call('HSET', xk(exec), 'failed_on', (failed_on or '\n') .. worker .. '\n')
  end
end

local function crash(exec, code, message, log)
  explain(exec, code, message, log)
  leave(exec)
  avoid(exec)
  stat('crashes')
  tell(exec, 'attempt_failed', code)
  if redis.call('HINCRBY', xk(exec), 'crash', 1) >= CAP.crash then
    end_execution(exec, 'quarantined', code, message)
  else
    give_back(exec)
  end
end

local function lapse(exec)
  explain(exec, 'lapsed', '', '')
  leave(exec)
  stat('lapses')
  tell(exec, 'lapsed', 'lapsed')
  if redis.call('HINCRBY', xk(exec), 'lapses', 1) >= CAP.lapses then
    end_execution(exec, 'quarantined', 'lapsed', '')
  else
    give_back(exec)
  end
end
