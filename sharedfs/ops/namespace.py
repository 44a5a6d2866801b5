"""The namespace: everything that is not data, part by part, under one lock.

Two front ends call the parts: `ops/name_dispatch.py` answers on the FUSE wire what programs ask all the time,
`ops/pyfuse3_ops.py` gives the rest to pyfuse3. They come from different threads and hold the store's lock over each
call, so a name cannot change between two lines of one operation. None waits for a tenant; a long reservation is made by
the caller without the lock.
"""

from sharedfs.accounting.callers import Callers
from sharedfs.ops.attributes import Attributes
from sharedfs.ops.names import Names
from sharedfs.ops.open_files import OpenFiles
from sharedfs.ops.references import References
from sharedfs.ops.sizes import Sizes
from sharedfs.storage.open_dirs import Listings
from sharedfs.storage.tree import Store


class Namespace:
    """Use the parts with `lock` held, except for what says otherwise."""

    def __init__(
        self,
        store: Store,
        listings: Listings,
        callers: Callers,
        names: Names,
        references: References,
        open_files: OpenFiles,
        sizes: Sizes,
        attributes: Attributes,
    ) -> None:
        self.store = store
        self.lock = store.lock
        self.listings = listings
        self._callers = callers
        self.names = names
        self.references = references
        self.open_files = open_files
        self.sizes = sizes
        self.attributes = attributes

    def make_room(self) -> None:
        """Close descriptors that can be opened anew, for a process that has none left; between two operations."""
        self.open_files.make_room()

    def close(self) -> None:
        self.listings.close_all()
        self._callers.make_room()
