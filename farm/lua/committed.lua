-- Reads which executions have an output.
local found = {}
for _ = 1, tonumber(arg()) do
  local exec = arg()
  if redis.call('HGET', xk(exec), 'state') == 'committed' then found[#found + 1] = exec end
end
return found
