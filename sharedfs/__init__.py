"""sharedfs: a shared scratch filesystem whose pages are paid for by those who use them."""

from sharedfs.common import version

__version__ = version.VERSION
