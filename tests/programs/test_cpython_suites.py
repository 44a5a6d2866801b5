"""CPython's own tests of files, with their temporary directory on the mount: what passes on tmpfs passes there."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.mount import MountedPool
from tests.support.programs import finish

pytestmark = pytest.mark.skipif(
    find_spec("test") is None or find_spec("test.test_os") is None, reason="this Python came without its tests"
)

SUITES = "test_os test_posix test_shutil test_mmap test_mailbox test_fcntl test_tempfile test_pathlib test_largefile"
SUITES += " test_fileio test_glob test_dbm test_tarfile test_zipfile"
# Left out for time: compression, which is no file's business, and what is there several times over.
IGNORED = ["*Gzip*", "*Bz2*", "*Lzma*", "*Bzip2*", "*Deflate*", "*DecryptionTests*", "*TestInfo*"]
IGNORED += ["*NoneInfoExtractTests_Data*", "*NoneInfoExtractTests_Tar*", "*NoneInfoExtractTests_Fully*"]
IGNORED += ["*test_glob_many_open_files*", "*Bytes?walkTests*", "*BytesWalkTests*"]


def passed(directory: Path, report: Path) -> set[str]:
    """The names of the tests that pass with `directory` for temporary files."""
    directory.mkdir()
    ignored = [argument for pattern in IGNORED for argument in ("-i", pattern)]
    command = [sys.executable, "-m", "test", "--timeout=100", f"--tempdir={directory}", f"--junit-xml={report}"]
    _, output = finish(
        *command, *ignored, *SUITES.split(), cwd=directory, environment={"TMPDIR": str(directory)}, seconds=150
    )
    assert report.exists(), output[-3000:]
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        case.get("name", "")
        for case in cases
        if case.get("result") == "completed" and case.find("failure") is None and case.find("error") is None
    }


@pytest.mark.timeout(330)
def test_what_passes_on_tmpfs_passes_on_the_pool(plain_tmpfs: Path, shared_pool: MountedPool, tmp_path: Path) -> None:
    on_tmpfs = passed(plain_tmpfs / "cpython", tmp_path / "tmpfs.xml")
    on_the_pool = passed(shared_pool.path / "cpython", tmp_path / "pool.xml")
    assert len(on_tmpfs) > 1000
    assert on_tmpfs - on_the_pool == set()
    assert os.listdir(shared_pool.path / "cpython") == os.listdir(plain_tmpfs / "cpython")
    shared_pool.check_conservation()
