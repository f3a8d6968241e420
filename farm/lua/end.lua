-- Ends a job from outside: cancelled by a person, or expired at its deadline.
local job, to, code = arg(), arg(), arg()
local refused, state = check(job, {queued = true, running = true, paused = true, [to] = true})
if refused then return refused end
if state ~= to then
  local subject = about(current(job))
  detach(job)
  finish(job, to, code, '', subject)
end
return {to}
