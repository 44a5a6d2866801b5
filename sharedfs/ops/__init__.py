"""The operations of FUSE: data in C and Python, names, and the recovery of one that was cut off."""
