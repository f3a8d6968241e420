-- One bounded round of the reconciler: what time alone makes due.
local leader, hold, most = arg(), tonumber(arg()), 200
local seat = P .. 'reap:leader'
local leads = redis.call('GET', seat)
-- A seat that lasts longer than it was taken for was taken before the clock went back.
if leads and leads ~= leader and redis.call('PTTL', seat) <= hold then return {'follows'} end
redis.call('SET', seat, leader, 'PX', hold)

-- An outage or a clock jump is no worker's fault: a lease that it took time from gets that time back, and none outlasts
-- what a beat would give now.
local last = tonumber(redis.call('GET', P .. 'reap:last') or NOW)
local gap = NOW - last
redis.call('SET', P .. 'reap:last', NOW)
if gap > math.max(LEASE / 2, hold) or gap < 0 then
  local leases = redis.call('ZRANGE', P .. 'leases', 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    redis.call('ZADD', P .. 'leases', math.min(leases[i + 1] + gap, NOW + LEASE), leases[i])
  end
end
if gap < 0 then
  local due = redis.call('ZRANGE', P .. 'due', 0, -1, 'WITHSCORES')
  for i = 1, #due, 2 do redis.call('ZADD', P .. 'due', due[i + 1] + gap, due[i]) end
end

local more = 0
local function due(key, until_ms)
  local found = redis.call('ZRANGEBYSCORE', P .. key, '-inf', until_ms, 'LIMIT', 0, most)
  if #found == most then more = 1 end
  return found
end

for _, job in ipairs(redis.call('SRANDMEMBER', P .. 'moving', most)) do settle(job) end
if redis.call('SCARD', P .. 'moving') > 0 then more = 1 end
for _, exec in ipairs(due('leases', NOW)) do lapse(exec) end
for _, exec in ipairs(due('due', NOW)) do
  redis.call('ZREM', P .. 'due', exec)
  make_ready(exec)
end
for _, job in ipairs(due('deadlines', NOW)) do
  -- Refused where it has ended, or is no more: then nothing is due.
  if stop(job, 'expired', 'deadline') then redis.call('ZREM', P .. 'deadlines', job) end
end
for _, job in ipairs(due('ended', NOW - RETENTION * 1000)) do
  -- A tagged one is here only where a worker of an earlier build has ended it.
  if #tags_of(job) > 0 then list_end(job, redis.call('HGET', jk(job), 'ended_ms')) else forget_job(job) end
end
redis.call('ZREMRANGEBYSCORE', P .. 'quarantine', '-inf', NOW - RETENTION * 1000)
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', NOW - REGISTERED)
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  redis.call('ZREMRANGEBYSCORE', P .. 'serves:' .. queue, '-inf', NOW - REGISTERED)
end
return {'leads', more}
