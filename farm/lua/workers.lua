-- Reads the live workers.
local found = {}
-- Of each execution so many of the jobs that wait for it are named.
local NAMED = 4
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', NOW, NOW + REGISTERED)) do
  local record = redis.call('HMGET', P .. 'worker:' .. worker, 'boot', 'state', 'host', 'pid', 'info', 'seen_ms', 'queues')
  if record[1] then
    local drained = redis.call('SISMEMBER', P .. 'draining', worker)
    local held, jobs = redis.call('SMEMBERS', P .. 'held:' .. worker), {}
    for _, exec in ipairs(held) do
      for _, job in ipairs(redis.call('SRANDMEMBER', wk(exec), NAMED)) do jobs[#jobs + 1] = job end
    end
    found[#found + 1] = {worker, record, drained, held, isolated(worker), jobs}
  end
end
return found
