-- Keeps the newest picture of running stages, each from the holder of its token alone; not where all who wait do so in bulk.
local found = {}
for i = 1, tonumber(arg()) do
  local exec, token, picture = arg(), arg(), arg()
  local lane, last = get(xk(exec), 'lane', 'preview')
  local wanted = is_held(exec, token) and lane ~= 'bulk'
  if wanted and picture ~= '' then
    redis.call('SET', P .. 'preview:' .. exec, picture, 'PX', REGISTERED)
    redis.call('HSET', xk(exec), 'preview', math.max(NOW, tonumber(last or 0) + 1))
  end
  found[i] = wanted and 1 or 0
end
return found
