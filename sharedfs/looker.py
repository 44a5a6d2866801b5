"""A daemon that was started by a version before the folders makes its children with `-m sharedfs.looker`.

To be removed with the first release after 0.1.
"""

import os
import sys

from sharedfs.linux.looker import main

_MOVED = {"sharedfs.page_tables:look": "sharedfs.pages.page_tables:look"}

if __name__ == "__main__":
    try:
        main(_MOVED.get(sys.argv[1], sys.argv[1]), int(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
