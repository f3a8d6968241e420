-- Charges, or gives back, what a dead worker held, and forgets it. A finished output that only waits for its upload is left
-- to its lease: the worker's next life may still bring it.
local worker, boot, code, message, log, charge = arg(), arg(), arg(), arg(), arg(), arg() == '1'
local held = {}
for _, exec in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
  local from, phase = get(xk(exec), 'boot', 'phase')
  if from == boot and phase ~= 'spool' then held[#held + 1] = exec end
end
if charge and #held > 0 then blame(worker, held[1]) end
for _, exec in ipairs(held) do
  if charge then
    -- Which of several it was is not known. Each reruns alone, so nobody is charged twice for another's death.
    if #held > 1 then redis.call('HSET', xk(exec), 'alone', 1) end
    crash(exec, code, message, log)
  else
    release(exec)
  end
end
forget(worker, boot)
return {named()}
