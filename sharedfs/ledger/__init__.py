"""The books as a pure structure: which tenants use which pages. No I/O, no async, no clock."""
