-- Sends the waiters of a claim whose input is lost back to the stage that made it.
local exec, token = arg(), arg()
local key = xk(exec)
if not is_held(exec, token) then
  if redis.call('HGET', key, 'ended_token') == token then return {{}} end
  return refuse('stale_token', '')
end
redis.call('HSET', key, 'ended_token', token)
local publish, stage, input_epoch = get(key, 'publish', 'stage', 'input_epoch')
leave(exec)
tell(exec, 'rewound', 'input_lost')
stat('rewinds')
local made = publish == '1' and tonumber(stage) or stage - 1
if made < 0 then
  end_execution(exec, 'failed', 'input_lost', '')
  return {named()}
end

local subject, waiters, beyond = about(exec), redis.call('SMEMBERS', wk(exec)), {}
redis.call('DEL', wk(exec))
rest(exec, 'idle')
for i, job in ipairs(waiters) do
  local producer = redis.call('HGET', jk(job), 'x' .. made)
  local state, epoch, rewinds = get(xk(producer), 'state', 'epoch', 'rewinds')
  -- Where the producer has another epoch by now, somebody else has seen the loss: nothing to charge.
  if state == 'committed' and epoch == input_epoch then
    redis.call('HINCRBY', xk(producer), 'epoch', 1)
    redis.call('HDEL', xk(producer), 'output')
    if (tonumber(rewinds or 0)) >= CAP.rewinds then
      beyond[producer] = true
      redis.call('HSET', xk(producer), 'code', 'input_lost', 'message', '')
      rest(producer, 'failed')
    else
      redis.call('HINCRBY', xk(producer), 'rewinds', 1)
      rest(producer, 'idle')
    end
  end
  redis.call('HSET', jk(job), 'at', made, 'publishing', 0)
  redis.call('HDEL', jk(job), 'out' .. made, 'epoch' .. made)
  if i > FAN then
    defer(job, beyond[producer] and 'failed' or 'attach', beyond[producer] and 'input_lost' or '', '')
  elseif beyond[producer] then
    finish(job, 'failed', 'input_lost', '', subject)
  else
    attach(job)
  end
end
return {named()}
