"""What every part may use: errors, sizes, places on the host, tables. Imports nothing of sharedfs."""
