-- Reads what a job waits for.
local job = arg()
local is = redis.call('HGET', jk(job), 'state')
if not is then return refuse('not_found', 'there is no job ' .. job) end
if is == 'paused' then return {is} end
local exec = current(job)
local state, queue, lane = get(xk(exec), 'state', 'queue', 'lane')
local schema = schema_of(xk(exec))
if redis.call('SISMEMBER', wk(exec), job) == 0 then return {''} end
if state == 'running' and redis.call('HGET', xk(exec), 'phase') == 'spool' then return {'spool'} end
if state == 'backoff' then return {state, redis.call('ZSCORE', P .. 'due', exec)} end
if state ~= 'ready' then return {''} end
local ahead = redis.call('ZRANK', ready_key(queue, lane, schema), exec)
if lane == 'bulk' then ahead = ahead + redis.call('ZCARD', ready_key(queue, 'interactive', schema)) end
local registered = redis.call('ZCOUNT', P .. 'serves:' .. queue, NOW, NOW + REGISTERED)
return {state, queue, ahead, #serving(queue, schema), registered}
