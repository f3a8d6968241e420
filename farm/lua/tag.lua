-- Puts tags on jobs, and takes others off; a job that would have more than it may stays as it is.
local most, added, removed, found = tonumber(arg()), {}, {}, {}
for i = 1, tonumber(arg()) do added[i] = arg() end
for _ = 1, tonumber(arg()) do removed[arg()] = true end

local function change(job)
  local state, before, ended_ms = get(jk(job), 'state', 'tags', 'ended_ms')
  if not state then return 'gone' end
  local tags, has = {}, {}
  for _, tag in ipairs(tags_of(job)) do
    has[tag] = true
    if not removed[tag] then tags[#tags + 1] = tag end
  end
  for _, tag in ipairs(added) do
    if not has[tag] then tags[#tags + 1] = tag end
  end
  if #tags > most then return 'full' end
  if table.concat(tags, '\n') == (before or '') then return 'ok' end
  set_tags(job, tags)
  -- A tagged job is kept, by any build's reaper: it is not where they look. One that is so no longer has its whole
  -- retention before it: who erred can put the tag back.
  if ENDED[state] then list_end(job, #tags == 0 and NOW or ended_ms) end
  event(job, 'tagged')
  return 'ok'
end

for i = 1, tonumber(arg()) do found[i] = change(arg()) end
return found
