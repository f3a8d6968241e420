-- What is every call given, what are the keys called, and where is a job listed and told of?
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
-- A dataset's open jobs are in one more of their owner's, for they are not counted among what the owner may have open.
local function lists(state, owner, run, collected)
  local found = {P .. 'jobs:' .. state}
  if (owner or '') ~= '' then found[#found + 1] = P .. 'owner:' .. owner .. ':' .. state end
  if (run or '') ~= '' then found[#found + 1] = P .. 'in:' .. state .. ':' .. run end
  if collected == '1' and (owner or '') ~= '' and OPEN[state] then
    found[#found + 1] = P .. 'collected:' .. owner .. ':' .. state
  end
  return found
end

-- An earlier build turns a dataset's job without these lists: it may stand in any of them, and is taken out of all.
local function uncollect(job, owner)
  for state in pairs(OPEN) do redis.call('ZREM', P .. 'collected:' .. owner .. ':' .. state, job) end
end

local function turn(job, state)
  local old, created, owner, run, collected = get(jk(job), 'state', 'created_ms', 'owner', 'run', 'collected')
  if old then
    for _, list in ipairs(lists(old, owner, run)) do redis.call('ZREM', list, job) end
  end
  if collected == '1' then uncollect(job, owner or '') end
  for _, list in ipairs(lists(state, owner, run, collected)) do redis.call('ZADD', list, created, job) end
  redis.call('HSET', jk(job), 'state', state)
end

-- The lists of jobs with a tag: all of them, those of the owner, those of the run. A tag has no colon.
local function tag_lists(tag, owner, run)
  local key = P .. 'tag:' .. tag
  local found = {key}
  if (owner or '') ~= '' then found[#found + 1] = key .. ':owner:' .. owner end
  if (run or '') ~= '' then found[#found + 1] = key .. ':run:' .. run end
  return found
end

local function tags_of(job)
  local found = {}
  for tag in string.gmatch(redis.call('HGET', jk(job), 'tags') or '', '[^\n]+') do found[#found + 1] = tag end
  return found
end

-- One job more, or one less, has the tag; of one that no job has nothing is left.
local function count_tag(tag, owner, by)
  for _, key in ipairs((owner or '') ~= '' and {P .. 'tags', P .. 'tags:' .. owner} or {P .. 'tags'}) do
    redis.call('ZINCRBY', key, by, tag)
    redis.call('ZREMRANGEBYSCORE', key, '-inf', 0)
  end
end

-- Gives the job these tags, no two alike, in place of those that it has.
local function set_tags(job, tags)
  local created, owner, run = get(jk(job), 'created_ms', 'owner', 'run')
  local had, has = {}, {}
  for _, tag in ipairs(tags) do has[tag] = true end
  for _, tag in ipairs(tags_of(job)) do
    had[tag] = true
    if not has[tag] then
      for _, list in ipairs(tag_lists(tag, owner, run)) do redis.call('ZREM', list, job) end
      count_tag(tag, owner, -1)
    end
  end
  for _, tag in ipairs(tags) do
    if not had[tag] then
      for _, list in ipairs(tag_lists(tag, owner, run)) do redis.call('ZADD', list, created, job) end
      count_tag(tag, owner, 1)
    end
  end
  if #tags == 0 then
    redis.call('HDEL', jk(job), 'tags')
  else
    redis.call('HSET', jk(job), 'tags', table.concat(tags, '\n'))
  end
end

-- How many jobs have not ended: of an owner, but those of datasets, or, for '', all.
local function count_open(owner)
  local found = 0
  for state in pairs(OPEN) do
    local all = lists(state, owner)
    found = found + redis.call('ZCARD', all[#all])
    if owner ~= '' then found = found - redis.call('ZCARD', P .. 'collected:' .. owner .. ':' .. state) end
  end
  return math.max(0, found)
end

-- Whoever submitted the job takes its output from the store: no readable copy of it is written.
local function is_collected(job) return redis.call('HGET', jk(job), 'collected') == '1' end

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

-- Lists an ended job by its end: those that nobody has tagged, which run out, and those that are kept.
local function list_end(job, ended_ms)
  local is, was = 'ended', 'kept'
  if #tags_of(job) > 0 then is, was = was, is end
  redis.call('ZREM', P .. was, job)
  redis.call('ZADD', P .. is, ended_ms or NOW, job)
end

local function finish(job, state, code, message, subject)
  local key = jk(job)
  turn(job, state)
  redis.call('SREM', P .. 'moving', job)
  redis.call('HSET', key, 'ended_ms', NOW, 'code', code, 'message', message)
  redis.call('ZREM', P .. 'deadlines', job)
  list_end(job, NOW)
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
  local state, owner, run, idem, n, collected = get(key, 'state', 'owner', 'run', 'idem', 'n', 'collected')
  for _, list in ipairs({'ended', 'kept', 'jobs'}) do redis.call('ZREM', P .. list, job) end
  if not state then
    -- Its record is gone, and with it what it would say of its lists.
    for _, known in ipairs({OPEN, ENDED}) do
      for old in pairs(known) do redis.call('ZREM', P .. 'jobs:' .. old, job) end
    end
    return
  end
  for _, list in ipairs(lists(state, owner, run)) do redis.call('ZREM', list, job) end
  if collected == '1' then uncollect(job, owner or '') end
  set_tags(job, {})
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
