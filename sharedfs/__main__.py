"""`python -m sharedfs` is `sharedfs`."""

from sharedfs.mount.cli import main

main()
