"""Processes that hang in execve(2), so that whoever looks at them waits: `python hung.py DIRECTORY COUNT [FILE]`.

A filesystem of this script's own never answers FLUSH. A process that has a close-on-exec file of it open and executes a
program waits for that answer, and holds a lock of its own for which /proc/PID/maps and others wait. Any user can do
this in a user namespace. This script is root's and does without: a mount namespace of its own would hold on to all
mounts of the host, and no pool that is mounted just then could end before this script does.

Prints the process ids in a line, and ends, as they do, when its standard input ends.

With FILE each maps it and reads all of it before it hangs, and does not hang before a line is read.
"""

import ctypes
import mmap
import os
import signal
import stat
import struct
import sys
import traceback

_LOOKUP, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 3, 14, 25, 26
_SILENT = (2, 42, 36, _FLUSH)  # FORGET, BATCH_FORGET, INTERRUPT have no answer
_ENOSYS = 38
_MS_NOSUID_NODEV, _MNT_DETACH = 2 | 4, 2
_IN_HEADER, _OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")

_libc = ctypes.CDLL(None, use_errno=True)


def _attributes(inode: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o666
    return _ATTR.pack(inode, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _serve(device: int, flushed: int) -> None:
    while True:
        request = os.read(device, 1 << 20)
        _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(request)
        if opcode == _FLUSH:
            os.write(flushed, b"x")
        if opcode in _SILENT:
            continue
        error, body = 0, b""
        if opcode == _INIT:
            body = struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
        elif opcode == _LOOKUP:
            body = struct.pack("<QQQQII", 2, 0, 1000, 1000, 0, 0) + _attributes(2)
        elif opcode == _GETATTR:
            body = struct.pack("<QII", 1000, 0, 0) + _attributes(node)
        elif opcode == _OPEN:
            body = struct.pack("<QII", 1, 0, 0)
        else:
            error = -_ENOSYS
        os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), error, unique) + body)


def _hang(root: int, device: int, file: str | None, started: int, go: int) -> None:
    fd = os.open("f", os.O_RDWR, dir_fd=root)
    os.close(device)
    if file is not None:
        mapped = os.open(file, os.O_RDWR)
        mapping = mmap.mmap(mapped, 0)
        os.close(mapped)
        sum(mapping[:: mmap.PAGESIZE])
        os.write(started, b"x")
        os.read(go, 1)
    os.set_inheritable(fd, False)
    os.execv("/bin/sleep", ["sleep", "1000"])


def _child(run: object, *arguments: object) -> int:
    process = os.fork()
    if process == 0:
        try:
            run(*arguments)  # type: ignore[operator]
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


def main(directory: str, count: int, path: str | None = None) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"hung", directory.encode(), b"fuse", _MS_NOSUID_NODEV, options):
        raise OSError(ctypes.get_errno(), "mount")
    root = os.open(directory, os.O_PATH)
    if _libc.umount2(directory.encode(), _MNT_DETACH):  # it lives for as long as something in it is open
        raise OSError(ctypes.get_errno(), "umount2")
    told, flushed = os.pipe()
    server = _child(_serve, device, flushed)
    has_started, started = os.pipe()
    goes, go = os.pipe()
    hung = [_child(_hang, root, device, path, started, goes) for _ in range(count)]
    if path is not None:
        for _ in hung:
            os.read(has_started, 1)
        print("mapped", flush=True)
        sys.stdin.readline()
        os.write(go, bytes(count))
    for _ in hung:
        os.read(told, 1)  # one more waits for its answer
    print(*hung, flush=True)
    sys.stdin.read()
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    for process in hung:
        os.kill(process, signal.SIGKILL)
    os.close(device)  # the last one: the connection ends, and with it the waits
    for process in hung:
        os.waitpid(process, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
