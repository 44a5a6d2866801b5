"""The kernel's memory limits of a cgroup: read, and moved without ever calling the OOM killer (I5)."""
