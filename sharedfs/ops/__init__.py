"""The operations of FUSE: data in C and Python, the namespace, and the recovery of one that was cut off."""
