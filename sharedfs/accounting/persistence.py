"""The storage of the books in a directory of a tmpfs: it outlives the process, not the host, so nothing is ever synced.

    books/entries, short, long   mapped memory (`ledger/storage.py`), backed as it is needed
    books/classes                what happened to classes: a line of JSON each
    books/tenants                what happened to tenants and readers

A mapped store is in the tmpfs when the instruction is done. A line may be cut where we were killed while it was
written: then nothing that rests on it was stored yet, and it is cut off.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from errno import EFBIG, ENOMEM
from itertools import chain

from sharedfs.common.errors import HostFault
from sharedfs.ledger.storage import REGION_BYTES, LedgerStorage, Record
from sharedfs.linux import syscalls
from sharedfs.linux.syscalls import STAT_BLOCK_BYTES
from sharedfs.pool.schema import StateFile

_FORMAT = ["sharedfs books", 1]
_LEAST_BACKING_BYTES = 64 << 10
_OVERGROWN_BYTES = 64 << 10
_OVERGROWN_TIMES = 4


# Regions are files of 64 GiB, and addresses for them, which take no memory until they are used.
_ADVICE = {EFBIG: ": `ulimit -f unlimited` first", ENOMEM: ": `ulimit -v unlimited` first"}


class FileRegion:
    """A sparse file, mapped. Backed from its start on, so what it holds says how far."""

    def __init__(self, directory_fd: int, name: str) -> None:
        self._name = name
        self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        try:
            os.ftruncate(self._fd, REGION_BYTES)
            self.view = memoryview(mmap.mmap(self._fd, REGION_BYTES))
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            raise HostFault(f"the state of the books: cannot map {name}: {error.strerror}{advice}") from error
        self.backed_bytes = os.fstat(self._fd).st_blocks * STAT_BLOCK_BYTES

    def back(self, size_bytes: int) -> None:
        """A store to memory that the tmpfs cannot give would be a SIGBUS: it is asked for before."""
        if size_bytes <= self.backed_bytes:
            return
        more = max(size_bytes - self.backed_bytes, _LEAST_BACKING_BYTES, self.backed_bytes // 8)
        try:
            os.posix_fallocate(self._fd, self.backed_bytes, -(-more // mmap.PAGESIZE) * mmap.PAGESIZE)
        except OSError as error:
            raise HostFault(f"the state of the books: no memory for {self._name}: {error.strerror}") from error
        self.backed_bytes = os.fstat(self._fd).st_blocks * STAT_BLOCK_BYTES

    def close(self) -> None:
        os.close(self._fd)


class FileLog:
    """Lines of JSON; the first one names the format.

    The draft of a new one stays open: a rewrite that found no descriptor left would end the daemon in the middle of a
    change.
    """

    def __init__(self, directory_fd: int, name: str) -> None:
        self._directory_fd = directory_fd
        self._name = name
        self._fd, self._draft_fd = self._open(name, os.O_CREAT), self._open(self._draft, os.O_CREAT | os.O_TRUNC)
        found = self._read()
        kept = found[: found.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in kept.splitlines()]
        self._records: list[Record] = lines[1:]
        if lines and lines[0] != _FORMAT:
            raise HostFault(f"the state of the books: {name} begins with {lines[0]}, this version reads {_FORMAT}")
        self._bytes = self._rewritten_bytes = len(kept)
        self._later: list[bytes] | None = None  # lines appended since a rewriting began
        self.overgrown = False
        os.ftruncate(self._fd, len(kept))
        if not lines:
            self.append(_FORMAT)

    def records(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def append(self, record: Record) -> None:
        line = _line(record)
        self._write(self._fd, line)
        self._bytes += len(line)
        if self._later is not None:
            self._later.append(line)
        self.overgrown = self._bytes > _OVERGROWN_BYTES + _OVERGROWN_TIMES * self._rewritten_bytes

    def rewriting(self, records: Iterable[Record]) -> Iterator[None]:
        later: list[bytes] = []
        self._later = later
        written = 0
        os.ftruncate(self._draft_fd, 0)
        for record in chain([_FORMAT], records):
            line = _line(record)
            self._write(self._draft_fd, line)
            written += len(line)
            yield
            if self._later is not later:
                return  # another one has begun
        self._write(self._draft_fd, b"".join(later))
        directory, draft, name = self._directory_fd, os.fsencode(self._draft), os.fsencode(self._name)
        syscalls.rename(directory, draft, directory, name, syscalls.RENAME_EXCHANGE)
        self._fd, self._draft_fd = self._draft_fd, self._fd
        os.ftruncate(self._draft_fd, 0)
        self._rewritten_bytes = written
        self._bytes = written + sum(map(len, later))
        self._later = None
        self.overgrown = False

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._draft_fd)

    @property
    def _draft(self) -> str:
        return f"{self._name}.new"

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o600, dir_fd=self._directory_fd)

    def _read(self) -> bytes:
        parts = []
        while part := os.read(self._fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _write(self, fd: int, text: bytes) -> None:
        written = 0
        with suppress(OSError):
            while written < len(text):
                written += os.write(fd, text[written:])
        if written < len(text):
            raise HostFault(f"the state of the books: no memory for {self._name}")


class BooksState:
    """All of it, opened or made. `state_fd`: a directory on a tmpfs that nobody else uses."""

    def __init__(self, state_fd: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(StateFile.BOOKS, 0o700, dir_fd=state_fd)
        self._fd = os.open(StateFile.BOOKS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=state_fd)
        entries, short, long = (FileRegion(self._fd, name) for name in ("entries", "short", "long"))
        classes, self.tenants = (FileLog(self._fd, name) for name in ("classes", "tenants"))
        self._parts = (entries, short, long, classes, self.tenants)
        self.ledger = LedgerStorage(entries, short, long, classes)

    def close(self) -> None:
        """Give the descriptors back. Mappings go with the last of those who use them."""
        for part in self._parts:
            part.close()
        os.close(self._fd)


def _line(record: Record) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
