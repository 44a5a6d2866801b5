"""A daemon that was started by a version before the folders makes its children with `-m sharedfs.looker`.

What passes between the two are objects of modules that had other names there (`pickle`), and have these names here.
To be removed with the first release after 0.1.
"""

import os
import sys

from sharedfs.linux import procfs
from sharedfs.linux.looker import main
from sharedfs.pages import page_tables

_FORMER_NAMES = {"sharedfs.kernel.proc": procfs, "sharedfs.page_tables": page_tables}


def take_former_names() -> None:
    """Have `pickle` find the modules, and all that they define, by the names that they had, and write these."""
    for name, module in _FORMER_NAMES.items():
        sys.modules[name] = module
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                value.__module__ = name


if __name__ == "__main__":
    try:
        take_former_names()
        main(sys.argv[1], int(sys.argv[2]))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
