-- Which workers may claim?

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
