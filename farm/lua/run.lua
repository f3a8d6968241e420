-- Reads how the jobs of runs are, in the order given; of the newest runs where none is named.
local count, runs = tonumber(arg()), {}
for i = 1, count do runs[i] = arg() end
if count == 0 then
  local owner, limit, before = arg(), tonumber(arg()), arg()
  local key = owner == '' and P .. 'runs' or P .. 'runs:' .. owner
  runs = redis.call('ZREVRANGEBYSCORE', key, before, '-inf', 'LIMIT', 0, limit)
end
local found = {}
for _, run in ipairs(runs) do
  local first = redis.call('ZRANGE', P .. 'run:' .. run, 0, 0)[1]
  if first then
    local states = {}
    for _, known in ipairs({OPEN, ENDED}) do
      for state in pairs(known) do
        local here = redis.call('ZCARD', P .. 'in:' .. state .. ':' .. run)
        if here > 0 then states[#states + 1] = {state, here} end
      end
    end
    local owner = redis.call('HGET', jk(first), 'owner') or ''
    found[#found + 1] = {run, owner, redis.call('ZSCORE', P .. 'runs', run), redis.call('ZSCORE', P .. 'run_ends', run) or 0, states}
  end
end
return found
