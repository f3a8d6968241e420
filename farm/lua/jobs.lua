-- Lists jobs, newest first.
local state, run, limit, before = arg(), arg(), tonumber(arg()), arg()
local key = P .. 'jobs'
if run ~= '' then
  key = P .. 'run:' .. run
elseif state ~= '' then
  key = P .. 'jobs:' .. state
end
-- At most so many rows are looked at: a run may have a million jobs, and nobody else is served meanwhile.
local found, offset, page, most = {}, 0, math.max(limit, 100), 2000
repeat
  local jobs = redis.call('ZREVRANGEBYSCORE', key, before, '-inf', 'LIMIT', offset, page)
  for _, job in ipairs(jobs) do
    local is = redis.call('HGET', jk(job), 'state')
    if #found < limit and is and (state == '' or is == state) then found[#found + 1] = record(job) end
  end
  offset = offset + page
until #found == limit or #jobs < page or offset >= most
return found
