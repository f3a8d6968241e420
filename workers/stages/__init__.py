"""The stage kinds of this repository, one file each. A new file here is a new kind; nothing else needs to know it."""
