"""The filesystems that are compared: plain tmpfs, libfuse's C example passthrough_ll over tmpfs, pyfuse3's example
tmpfs, and pools.

All are made and removed here. Needs root; passthrough_ll needs gcc and Debian's libfuse3-dev with its examples. The
example of pyfuse3 is in its source package only, which pip fetches once, in the version that is installed. What cannot
be had is left out.
"""

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
C_EXAMPLE = "passthrough_ll"
PYTHON_EXAMPLE = "pyfuse3's tmpfs"
_MOUNT_SECONDS = 10.0
# A pool whose books are told nothing of reads and writes: what accounting costs is the difference.
_WITHOUT_LEDGER = """
import sys
from sharedfs.accounting.pages import Pages
from sharedfs.mount import cli
Pages.touch = Pages.charge = lambda *_: None
cli.main()
"""


@contextmanager
def tmpfs(place: Path, size: str = "1G") -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "sharedfs-bench", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def sharedfs(place: Path, *options: str, ledger: bool = True) -> Iterator[Path]:
    place.mkdir()
    command = [sys.executable, "-m", "sharedfs"]
    arguments = ["mount", str(place), "--size", "1G", *options]
    if ledger:
        subprocess.run([*command, *arguments], check=True)
    else:
        server = subprocess.Popen([sys.executable, "-c", _WITHOUT_LEDGER, *arguments, "--foreground"])
        wait_for_mount(place, server)
    try:
        yield place
    finally:
        subprocess.run([*command, "umount", str(place)], check=True)
        if not ledger:
            server.wait()


def wait_for_mount(place: Path, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _MOUNT_SECONDS
    while not os.path.ismount(place):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{server.args!r} does not serve {place}")
        time.sleep(0.01)


def compiled_example(base: Path) -> Path | None:
    """passthrough_ll, built from the source that the distribution ships; None where it does not."""
    source = base / f"{C_EXAMPLE}.c"
    packed, plain = EXAMPLES / f"{C_EXAMPLE}.c.gz", EXAMPLES / f"{C_EXAMPLE}.c"
    if shutil.which("gcc") is None or not (packed.exists() or plain.exists()):
        return None
    source.write_bytes(gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes())
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    helpers = EXAMPLES / "passthrough_helpers.h"
    if helpers.exists():
        shutil.copy(helpers, base)
    program = base / C_EXAMPLE
    command = ["gcc", "-O2", "-w", "-I", str(EXAMPLES), str(source), "-o", str(program), *flags.stdout.split()]
    subprocess.run(command, check=True)
    return program


@contextmanager
def passthrough_ll(program: Path, place: Path, source: Path) -> Iterator[Path]:
    place.mkdir()
    server = subprocess.Popen([program, "-f", "-o", f"cache=never,source={source}", str(place)])
    try:
        wait_for_mount(place, server)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=False)
        server.wait()


def python_example() -> Path | None:
    """examples/tmpfs.py of pyfuse3, kept in the user's cache; None where the package cannot be had."""
    version = metadata.version("pyfuse3")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sharedfs", f"pyfuse3-{version}")
    program = cache / "tmpfs.py"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=pyfuse3", "-d", str(cache)]
        if subprocess.run([*command, f"pyfuse3=={version}"], check=False).returncode != 0:
            return None
        (archive,) = cache.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            member = packed.extractfile(f"pyfuse3-{version}/examples/tmpfs.py")
            assert member is not None
            program.write_bytes(member.read())
    return program


@contextmanager
def pyfuse3_tmpfs(program: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    server = subprocess.Popen([sys.executable, program, place], stderr=subprocess.DEVNULL)
    try:
        wait_for_mount(place, server)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=False)
        server.wait()


@contextmanager
def filesystems(pools: Mapping[str, Sequence[str]], *, without_ledger: str | None = None) -> Iterator[dict[str, Path]]:
    """tmpfs, the examples that can be had, and pools by name with their mount options."""
    with ExitStack() as mounts:
        base = Path(mounts.enter_context(tempfile.TemporaryDirectory(prefix="sharedfs-bench-")))
        places = {"tmpfs": mounts.enter_context(tmpfs(base / "tmpfs"))}
        program = compiled_example(base)
        if program is not None:
            source = mounts.enter_context(tmpfs(base / "source"))
            places[C_EXAMPLE] = mounts.enter_context(passthrough_ll(program, base / "c", source))
        script = python_example()
        if script is not None:
            places[PYTHON_EXAMPLE] = mounts.enter_context(pyfuse3_tmpfs(script, base / "python"))
        for number, (name, options) in enumerate(pools.items()):
            places[name] = mounts.enter_context(sharedfs(base / f"pool-{number}", *options))
        if without_ledger is not None:
            places[without_ledger] = mounts.enter_context(sharedfs(base / "without", ledger=False))
        yield places
