-- Who delivers: takes the seat for a while, or renews it; 0 while another sits there. For 0 ms it is given back.
local leader, hold = arg(), tonumber(arg())
local seat = P .. 'webhooks:leader'
local leads = redis.call('GET', seat)
-- A seat that lasts longer than it was taken for was taken before the clock went back.
if leads and leads ~= leader and redis.call('PTTL', seat) <= math.max(hold, 1) then return 0 end
if hold > 0 then
  redis.call('SET', seat, leader, 'PX', hold)
elseif leads == leader then
  redis.call('DEL', seat)
end
return 1
