"""Who pays for which bytes, and which limits follow: pure functions from books to bills to limits."""
