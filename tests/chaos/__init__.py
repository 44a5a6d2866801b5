"""Random tenants on a pool whose daemon and controller are killed at random; `python -m tests.chaos` for people."""
