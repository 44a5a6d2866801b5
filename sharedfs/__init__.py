"""sharedfs: a shared scratch filesystem whose pages are paid for by those who use them."""

__version__ = "0.1.0"
