-- Attaches a paused job again.
return resume(arg()) or {named()}
