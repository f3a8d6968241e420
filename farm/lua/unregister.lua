-- Takes a worker's entry away.
forget(arg(), arg())
return {}
