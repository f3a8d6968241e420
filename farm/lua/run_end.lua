-- A run whose jobs have all ended: when the last one did, one of them, and how many are in each state. Nothing for another.
local run = arg()
local states, last, one = {}, 0, ''
for _, job in ipairs(redis.call('ZREVRANGE', P .. 'run:' .. run, 0, -1)) do
  local state, ended = get(jk(job), 'state', 'ended_ms')
  if state and not ENDED[state] then return {} end
  if state then
    states[state] = (states[state] or 0) + 1
    last, one = math.max(last, tonumber(ended or 0)), job
  end
end
if one == '' then return {} end
local found = {tostring(last), one}
for state, count in pairs(states) do
  found[#found + 1] = state
  found[#found + 1] = count
end
return found
