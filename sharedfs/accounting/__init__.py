"""The books of a served pool: the ledger under a lock, tenants by cgroup, admission, and what is kept of it."""
