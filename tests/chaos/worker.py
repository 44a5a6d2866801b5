"""What a tenant of the chaos job runs: random operations in a directory of its own, each checked against a model.

    worker.py DIRECTORY SHARED-FILE SLICE SEED OPERATIONS

Ends after so many operations, or when its standard input does, and says in JSON what there is then. Any error, and any
byte that is not the model's, ends it at once with a traceback.
"""

import hashlib
import json
import mmap
import os
import random
import select
import sys
import time
from collections.abc import Callable
from errno import EINVAL, EIO

MOST_FILES = 24
MOST_BYTES = 256 << 10
SLICE_BYTES = 64 << 10
XATTR = "user.chaos"
REFUSED = EINVAL if int(os.uname().release.split(".")[0]) < 7 else EIO


class File:
    """One inode as the model has it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.links = 1
        self.attribute = b""


class Worker:
    def __init__(self, directory: str, shared: str, own_slice: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        os.chdir(directory)
        self.files: dict[str, File] = {}
        self.nameless: list[tuple[int, File]] = []
        self.shared = os.open(shared, os.O_RDWR)
        self.slice_start = own_slice * SLICE_BYTES
        self.slice = bytearray(SLICE_BYTES)
        self.names_made = 0
        self.operations = 0
        self.longest_stall = 0.0
        self.stalled_in = ""
        self.acts: list[Callable[[], None]] = [
            *(act for act in (self.write, self.read, self.map) for _ in range(4)),
            *(act for act in (self.create, self.rename, self.unlink, self.resize, self.send) for _ in range(2)),
            self.link,
            self.exchange_attribute,
            self.symlink,
            self.make_directory,
            self.list,
            self.copy,
            self.punch,
            self.unlink_open,
            self.close_nameless,
            self.tmpfile,
            self.use_shared,
        ]

    # -- what is done ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        act = self.random.choice(self.acts)
        if not self.files and act not in (self.make_directory, self.list, self.use_shared):
            act = self.create
        started = time.monotonic()
        act()
        took = time.monotonic() - started
        if took > self.longest_stall:
            self.longest_stall, self.stalled_in = took, act.__name__
        self.operations += 1

    def new_name(self) -> str:
        self.names_made += 1
        return f"f{self.names_made}"

    def some(self) -> tuple[str, File]:
        name = self.random.choice(sorted(self.files))
        return name, self.files[name]

    def expect(self, found: object, expected: object, what: str) -> None:
        if found != expected:
            where = ""
            if isinstance(found, bytes) and isinstance(expected, bytearray):
                other = [at for at, (one, two) in enumerate(zip(found, expected, strict=False)) if one != two]
                where = f", {len(other)} bytes differ from {other[:1]} to {other[-1:]} of {len(found)}, {len(expected)}"
            raise AssertionError(f"{what}{where}: {str(found)[:200]} is not {str(expected)[:200]}")

    def create(self) -> None:
        if len(self.files) >= MOST_FILES:
            return self.unlink()
        name = self.new_name()
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file = self.files[name] = File()
        self.write_to(fd, file)
        os.close(fd)
        return None

    def write_to(self, fd: int, file: File) -> None:
        data = self.random.randbytes(self.random.choice((1, 100, 5000, 70_000)))
        offset = self.random.randrange(MOST_BYTES - len(data))
        self.expect(os.pwrite(fd, data, offset), len(data), "bytes written")
        file.content.extend(bytes(max(0, offset + len(data) - len(file.content))))
        file.content[offset : offset + len(data)] = data

    def write(self) -> None:
        name, file = self.some()
        fd = os.open(name, os.O_RDWR)
        for _ in range(3):
            self.write_to(fd, file)
        os.close(fd)

    def read(self) -> None:
        name, file = self.some()
        fd = os.open(name, os.O_RDONLY)
        offset = self.random.randrange(MOST_BYTES)
        self.expect(os.pread(fd, 50_000, offset), file.content[offset : offset + 50_000], f"{name} at {offset}")
        self.expect(os.fstat(fd).st_size, len(file.content), f"size of {name}")
        os.close(fd)

    def send(self) -> None:
        """Refused while a mapping or a handle to write with may be left of somebody's, as of our `unlink_open`."""
        name, file = self.some()
        fd = os.open(name, os.O_RDONLY)
        sink = os.memfd_create("sink")
        offset = self.random.randrange(MOST_BYTES)
        try:
            sent = os.sendfile(sink, fd, offset, 50_000)
        except OSError as error:
            if error.errno != REFUSED:
                raise
        else:
            self.expect(sent > 0, offset < len(file.content), f"bytes of {name} sent from {offset}")
            self.expect(os.pread(sink, sent, 0), file.content[offset : offset + sent], f"{name} sent from {offset}")
        os.close(sink)
        os.close(fd)

    def map(self) -> None:
        name, file = self.some()
        if not file.content:
            return
        fd = os.open(name, os.O_RDWR)
        with mmap.mmap(fd, len(file.content)) as mapping:
            os.close(fd)
            offset = self.random.randrange(len(file.content))
            self.expect(mapping[offset : offset + 5000], file.content[offset : offset + 5000], f"{name} mapped")
            mapping[offset] = file.content[offset] = self.random.randrange(256)

    def rename(self) -> None:
        name, file = self.some()
        target = self.random.choice([self.new_name(), self.some()[0]])
        replaced = self.files.get(target)
        os.rename(name, target)
        if replaced is file:
            return  # two names of one file, or one name: nothing is done
        if replaced is not None:
            replaced.links -= 1
        self.files[target] = self.files.pop(name)

    def unlink(self) -> None:
        name, file = self.some()
        os.unlink(name)
        del self.files[name]
        file.links -= 1

    def unlink_open(self) -> None:
        name, file = self.some()
        fd = os.open(name, os.O_RDWR)
        os.unlink(name)
        del self.files[name]
        file.links -= 1
        self.nameless.append((fd, file))
        if len(self.nameless) > 5:
            self.close_nameless()

    def tmpfile(self) -> None:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
        file = File()
        file.links = 0
        self.write_to(fd, file)
        if self.random.random() < 0.5:
            self.nameless.append((fd, file))
            return
        name = self.new_name()
        directory = os.open(".", os.O_RDONLY)
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
        os.close(directory)
        os.close(fd)
        self.files[name] = file
        file.links = 1

    def close_nameless(self) -> None:
        if not self.nameless:
            return
        fd, file = self.nameless.pop(self.random.randrange(len(self.nameless)))
        self.expect(os.pread(fd, MOST_BYTES, 0), file.content, "a file without a name")
        self.expect(os.fstat(fd).st_nlink, file.links, "its links")
        os.close(fd)

    def link(self) -> None:
        name, file = self.some()
        other = self.new_name()
        os.link(name, other)
        self.files[other] = file
        file.links += 1
        self.expect(os.stat(other).st_nlink, file.links, f"links of {name}")

    def exchange_attribute(self) -> None:
        name, file = self.some()
        if file.attribute:
            self.expect(os.getxattr(name, XATTR), file.attribute, "attribute")
            os.removexattr(name, XATTR)
            file.attribute = b""
        else:
            file.attribute = self.random.randbytes(20)
            os.setxattr(name, XATTR, file.attribute, os.XATTR_CREATE)

    def symlink(self) -> None:
        name, target = self.new_name(), self.random.choice(("short", "long" * 500))
        os.symlink(target, name)
        self.expect(os.readlink(name), target, "target")
        os.unlink(name)

    def make_directory(self) -> None:
        name = self.new_name()
        os.mkdir(name)
        open(f"{name}/f", "wb").close()
        os.rename(f"{name}/f", f"{name}/g")
        self.expect(os.listdir(name), ["g"], "names in a directory")
        os.unlink(f"{name}/g")
        os.rmdir(name)

    def list(self) -> None:
        self.expect(sorted(os.listdir(".")), sorted(self.files), "names")

    def resize(self) -> None:
        name, file = self.some()
        size = self.random.randrange(MOST_BYTES)
        os.truncate(name, size)
        del file.content[size:]
        file.content.extend(bytes(size - len(file.content)))

    def copy(self) -> None:
        source_name, source = self.some()
        target_name, target = self.some()
        if source is target or not source.content:
            return
        with open(source_name, "rb") as reader, open(target_name, "r+b") as writer:
            length = min(len(source.content), 30_000)
            copied = os.copy_file_range(reader.fileno(), writer.fileno(), length, 0, 0)
        target.content[:copied] = source.content[:copied]

    def punch(self) -> None:
        """A hole, by a truncation and back: the standard library has no other way."""
        name, file = self.some()
        with open(name, "r+b") as opened:
            half = len(file.content) // 2
            opened.truncate(half)
            opened.truncate(len(file.content))
        file.content[half:] = bytes(len(file.content) - half)

    def use_shared(self) -> None:
        data = self.random.randbytes(3000)
        offset = self.random.randrange(SLICE_BYTES - len(data))
        os.pwrite(self.shared, data, self.slice_start + offset)
        self.slice[offset : offset + len(data)] = data
        self.expect(os.pread(self.shared, SLICE_BYTES, self.slice_start), self.slice, "our part of the shared file")
        size = os.fstat(self.shared).st_size
        os.pread(self.shared, 10_000, self.random.randrange(size))

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, object]:
        while self.nameless:
            self.close_nameless()
        os.close(self.shared)
        return {
            "operations": self.operations,
            "longest_stall": self.longest_stall,
            "stalled_in": self.stalled_in,
            "files": {
                name: [hashlib.sha256(file.content).hexdigest(), file.links, file.attribute.hex()]
                for name, file in self.files.items()
            },
        }


def main() -> None:
    directory, shared, own_slice, seed, operations = sys.argv[1:]
    worker = Worker(directory, shared, int(own_slice), int(seed))
    while worker.operations < int(operations) and not select.select([sys.stdin], [], [], 0)[0]:
        worker.step()
    print(json.dumps(worker.finish()), flush=True)


if __name__ == "__main__":
    main()
