-- Opens an ended, unfinished job again.
return retry(arg(), arg()) or {named()}
