"""The demonstration that `deploy/quickstart` runs: the same small workload on a pool and on plain tmpfs.

`host` looks at the kernel, `tenants` makes cgroups with processes in them, `containers` and `container_tenants` real
containers, `service` has a pool and a controller, `acts` does and measures, `story` tells. Nothing here is used by
sharedfs itself.
"""
