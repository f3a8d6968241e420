-- Steers the jobs of a run that are in one state, so many from a place on, and says how far it has come.
local verb, run, state, after, most, call = arg(), arg(), arg(), arg(), tonumber(arg()), arg()
local max_farm, max_owner, lift = tonumber(arg()), tonumber(arg()), arg() == '1'
local verbs = {
  cancel = function(job) return stop(job, 'cancelled', '') end,
  pause = pause,
  resume = resume,
  retry = function(job) return retry(job, call, max_farm, max_owner, lift) end,
}
local moved = 0
local rows = redis.call('ZRANGEBYSCORE', P .. 'in:' .. state .. ':' .. run, after, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #rows, 2 do
  after = '(' .. rows[i + 1]
  local refused = verbs[verb](rows[i])
  if not refused then
    moved = moved + 1
  elseif refused[2] == 'quota_exceeded' or refused[2] == 'farm_full' then
    -- Those before stay as they are now, and their queues are found by the reconciler.
    return refused
  end
end
return {moved, #rows / 2 == most and after or '', named()}
