"""What comes again and again: scans, ageing, exits, recharge, unclaimed files."""
