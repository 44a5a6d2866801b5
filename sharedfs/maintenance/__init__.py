"""What comes again and again: scans, ageing, exits, recharge; and unclaimed files, which also give way to a request."""
