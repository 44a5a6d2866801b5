"""Who has files open in a way that lets it read all of them unseen: how many handles each tenant has on each file.

Kept in a log. A request to open or close that is asked again, because we died before the answer, is known by its number
and counts once (I8).
"""

from collections import Counter, deque
from collections.abc import Iterator

from sharedfs.ledger.storage import Log, MemoryLog, Record
from sharedfs.ledger.tenant import TenantId

_TABLE, _READER = "readers", "reader"
_UNASKED = 0
_REMEMBERED_REQUESTS = 256
"""More than are ever under way: those answered last before a death."""

Reader = tuple[int, TenantId]
"""A file and a tenant."""


class Readers:
    """Every method but those that say otherwise is O(1)."""

    def __init__(self, log: Log | None = None) -> None:
        self._log = MemoryLog() if log is None else log
        self._handles: Counter[Reader] = Counter()
        self.seen: frozenset[Reader] = frozenset()
        """Who else has such a file open, as the last scan found it: a handle was passed on, or its process has moved.
        Not kept: the next daemon's first scan finds it."""
        self._requests: deque[int] = deque(maxlen=_REMEMBERED_REQUESTS)
        self._before: frozenset[int] = frozenset()

    def add(self, reader: Reader, handles: int, request: int = _UNASKED) -> int:
        """One handle more or less (`handles` is 1 or -1), by `request`; how many there are then.

        Without an effect for a reader that has none to lose, and for a request that was counted before we were killed.
        """
        now = self._handles[reader] + handles if reader in self._handles else max(handles, 0)
        if request in self._before or (handles < 0 and reader not in self._handles):
            return self._handles.get(reader, 0)
        self._log.append((_READER, *reader, now, request))
        self._set(reader, now, request)
        return now

    def _set(self, reader: Reader, handles: int, request: int) -> None:
        if handles:
            self._handles[reader] = handles
        else:
            self._handles.pop(reader, None)
        if request != _UNASKED:
            self._requests.append(request)

    def forget(self, tenant: TenantId) -> None:
        """`tenant` has exited. O(readers)."""
        for reader in [reader for reader in self._handles if reader[1] == tenant]:
            self._log.append((_READER, *reader, 0, _UNASKED))
            del self._handles[reader]
        self.seen = frozenset(reader for reader in self.seen if reader[1] != tenant)

    def of(self, file: int) -> tuple[TenantId, ...]:
        """The tenants with a handle on `file`, ascending. O(readers)."""
        return tuple(sorted(tenant for known, tenant in self if known == file))

    def has_handle(self, reader: Reader) -> bool:
        return reader in self._handles

    def __contains__(self, reader: Reader) -> bool:
        return reader in self._handles or reader in self.seen

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._handles.keys() | self.seen)

    def dump(self) -> Record:
        """All of it as one record. O(readers)."""
        rows = [(file, tenant, handles) for (file, tenant), handles in self._handles.items()]
        return (_TABLE, rows, list(self._requests))

    def replay(self, record: Record) -> bool:
        """Do again what a record of the log tells of; False when it is not one of these."""
        match record:
            case [str(tag), rows, requests] if tag == _TABLE:
                for file, tenant, handles in rows:
                    self._handles[file, TenantId(tenant)] = handles
                self._requests.extend(requests)
            case [str(tag), file, tenant, handles, request] if tag == _READER:
                self._set((file, TenantId(tenant)), handles, request)
            case _:
                return False
        self._before = frozenset(self._requests)
        return True
