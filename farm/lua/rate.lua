-- May the caller go on? One key per caller: when all that it has spent will have flowed back (a leaky bucket, kept as
-- the generic cell rate algorithm keeps it, ITU-T I.371). Answers 0, or the milliseconds to wait.
local name, gap, burst = arg(), tonumber(arg()), tonumber(arg())
local key = P .. 'rate:' .. name
-- No more than was ever let through: what lies beyond was written before the clock went back.
local spent = math.min(tonumber(redis.call('GET', key) or '0'), NOW + gap * burst)
local empty = math.max(spent, NOW) + gap
local wait = empty - gap * burst - NOW
if wait > 0 then return math.ceil(wait) end
redis.call('SET', key, string.format('%.3f', empty), 'PX', math.ceil(empty - NOW))
return 0
