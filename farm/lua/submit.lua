-- Writes jobs, all or none, and attaches each to its first stage.
local STAGE = {'x', 'q', 'p', 'w'}
local max_farm, max_owner, beyond, booking = tonumber(arg()), tonumber(arg()), tonumber(arg()), tonumber(arg())
local jobs, keyed, ids, owned, fresh = {}, {}, {}, {}, 0
for i = 1, tonumber(arg()) do
  local one = {job = arg(), n = tonumber(arg()), spec = arg(), idem = arg(), body = arg(), lane = arg(), priority = arg(),
    span = arg(), run = arg(), owner = arg(), schema = arg(), collected = arg(), tags = arg(), stages = {}}
  for s = 1, one.n do one.stages[s] = {arg(), arg(), arg(), arg()} end
  if one.idem ~= '' then
    local earlier, body = get(P .. 'idem:' .. one.idem, 'job', 'body')
    if earlier and redis.call('EXISTS', jk(earlier)) == 0 then earlier = false end
    if keyed[one.idem] then earlier, body = keyed[one.idem].job, keyed[one.idem].body end
    if earlier and body ~= one.body then
      return refuse('idempotency_conflict', 'this idempotency key belongs to job ' .. earlier)
    end
    if not earlier then keyed[one.idem] = one end
    one.earlier = earlier
  end
  if not one.earlier then
    local spec, idem = get(jk(one.job), 'spec', 'idem')
    if spec == one.spec and idem == one.idem then
      one.earlier = one.job -- without a key, a call whose reply was lost is known by the job's own id
    elseif spec or ids[one.job] then
      return refuse('conflict', 'there is a job ' .. one.job .. ' already')
    end
    ids[one.job] = true
  end
  if not one.earlier then
    fresh = fresh + 1
    if one.run ~= '' and not owned[one.run] then
      local first = redis.call('ZRANGE', P .. 'run:' .. one.run, 0, 0)[1]
      owned[one.run] = first and redis.call('HGET', jk(first), 'owner') or one.owner
    end
    if owned[one.run] and owned[one.run] ~= one.owner then
      return refuse('conflict', 'the run ' .. one.run .. ' is somebody else\'s')
    end
  end
  jobs[i] = one
end

-- Limits are for new jobs alone: a call that is sent again is answered as the first one was. Whoever sends many jobs in
-- several calls is admitted with the first, for all of them: the room of the `beyond` others is booked for a while.
local owner, call = jobs[1].owner, jobs[1].run
local admitted = call ~= '' and redis.call('EXISTS', P .. 'run:' .. call) == 1
if fresh > 0 and max_farm > 0 and not admitted and count_open('') + fresh + beyond > max_farm then
  return refuse('farm_full', '')
end
if fresh > 0 and max_owner > 0 and owner ~= '' then
  local booked, others = P .. 'booked:' .. owner, 0
  local rows = redis.call('HGETALL', booked)
  for i = 1, #rows, 2 do
    local count, ends = string.match(rows[i + 1], '^(%d+) (%d+)$')
    if tonumber(ends) <= NOW then
      redis.call('HDEL', booked, rows[i])
    elseif rows[i] ~= call then
      others = others + count
    end
  end
  local open = count_open(owner) + others
  if open + fresh + beyond > max_owner then
    return refuse('quota_exceeded', open .. ' of at most ' .. max_owner .. ' jobs are open, and ' .. fresh + beyond
      .. ' more were asked for; wait until some have ended, or cancel some')
  end
  if beyond > 0 then
    redis.call('HSET', booked, call, string.format('%d %d', beyond, NOW + booking))
    redis.call('PEXPIRE', booked, booking)
  else
    redis.call('HDEL', booked, call)
  end
end

-- No two jobs share a time of creation, so lines are first come, first served and a listing's cursor skips nobody.
-- A sixteenth of a millisecond is what a score's 53 bits still tell beside the priority.
local created = math.max(NOW - 1 / 16, tonumber(redis.call('GET', P .. 'created') or 0))
local found = {}
for i, one in ipairs(jobs) do
  if not one.earlier then
    local key = jk(one.job)
    created = created + 1 / 16
    local row = {'spec', one.spec, 'run', one.run, 'lane', one.lane, 'priority', one.priority,
      'created_ms', string.format('%.4f', created), 'span_ms', one.span, 'at', 0, 'n', one.n, 'idem', one.idem,
      'schema', one.schema, 'owner', one.owner, 'collected', one.collected}
    for s, stage in ipairs(one.stages) do
      for part, value in ipairs(stage) do
        row[#row + 1] = STAGE[part] .. s - 1
        row[#row + 1] = value
      end
    end
    redis.call('HSET', key, unpack(row))
    if one.idem ~= '' then
      redis.call('DEL', P .. 'idem:' .. one.idem)
      redis.call('HSET', P .. 'idem:' .. one.idem, 'job', one.job, 'body', one.body)
    end
    redis.call('ZADD', P .. 'jobs', created, one.job)
    if one.owner ~= '' then redis.call('ZADD', P .. 'owner:' .. one.owner, created, one.job) end
    if one.run ~= '' then
      redis.call('ZADD', P .. 'run:' .. one.run, created, one.job)
      redis.call('ZADD', P .. 'runs', 'NX', created, one.run)
      if one.owner ~= '' then redis.call('ZADD', P .. 'runs:' .. one.owner, 'NX', created, one.run) end
    end
    local tags = {}
    for tag in string.gmatch(one.tags, '[^\n]+') do tags[#tags + 1] = tag end
    set_tags(one.job, tags)
    turn(one.job, 'queued')
    set_deadline(one.job)
    stat('submitted')
    event(one.job, 'submitted')
    attach(one.job)
  end
  local job = one.earlier or one.job
  found[i] = {job, redis.call('HGET', jk(job), 'state'), one.earlier and 1 or 0}
end
redis.call('SET', P .. 'created', string.format('%.4f', created))
return {found, named()}
