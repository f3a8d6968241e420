-- Opens an ended, unfinished job again.
return retry(arg(), arg(), tonumber(arg()), tonumber(arg()), arg() == '1') or {named()}
