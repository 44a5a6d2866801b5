"""One pool being served: its parts put together, and what it tells and is told on its socket."""
