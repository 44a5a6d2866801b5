"""Finds the file that a person names: by its own name, or as `explain` and `unclaimed` show it, with escapes."""

import os
from errno import ENOENT

from sharedfs.common.errors import CallerMistake
from sharedfs.common.names import printable, raw_name
from sharedfs.storage.node import Node
from sharedfs.storage.tree import Store


def find_named(store: Store, path: str, *, escaped: bool) -> Node:
    """The inode at `path`, relative to the pool's root, never through a symlink. Call with the store's lock held.

    `escaped`: the path is as `printable` makes it. Else it may be that or the name itself: a tenant can give a file the
    name that another one is shown by, and a path that means two files is refused with CallerMistake.
    Raises OSError when there is none.
    """
    shown = _walk(store, os.fsdecode(raw_name(path)))
    literal = shown if escaped or "\\" not in path else _walk(store, path)
    if shown is not None and literal is not None and shown.inode != literal.inode:
        raise CallerMistake(
            f"it may be {printable(os.fsencode(path))}, or {path} with its escapes read: name the first with each "
            "backslash doubled, or the second by its own letters ($'...' in a shell)"
        )
    found = shown or literal
    if found is None:
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT))
    return found


def _walk(store: Store, path: str) -> Node | None:
    try:
        return store.walk(path)
    except (OSError, UnicodeError):
        return None
