"""Pages that come and go other than by a write: allocation, scans that reconcile books and kernel, spilling."""
