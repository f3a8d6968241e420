-- Forgets an ended job. The farm's stream tells of it, with what listeners can no longer look up.
local job = arg()
local refused, state = check(job, ENDED)
if refused then return refused end
local at, owner, run = get(jk(job), 'at', 'owner', 'run')
forget_job(job)
redis.call('XADD', P .. 'events', 'MAXLEN', '~', 10000, '*', 'type', 'deleted', 'job', job, 'stage', at, 'state', state,
  'worker', '', 'code', '', 'exec', '', 'token', '', 'epoch', '', 't', NOW, 'owner', owner or '', 'run', run)
return {}
