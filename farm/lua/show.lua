-- Keeps the newest picture of running stages that are looked at, each from the holder of its token alone.
for _ = 1, tonumber(arg()) do
  local exec, token, picture = arg(), arg(), arg()
  if is_held(exec, token) and is_watched(exec) then
    redis.call('SET', P .. 'preview:' .. exec, picture, 'PX', REGISTERED)
    redis.call('HSET', xk(exec), 'preview', math.max(NOW, tonumber(redis.call('HGET', xk(exec), 'preview') or 0) + 1))
  end
end
return {}
