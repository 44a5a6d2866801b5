"""Who pays for a page: one file for each answer."""
