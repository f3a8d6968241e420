-- Ends a job from outside.
local job, to, code = arg(), arg(), arg()
return stop(job, to, code) or {to}
