-- Gives claims back, uncharged.
for _ = 1, tonumber(arg()) do
  local exec, token = arg(), arg()
  if is_held(exec, token) then release(exec) end
end
return {named()}
