"""From books to bills: who pays for which bytes. Pure."""
