-- Lists jobs, newest first. Those with a tag are not listed by state: so many are looked through in one call, and the
-- place is told from which the next one goes on.
local LOOKED = 1000
local state, run, owner, tag, limit = arg(), arg(), arg(), arg(), tonumber(arg())
local before, whole = arg(), arg() == '1'
local key, most, found, place = P .. 'jobs', limit, {}, ''
if tag ~= '' then
  local all = tag_lists(tag, run == '' and owner or '', run)
  key, most = all[#all], state == '' and limit or LOOKED
elseif state ~= '' then
  local all = lists(state, run == '' and owner or '', run)
  key = all[#all]
elseif run ~= '' then
  key = P .. 'run:' .. run
elseif owner ~= '' then
  key = P .. 'owner:' .. owner
end
local rows = redis.call('ZREVRANGEBYSCORE', key, before, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #rows, 2 do
  -- A run is its owner's whole, so whoever asks for another's gets none of it.
  local whose, is = get(jk(rows[i]), 'owner', 'state')
  local fits = tag == '' or state == '' or is == state
  if whose and fits and (owner == '' or whose == owner) then found[#found + 1] = record(rows[i], whole) end
  if #found == limit then return {found, ''} end
  if tag ~= '' and i + 1 == 2 * most then place = '(' .. rows[i + 1] end
end
return {found, place}
