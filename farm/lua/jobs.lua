-- Lists jobs, newest first.
local state, run, owner, limit, before, whole = arg(), arg(), arg(), tonumber(arg()), arg(), arg() == '1'
local key, found = P .. 'jobs', {}
if state ~= '' then
  local all = lists(state, run == '' and owner or '', run)
  key = all[#all]
elseif run ~= '' then
  key = P .. 'run:' .. run
elseif owner ~= '' then
  key = P .. 'owner:' .. owner
end
for _, job in ipairs(redis.call('ZREVRANGEBYSCORE', key, before, '-inf', 'LIMIT', 0, limit)) do
  -- A run is its owner's whole, so whoever asks for another's gets none of it.
  local whose = redis.call('HGET', jk(job), 'owner')
  if whose and (owner == '' or whose == owner) then found[#found + 1] = record(job, whole) end
end
return found
