-- Reads for how long a worker is given nothing.
return isolated(arg())
