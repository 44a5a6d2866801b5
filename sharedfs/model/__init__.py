"""The books: pure, no I/O, no async, no clock."""
