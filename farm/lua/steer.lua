-- Steers the jobs of a run that are in one state, so many from a place on, and says how far it has come.
local verb, run, state, after, most, call = arg(), arg(), arg(), arg(), tonumber(arg()), arg()
local verbs = {
  cancel = function(job) return stop(job, 'cancelled', '') end,
  pause = pause,
  resume = resume,
  retry = function(job) return retry(job, call) end,
}
local moved = 0
local rows = redis.call('ZRANGEBYSCORE', P .. 'in:' .. state .. ':' .. run, after, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #rows, 2 do
  after = '(' .. rows[i + 1]
  if not verbs[verb](rows[i]) then moved = moved + 1 end
end
return {moved, #rows / 2 == most and after or '', named()}
