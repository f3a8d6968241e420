-- How does a job go from stage to stage, and how is it steered from outside?

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
  local queue, payload, work = get(jk(job), 'q' .. at, 'p' .. at, 'w' .. at)
  local input, epoch, schema = '', '', schema_of(jk(job))
  if made >= 0 then
    input, epoch = get(jk(job), 'out' .. made, 'epoch' .. made)
    -- The input may be of a newer build than the job: whoever takes it must know both.
    schema = math.max(schema, schema_of(xk(redis.call('HGET', jk(job), 'x' .. made))))
  end
  redis.call('PERSIST', key)
  redis.call('HSETNX', key, 'epoch', 1)
  redis.call('HSET', key, 'queue', queue, 'payload', payload, 'schema', schema, 'stage', at, 'publish', made == at and 1 or 0,
    'work', work or 0, 'input', input, 'input_epoch', epoch)
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
  if is_collected(job) then return finish(job, 'done', '', '', about(redis.call('HGET', key, 'x' .. at))) end
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

-- Opens an ended, unfinished job again at the stage it stopped at, one in quarantine only where that may be lifted.
local function retry(job, call, max_farm, max_owner, lift)
  -- A repeated call, whose first reply was lost, is answered as the first was.
  if redis.call('HGET', jk(job), 'retried_by') == call then return end
  local refused = check(job, {failed = true, quarantined = true, cancelled = true, expired = true})
    or full(redis.call('HGET', jk(job), 'owner'), max_farm, max_owner)
  if refused then return refused end
  local key = jk(job)
  local execs = {redis.call('HGET', key, 'x' .. redis.call('HGET', key, 'at')), 'p:' .. job}
  for _, exec in ipairs(lift and {} or execs) do
    if redis.call('HGET', xk(exec), 'state') == 'quarantined' then
      return refuse('forbidden', 'what the job is to run is in quarantine, which an admin may lift')
    end
  end
  redis.call('ZREM', P .. 'kept', job)
  redis.call('ZREM', P .. 'ended', job)
  redis.call('HSET', key, 'code', '', 'message', '', 'publishing', 0, 'retried_by', call)
  redis.call('HDEL', key, 'ended_ms')
  set_deadline(job)
  turn(job, 'queued')
  event(job, 'retried')
  for _, exec in ipairs(execs) do
    renew(exec)
    redis.call('SREM', ek(exec), job)
  end
  attach(job)
end
