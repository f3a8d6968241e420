-- Charges, or gives back, what a dead worker held, and forgets it.
local worker, boot, code, message, charge = arg(), arg(), arg(), arg(), arg() == '1'
local held = {}
for _, exec in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
  if redis.call('HGET', xk(exec), 'boot') == boot then held[#held + 1] = exec end
end
for _, exec in ipairs(held) do
  if charge then
    -- Which of several it was is not known. Each reruns alone, so nobody is charged twice for another's death.
    if #held > 1 then redis.call('HSET', xk(exec), 'alone', 1) end
    crash(exec, code, message)
  else
    release(exec)
  end
end
forget(worker, boot)
return {named()}
