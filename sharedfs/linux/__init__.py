"""The kernel's surfaces, one file each. Plain data out; nothing here knows of tenants or bills."""
