-- Forgets an ended job. The farm's stream tells of it, with what listeners can no longer look up.
local job = arg()
local refused = check(job, ENDED)
if refused then return refused end
local owner, run = get(jk(job), 'owner', 'run')
event(job, 'deleted', nil, '', 'owner', owner or '', 'run', run)
forget_job(job)
return {}
