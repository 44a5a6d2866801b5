"""From bills to limits: what each cgroup can bear, how fast, and what yields. Pure."""
