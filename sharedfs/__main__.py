"""`python -m sharedfs` is `sharedfs`."""

from sharedfs.cli import main

main()
