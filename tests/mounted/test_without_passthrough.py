"""A kernel, or a mount option, without passthrough."""

import mmap
import os
import subprocess
from errno import ENODEV
from pathlib import Path

from tests.support.deaths import assert_nothing_left
from tests.support.mount import mounted_pool, sharedfs
from tests.support.posix import fails, opened

PAGE = 4096
NEW = os.O_RDWR | os.O_CREAT


def test_without_passthrough_all_but_shared_mappings_works(
    run_dir: Path, unique_name: str, mount_options: list[str]
) -> None:
    with mounted_pool(run_dir / "mnt", unique_name, *mount_options[2:], "--no-passthrough") as pool:
        with opened(pool.path / "f", NEW) as fd:
            os.write(fd, b"x" * 3 * PAGE)
            assert os.pread(fd, 3, PAGE) == b"xxx"
            with fails(ENODEV):
                mmap.mmap(fd, PAGE)
            with mmap.mmap(fd, 3 * PAGE, mmap.MAP_PRIVATE) as private:
                assert private[2 * PAGE] == ord("x")
                private[0] = 7
                assert os.pread(fd, 1, 0) == b"x"
            reader, writer = os.pipe()
            os.pwrite(fd, b"new", 0)
            assert os.sendfile(writer, fd, 0, 5) == 5
            assert os.read(reader, 5) == b"newxx"
            os.close(reader)
            os.close(writer)
        script = pool.path / "script"
        script.write_bytes(b"#!/bin/sh\nexit 7\n")
        script.chmod(0o755)
        assert subprocess.run([script], check=False).returncode == 7
        status = pool.status()
        assert status.data_path == "exact"
        assert "ENODEV" in status.mmap
        assert "ENODEV" in sharedfs("status").stdout
        pool.check_conservation()
    assert_nothing_left(run_dir / "mnt", unique_name)
