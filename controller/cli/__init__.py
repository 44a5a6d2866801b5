"""`sharedctl`: the command line, and its tables."""
