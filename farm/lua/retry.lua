-- Opens an ended, unfinished job again.
return retry(arg(), arg(), tonumber(arg()), tonumber(arg())) or {named()}
