-- What every call shares: the names of keys, the clock, and the moves that more than one call makes.
-- One call is one script, so a move is whole or never was. Opaque strings (spec, payload, output) pass through untouched.

local P = KEYS[1]
local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local LEASE, RETENTION = tonumber(ARGV[1]), tonumber(ARGV[2])
local CAP = {crash = tonumber(ARGV[3]), oom = tonumber(ARGV[4]), lapses = tonumber(ARGV[5]), rewinds = tonumber(ARGV[6])}
local FAN = tonumber(ARGV[7])
local ISOLATE = {failures = tonumber(ARGV[8]), pause = tonumber(ARGV[9])}
ISOLATE.longest = 60 * ISOLATE.pause
local DAY = 86400
local REGISTERED = 2 * LEASE
local LANES = {'interactive', 'bulk'}
local ENDED = {done = true, failed = true, quarantined = true, cancelled = true, expired = true}
local OPEN = {queued = true, running = true, paused = true}
local NAMED = {}

local taken = 9
local function arg()
  taken = taken + 1
  return ARGV[taken]
end

local function xk(exec) return P .. 'x:' .. exec end
local function wk(exec) return P .. 'x:' .. exec .. ':waiters' end
local function pk(exec) return P .. 'x:' .. exec .. ':paused' end
local function jk(job) return P .. 'job:' .. job end
local function ck(exec) return P .. 'x:' .. exec .. ':causes' end
local function ek(exec) return P .. 'x:' .. exec .. ':ended' end
local function ready_key(queue, lane, schema) return P .. 'ready:v' .. schema .. ':' .. queue .. ':' .. lane end

local function get(key, ...) return unpack(redis.call('HMGET', key, ...)) end
local function stat(name) redis.call('HINCRBY', P .. 'stats', name, 1) end
local function refuse(code, message) return {'!', code, message} end

-- The queues that this call made work ready on, for the caller to ring.
local function named()
  local found = {}
  for queue in pairs(NAMED) do found[#found + 1] = queue end
  return found
end

-- ------------------------------------------------------------------------------------------------ events and records

local function about(exec)
  local worker, token, epoch = get(xk(exec), 'worker', 'token', 'epoch')
  return {exec = exec, worker = worker or '', token = token or '', epoch = epoch or ''}
end

-- What stands behind `code` is said in both streams beside the rest.
local function event(job, kind, subject, code, ...)
  local state, at = get(jk(job), 'state', 'at')
  subject = subject or {exec = '', worker = '', token = '', epoch = ''}
  for _, to in ipairs({{P .. 'events', 10000}, {P .. 'events:' .. job, 500}}) do
    redis.call('XADD', to[1], 'MAXLEN', '~', to[2], '*', 'type', kind, 'job', job, 'stage', at, 'state', state,
      'worker', subject.worker, 'code', code or '', 'exec', subject.exec, 'token', subject.token,
      'epoch', subject.epoch, 't', NOW, ...)
  end
end

-- One event to each job that waits on the execution; where very many do, to FAN of them.
local function tell(exec, kind, code)
  local subject = about(exec)
  for i, job in ipairs(redis.call('SMEMBERS', wk(exec))) do
    if i <= FAN then event(job, kind, subject, code) end
  end
end

-- The lists of jobs in a state: all of them, those of the owner, those of the run. An owner's name has no colon; a run's may.
local function lists(state, owner, run)
  local found = {P .. 'jobs:' .. state}
  if (owner or '') ~= '' then found[#found + 1] = P .. 'owner:' .. owner .. ':' .. state end
  if (run or '') ~= '' then found[#found + 1] = P .. 'in:' .. state .. ':' .. run end
  return found
end

local function turn(job, state)
  local old, created, owner, run = get(jk(job), 'state', 'created_ms', 'owner', 'run')
  if old then
    for _, list in ipairs(lists(old, owner, run)) do redis.call('ZREM', list, job) end
  end
  for _, list in ipairs(lists(state, owner, run)) do redis.call('ZADD', list, created, job) end
  redis.call('HSET', jk(job), 'state', state)
end

-- How many jobs have not ended, of an owner or, for '', of all.
local function count_open(owner)
  local found = 0
  for state in pairs(OPEN) do
    local all = lists(state, owner)
    found = found + redis.call('ZCARD', all[#all])
  end
  return found
end

local function current(job)
  local at, publishing = get(jk(job), 'at', 'publishing')
  if publishing == '1' then return 'p:' .. job end
  return redis.call('HGET', jk(job), 'x' .. at)
end

-- Thousands of jobs may wait on one execution, and a script must not hold the server for long: what follows for those
-- beyond FAN is noted in their records here, and done by `settle` at the next reaping or with the next call that names them.
local function defer(job, move, code, message)
  redis.call('HSET', jk(job), 'move', move, 'code', code, 'message', message)
  redis.call('SADD', P .. 'moving', job)
end

local function finish(job, state, code, message, subject)
  local key = jk(job)
  turn(job, state)
  redis.call('SREM', P .. 'moving', job)
  redis.call('HSET', key, 'ended_ms', NOW, 'code', code, 'message', message)
  redis.call('ZREM', P .. 'deadlines', job)
  redis.call('ZADD', P .. 'ended', NOW, job)
  local run = redis.call('HGET', key, 'run')
  if run ~= '' then redis.call('ZADD', P .. 'run_ends', NOW, run) end
  event(job, state, subject, code)
  if state == 'done' then
    for i = 0, redis.call('HGET', key, 'n') - 1 do redis.call('HDEL', key, 'p' .. i) end
  end
end

-- Takes an ended job out of every list, with all that is its own. Nothing of it runs out by itself: the record says where
-- it is listed. Executions belong to their recipes and stay.
local function forget_job(job)
  local key, own = jk(job), 'p:' .. job
  local state, owner, run, idem, n = get(key, 'state', 'owner', 'run', 'idem', 'n')
  redis.call('ZREM', P .. 'ended', job)
  redis.call('ZREM', P .. 'jobs', job)
  if not state then
    -- Its record is gone, and with it what it would say of its lists.
    for _, known in ipairs({OPEN, ENDED}) do
      for old in pairs(known) do redis.call('ZREM', P .. 'jobs:' .. old, job) end
    end
    return
  end
  for _, list in ipairs(lists(state, owner, run)) do redis.call('ZREM', list, job) end
  if (owner or '') ~= '' then redis.call('ZREM', P .. 'owner:' .. owner, job) end
  if run ~= '' then
    redis.call('ZREM', P .. 'run:' .. run, job)
    if redis.call('EXISTS', P .. 'run:' .. run) == 0 then
      redis.call('ZREM', P .. 'runs', run)
      redis.call('ZREM', P .. 'run_ends', run)
      if (owner or '') ~= '' then redis.call('ZREM', P .. 'runs:' .. owner, run) end
    end
  end
  if idem ~= '' and redis.call('HGET', P .. 'idem:' .. idem, 'job') == job then redis.call('DEL', P .. 'idem:' .. idem) end
  for i = 0, n - 1 do redis.call('SREM', ek(redis.call('HGET', key, 'x' .. i)), job) end
  if redis.call('HGET', xk(own), 'state') ~= 'running' then
    redis.call('ZREM', P .. 'quarantine', own)
    redis.call('DEL', xk(own), ck(own), ek(own))
  end
  redis.call('DEL', key, P .. 'events:' .. job)
end

local function finish_all(exec, state, code, message)
  local subject = about(exec)
  for i, job in ipairs(redis.call('SMEMBERS', wk(exec))) do
    if i <= FAN then finish(job, state, code, message, subject) else defer(job, state, code, message) end
  end
  redis.call('DEL', wk(exec))
end

-- A deadline of its own span from now.
local function set_deadline(job)
  local deadline = NOW + tonumber(redis.call('HGET', jk(job), 'span_ms'))
  redis.call('HSET', jk(job), 'deadline_ms', deadline)
  redis.call('ZADD', P .. 'deadlines', deadline, job)
end

-- ------------------------------------------------------------------------------------------------ executions

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

-- ------------------------------------------------------------------------------------------------ a job and its stages

local function set_running(job, subject)
  local state, started = get(jk(job), 'state', 'started_ms')
  if state == 'queued' then turn(job, 'running') end
  if not started then redis.call('HSET', jk(job), 'started_ms', NOW) end
  event(job, 'claimed', subject)
end

-- The job's record says what its next stage was really made from, also where an equal recipe brought another epoch's output.
local function take_input(job, at, exec)
  if at == 0 then return end
  local input, epoch = get(xk(exec), 'input', 'input_epoch')
  redis.call('HSET', jk(job), 'out' .. at - 1, input, 'epoch' .. at - 1, epoch)
end

-- `made`: the index of the stage whose output the execution starts from; -1 for none.
local function join(job, exec, at, made)
  local key, state = xk(exec), redis.call('HGET', xk(exec), 'state')
  redis.call('SADD', wk(exec), job)
  if state == 'ready' or state == 'running' or state == 'backoff' then
    if made < at then take_input(job, at, exec) end
    rank(exec, {job}, true)
    if state == 'running' then set_running(job, about(exec)) end
    return
  end
  if state == 'failed' then redis.call('HDEL', key, 'oom', 'transient', 'rewinds', 'code', 'message') end
  local queue, payload = get(jk(job), 'q' .. at, 'p' .. at)
  local input, epoch, schema = '', '', schema_of(jk(job))
  if made >= 0 then
    input, epoch = get(jk(job), 'out' .. made, 'epoch' .. made)
    -- The input may be of a newer build than the job: whoever takes it must know both.
    schema = math.max(schema, schema_of(xk(redis.call('HGET', jk(job), 'x' .. made))))
  end
  redis.call('PERSIST', key)
  redis.call('HSETNX', key, 'epoch', 1)
  redis.call('HSET', key, 'queue', queue, 'payload', payload, 'schema', schema, 'stage', at, 'publish', made == at and 1 or 0,
    'input', input, 'input_epoch', epoch)
  rank(exec, {job}, false)
  make_ready(exec)
end

-- Makes the job a waiter of its current stage, moving on past stages that are committed already; the last one is
-- followed by the job's own publish execution. `told`: the execution whose commit the job's events show already.
local function attach(job, told)
  local key = jk(job)
  local at, n = get(key, 'at', 'n')
  at, n = tonumber(at), tonumber(n)
  while true do
    local exec = redis.call('HGET', key, 'x' .. at)
    local state, output, epoch, code, message = get(xk(exec), 'state', 'output', 'epoch', 'code', 'message')
    if state == 'quarantined' then
      remember(exec, job)
      return finish(job, state, code, message, about(exec))
    end
    if state ~= 'committed' then return join(job, exec, at, at - 1) end
    take_input(job, at, exec)
    redis.call('HSET', key, 'out' .. at, output, 'epoch' .. at, epoch)
    redis.call('EXPIRE', xk(exec), RETENTION)
    if exec ~= told then event(job, 'reused', about(exec)) end
    if at == n - 1 then break end
    at = at + 1
    redis.call('HSET', key, 'at', at)
  end
  local own = 'p:' .. job
  local state, code, message = get(xk(own), 'state', 'code', 'message')
  redis.call('HSET', key, 'publishing', 1)
  if state == 'committed' then return finish(job, 'done', '', '', about(own)) end
  if state == 'quarantined' then
    remember(own, job)
    return finish(job, state, code, message, about(own))
  end
  join(job, own, at, at)
end

-- Does what was deferred for the job.
local function settle(job)
  if redis.call('SREM', P .. 'moving', job) == 0 then return end
  local move, state, code, message = get(jk(job), 'move', 'state', 'code', 'message')
  local subject = about(current(job))
  if state == 'queued' then set_running(job, subject) end
  if move == 'attach' then
    attach(job)
  elseif move ~= 'run' then
    finish(job, move, code, message, subject)
  end
end

-- The job waits no longer; a running execution goes on (its next beat learns of it), a ready or delayed one that nobody
-- else waits on is dropped. Others keep the place that the leaver brought: to look for a lesser one would cost each leaver
-- of a large run a walk over all of it.
local function detach(job)
  local exec = current(job)
  redis.call('SREM', pk(exec), job)
  if redis.call('SREM', wk(exec), job) == 0 then return end
  if redis.call('SCARD', wk(exec)) == 0 and redis.call('HGET', xk(exec), 'state') ~= 'running' then
    unplace(exec)
    redis.call('ZREM', P .. 'due', exec)
    rest(exec, 'idle')
  end
end

-- A new epoch with cleared counters for an execution that ended badly.
local function renew(exec)
  local state = redis.call('HGET', xk(exec), 'state')
  if state == 'failed' or state == 'quarantined' or state == 'idle' then
    redis.call('HINCRBY', xk(exec), 'epoch', 1)
    redis.call('HDEL', xk(exec), 'crash', 'oom', 'transient', 'lapses', 'rewinds', 'alone', 'failed_on', 'attempt',
      'code', 'message')
    redis.call('HSET', xk(exec), 'state', 'idle')
    redis.call('ZREM', P .. 'quarantine', exec)
    redis.call('DEL', ck(exec))
  end
end

-- ------------------------------------------------------------------------------------------------ workers

local function is_draining(worker)
  return redis.call('SISMEMBER', P .. 'draining', worker) == 1
    or redis.call('HGET', P .. 'worker:' .. worker, 'state') == 'draining'
end

-- Milliseconds for which a worker that failed everything is given nothing. What lies beyond the record's own life was set
-- before the clock went back.
local function isolated(worker)
  local left = tonumber(redis.call('HGET', P .. 'health:' .. worker, 'until_ms') or 0) - NOW
  return left > 0 and left <= DAY * 1000 and left or 0
end

-- A failure of this execution may be its worker's fault: after several in a row, of different ones, the worker waits. Then
-- as many are counted anew: where poison stands in a line, a sound worker must not wait for each of it.
local function blame(worker, exec)
  local failing, health = P .. 'failing:' .. worker, P .. 'health:' .. worker
  redis.call('SADD', failing, exec)
  if redis.call('SCARD', failing) >= ISOLATE.failures then
    local times = redis.call('HINCRBY', health, 'times', 1)
    redis.call('HSET', health, 'until_ms', NOW + math.min(ISOLATE.longest, ISOLATE.pause * 2 ^ (times - 1)))
    redis.call('DEL', failing)
    stat('isolations')
  end
  redis.call('EXPIRE', failing, DAY)
  redis.call('EXPIRE', health, DAY)
end

local function clear(worker) redis.call('DEL', P .. 'failing:' .. worker, P .. 'health:' .. worker) end

-- Live workers of the queue that may claim now, and know the schema where one is given. An expiry beyond what a
-- registration gives was made before the clock went back.
local function serving(queue, schema)
  local found = {}
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'serves:' .. queue, NOW, NOW + REGISTERED)) do
    local known = redis.call('HGET', P .. 'worker:' .. worker, 'schemas') or ''
    if not is_draining(worker) and isolated(worker) == 0
        and (not schema or string.find(known, '\n' .. schema .. '\n', 1, true)) then
      found[#found + 1] = worker
    end
  end
  return found
end

local function forget(worker, boot)
  local key = P .. 'worker:' .. worker
  local known, queues = get(key, 'boot', 'queues')
  if known and known ~= boot then return end
  for queue in string.gmatch(queues or '', '[^\n]+') do redis.call('ZREM', P .. 'serves:' .. queue, worker) end
  redis.call('ZREM', P .. 'workers', worker)
  redis.call('DEL', key)
end

-- ------------------------------------------------------------------------------------------------ reading jobs

-- What several jobs of one call ask for is looked up once.
local KNOWN = {}
local function once(name, look)
  if KNOWN[name] == nil then KNOWN[name] = look() end
  return KNOWN[name]
end

-- How long the executions of a queue take: each its share of its call, and a whole call; '' where none was measured.
local function times(queue)
  return once('times ' .. queue, function()
    local mean, wall = get(P .. 'times:' .. queue, 'mean_ms', 'wall_ms')
    return {mean or '', wall or ''}
  end)
end

local function live(queue, schema)
  return once('live ' .. schema .. ' ' .. queue, function() return #serving(queue, schema) end)
end

-- How many ready executions of the queue are claimed before this one, whatever their schema.
local function ahead(exec)
  local queue, lane = get(xk(exec), 'queue', 'lane')
  local own = schema_of(xk(exec))
  local line = ready_key(queue, lane, own)
  local found, score = redis.call('ZRANK', line, exec), redis.call('ZSCORE', line, exec)
  for _, schema in ipairs(once('schemas', function() return redis.call('SMEMBERS', P .. 'schemas') end)) do
    if schema ~= own then found = found + redis.call('ZCOUNT', ready_key(queue, lane, schema), '-inf', '(' .. score) end
    if lane == 'bulk' then found = found + redis.call('ZCARD', ready_key(queue, LANES[1], schema)) end
  end
  return found
end

-- What a job waits for: nothing where its stage runs, and where it has ended or is yet to be moved.
local function wait_of(job)
  local is = redis.call('HGET', jk(job), 'state')
  if is == 'paused' or ENDED[is] then return {is == 'paused' and is or ''} end
  local exec = current(job)
  local state, queue, phase = get(xk(exec), 'state', 'queue', 'phase')
  if redis.call('SISMEMBER', wk(exec), job) == 0 then return {''} end
  if state == 'running' and phase == 'spool' then return {'spool'} end
  if state == 'backoff' then return {state, redis.call('ZSCORE', P .. 'due', exec)} end
  if state ~= 'ready' then return {''} end
  local registered = once('registered ' .. queue, function()
    return redis.call('ZCOUNT', P .. 'serves:' .. queue, NOW, NOW + REGISTERED)
  end)
  return {state, queue, ahead(exec), live(queue, schema_of(xk(exec))), registered}
end

-- A job as it is read: its fields, then its stages' outputs so far; where it is looked at `whole`, also where the
-- executions of its stages are, and what it waits for.
local function record(job, whole)
  local row = redis.call('HMGET', jk(job), 'state', 'spec', 'run', 'lane', 'priority', 'created_ms', 'deadline_ms',
    'started_ms', 'ended_ms', 'at', 'n', 'code', 'message', 'idem', 'owner')
  local at, n, outputs, stages = tonumber(row[10]), tonumber(row[11]), {}, {}
  for i = 0, n - 1 do outputs[i + 1] = redis.call('HGET', jk(job), 'out' .. i) or '' end
  if not whole then return {job, row, outputs} end
  for i = 0, n - 1 do
    local exec, queue = get(jk(job), 'x' .. i, 'q' .. i)
    local schema = schema_of(jk(job))
    if i == at then
      exec = current(job)
      schema = math.max(schema_of(xk(exec)), schema)
    end
    stages[i + 1] = {exec, queue, redis.call('HMGET', xk(exec), 'state', 'phase', 'step', 'steps', 'worker', 'attempt',
      'crash', 'oom', 'lapses', 'code', 'message', 'started_ms', 'committed_ms', 'preview'), times(queue), live(queue, schema)}
  end
  return {job, row, outputs, stages, wait_of(job)}
end

-- ------------------------------------------------------------------------------------------------ steering one job

-- Where the job's state forbids the call: the refusal. Else nil and the state.
local function check(job, allowed)
  settle(job)
  local state = redis.call('HGET', jk(job), 'state')
  if not state then return refuse('not_found', 'there is no job ' .. job) end
  if not allowed[state] then return refuse('conflict', 'the job is ' .. state) end
  return nil, state
end

-- Each of these gives the refusal, or nothing.

-- Ends a job from outside: cancelled by a person, or expired at its deadline.
local function stop(job, to, code)
  local refused, state = check(job, {queued = true, running = true, paused = true, [to] = true})
  if refused then return refused end
  if state ~= to then
    local subject = about(current(job))
    detach(job)
    finish(job, to, code, '', subject)
  end
end

-- Takes a job off its execution until `resume`; one that runs may commit.
local function pause(job)
  local refused, state = check(job, OPEN)
  if refused then return refused end
  if state ~= 'paused' then
    local exec = current(job)
    detach(job)
    if redis.call('HGET', xk(exec), 'state') == 'running' then redis.call('SADD', pk(exec), job) end
    turn(job, 'paused')
    event(job, 'paused', about(exec))
  end
end

-- Attaches a paused job again.
local function resume(job)
  local refused, state = check(job, OPEN)
  if refused then return refused end
  if state == 'paused' then
    redis.call('SREM', pk(current(job)), job)
    redis.call('HSET', jk(job), 'publishing', 0)
    turn(job, 'queued')
    event(job, 'resumed')
    attach(job)
  end
end

-- Where one more job may not be open, the refusal. A limit of 0 is none.
local function full(owner, max_farm, max_owner)
  if max_farm > 0 and count_open('') >= max_farm then return refuse('farm_full', '') end
  if max_owner > 0 and (owner or '') ~= '' and count_open(owner) >= max_owner then
    return refuse('quota_exceeded', 'all of at most ' .. max_owner .. ' jobs are open; wait until some have ended, or cancel some')
  end
end

-- Opens an ended, unfinished job again at the stage it stopped at.
local function retry(job, call, max_farm, max_owner)
  -- A repeated call, whose first reply was lost, is answered as the first was.
  if redis.call('HGET', jk(job), 'retried_by') == call then return end
  local refused = check(job, {failed = true, quarantined = true, cancelled = true, expired = true})
    or full(redis.call('HGET', jk(job), 'owner'), max_farm, max_owner)
  if refused then return refused end
  local key = jk(job)
  redis.call('ZREM', P .. 'ended', job)
  redis.call('HSET', key, 'code', '', 'message', '', 'publishing', 0, 'retried_by', call)
  redis.call('HDEL', key, 'ended_ms')
  set_deadline(job)
  turn(job, 'queued')
  event(job, 'retried')
  for _, exec in ipairs({redis.call('HGET', key, 'x' .. redis.call('HGET', key, 'at')), 'p:' .. job}) do
    renew(exec)
    redis.call('SREM', ek(exec), job)
  end
  attach(job)
end
