-- How is a job read, and what does it wait for?

-- What several jobs of one call ask for is looked up once.
local KNOWN = {}
local function once(name, look)
  if KNOWN[name] == nil then KNOWN[name] = look() end
  return KNOWN[name]
end

-- How long the executions of a queue take, each its share of its call, and a whole call, and how much work they are; ''
-- where none was measured.
local function times(queue)
  return once('times ' .. queue, function()
    local mean, wall, work = get(P .. 'times:' .. queue, 'mean_ms', 'wall_ms', 'work')
    return {mean or '', wall or '', work or ''}
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
  if ENDED[is] then return {''} end
  local exec = current(job)
  local state, queue, phase = get(xk(exec), 'state', 'queue', 'phase')
  if is == 'paused' then
    if state == 'committed' then return {'between'} end
    return {state == 'running' and redis.call('SISMEMBER', pk(exec), job) == 1 and 'pausing' or is}
  end
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
    'started_ms', 'ended_ms', 'at', 'n', 'code', 'message', 'idem', 'owner', 'collected', 'tags')
  local at, n, outputs, stages = tonumber(row[10]), tonumber(row[11]), {}, {}
  for i = 0, n - 1 do outputs[i + 1] = redis.call('HGET', jk(job), 'out' .. i) or '' end
  if not whole then return {job, row, outputs} end
  for i = 0, n - 1 do
    local exec, queue, work = get(jk(job), 'x' .. i, 'q' .. i, 'w' .. i)
    local schema = schema_of(jk(job))
    if i == at then
      exec = current(job)
      schema = math.max(schema_of(xk(exec)), schema)
    end
    stages[i + 1] = {exec, queue, redis.call('HMGET', xk(exec), 'state', 'phase', 'step', 'steps', 'worker', 'attempt',
      'crash', 'oom', 'lapses', 'code', 'message', 'started_ms', 'committed_ms', 'preview'), times(queue), live(queue, schema),
      work or '', NOW}
  end
  return {job, row, outputs, stages, wait_of(job)}
end
