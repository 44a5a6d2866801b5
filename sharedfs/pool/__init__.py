"""What a pool is on its host: options, name and lock, cgroup, directory of spilled files, hand-off to a daemon."""
