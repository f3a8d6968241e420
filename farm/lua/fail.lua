-- Charges a failed call to its execution, or to nobody where it ran several.
local failure, code, message, log = arg(), arg(), arg(), arg()
local jitter, first, longest = tonumber(arg()), tonumber(arg()), tonumber(arg())
local given, held, repeated = tonumber(arg()), {}, false
for _ = 1, given do
  local exec, token = arg(), arg()
  if is_held(exec, token) then
    held[#held + 1] = exec
    redis.call('HSET', xk(exec), 'ended_token', token)
  elseif redis.call('HGET', xk(exec), 'ended_token') == token then
    repeated = true
  end
end
if #held == 0 and not repeated then return refuse('stale_token', '') end

for _, exec in ipairs(held) do
  local key = xk(exec)
  if given > 1 then
    redis.call('HSET', key, 'alone', 1)
    leave(exec)
    tell(exec, 'attempt_failed', code)
    give_back(exec)
  elseif failure == 'crash' then
    blame(redis.call('HGET', key, 'worker'), exec)
    crash(exec, code, message, log)
  else
    if failure ~= 'transient' then explain(exec, code, message, log) end
    leave(exec)
    tell(exec, 'attempt_failed', code)
    if failure == 'oom' then
      redis.call('HSET', key, 'alone', 1)
      avoid(exec)
      blame(redis.call('HGET', key, 'worker'), exec)
      if redis.call('HINCRBY', key, 'oom', 1) >= CAP.oom then
        end_execution(exec, 'failed', code, message)
      else
        give_back(exec)
      end
    elseif failure == 'deterministic' then
      end_execution(exec, 'failed', code, message)
    elseif redis.call('SCARD', wk(exec)) == 0 then
      rest(exec, 'idle')
    else
      local times = redis.call('HINCRBY', key, 'transient', 1)
      redis.call('HSET', key, 'state', 'backoff', 'code', code, 'message', message)
      redis.call('ZADD', P .. 'due', NOW + math.floor(jitter * math.min(longest, first * 2 ^ (times - 1))), exec)
    end
  end
end
return {named()}
