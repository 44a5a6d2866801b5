"""What keeps removed cgroups in the kernel: how many are dying, what they hold, and which shared files that is.

census (cgroup files) ───────────────────┐
files (/proc, tmpfs) ────────────────────┼─▶ report
whom pages are charged to (kpagecgroup) ─┘

Works on any host, with or without pools: nothing here asks a pool or the controller. It reads and never changes: what
it looks at keeps its charge, its place in the LRU and its times.
"""
