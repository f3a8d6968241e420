-- Writes jobs, all or none, and attaches each to its first stage.
local jobs, kept, ids = {}, {}, {}
for i = 1, tonumber(arg()) do
  local one = {job = arg(), n = tonumber(arg()), spec = arg(), idem = arg(), body = arg(), lane = arg(), priority = arg(),
    span = arg(), run = arg(), schema = arg(), stages = {}}
  for s = 1, one.n do one.stages[s] = {arg(), arg(), arg()} end
  if one.idem ~= '' then
    local earlier, body = get(P .. 'idem:' .. one.idem, 'job', 'body')
    if earlier and redis.call('EXISTS', jk(earlier)) == 0 then earlier = false end
    if kept[one.idem] then earlier, body = kept[one.idem].job, kept[one.idem].body end
    if earlier and body ~= one.body then
      return refuse('idempotency_conflict', 'this idempotency key belongs to job ' .. earlier)
    end
    if not earlier then kept[one.idem] = one end
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
  jobs[i] = one
end

-- No two jobs share a time of creation, so lines are first come, first served and a listing's cursor skips nobody.
-- A sixteenth of a millisecond is what a score's 53 bits still tell beside the priority.
local created = math.max(NOW - 1 / 16, tonumber(redis.call('GET', P .. 'created') or 0))
local found = {}
for i, one in ipairs(jobs) do
  if not one.earlier then
    local key = jk(one.job)
    created = created + 1 / 16
    redis.call('HSET', key, 'spec', one.spec, 'run', one.run, 'lane', one.lane, 'priority', one.priority,
      'created_ms', string.format('%.4f', created), 'span_ms', one.span, 'at', 0, 'n', one.n, 'idem', one.idem,
      'schema', one.schema)
    for s, stage in ipairs(one.stages) do
      redis.call('HSET', key, 'x' .. s - 1, stage[1], 'q' .. s - 1, stage[2], 'p' .. s - 1, stage[3])
    end
    if one.idem ~= '' then
      redis.call('DEL', P .. 'idem:' .. one.idem)
      redis.call('HSET', P .. 'idem:' .. one.idem, 'job', one.job, 'body', one.body)
    end
    redis.call('ZADD', P .. 'jobs', created, one.job)
    if one.run ~= '' then redis.call('ZADD', P .. 'run:' .. one.run, created, one.job) end
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
