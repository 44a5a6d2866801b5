"""What outlives the controller, in SQLite."""
