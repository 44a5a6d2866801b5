"""What outlives a daemon: the keeper, and the process that forks daemons for it."""
