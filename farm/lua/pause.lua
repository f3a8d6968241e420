-- Takes a job off its execution.
return pause(arg()) or {}
