"""The everyday tools: cp, tar, rsync, dd, mv, find, du, ls, gcc, flock, inotifywait and tail."""

import hashlib
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.support.posix import opened
from tests.support.programs import needs, run, started
from tests.support.tenants import wait_until

MIB = 1 << 20
BYTES = random.Random(1)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def tree(place: Path) -> Path:
    """A directory with one of each."""
    source = place / "tree"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(40):
        (source / "deep" / f"file-{number}").write_bytes(BYTES.randbytes(number * 1000))
    (source / "deep" / "er" / "link").symlink_to("../file-3")
    os.link(source / "deep" / "file-5", source / "hard")
    (source / "program").write_bytes(b"#!/bin/sh\n")
    (source / "program").chmod(0o755)
    with opened(source / "sparse", os.O_WRONLY | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 10 * MIB)
    os.mkfifo(source / "pipe")
    os.setxattr(source / "hard", "user.note", b"kept")
    os.utime(source / "program", ns=(1, 1_500_000_000_123_456_789))
    return source


def picture(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = digest(path) if path.is_file() and not path.is_symlink() else ""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, status.st_nlink, content, target)
    del found["deep"], found["deep/er"]  # directories have links by the number of their directories
    return found


def test_cp_copies_all_there_is(tree: Path) -> None:
    run("cp", "-a", tree, tree.parent / "copy")
    assert picture(tree.parent / "copy") == picture(tree)
    assert os.getxattr(tree.parent / "copy" / "hard", "user.note") == b"kept"
    assert (tree.parent / "copy" / "sparse").stat().st_blocks * 512 < MIB
    run("rm", "-r", tree)


def test_tar_packs_and_unpacks(tree: Path) -> None:
    run("tar", "-C", tree, "--sparse", "--format=posix", "-cf", tree.parent / "all.tar", ".")
    (tree.parent / "unpacked").mkdir()
    run("tar", "-C", tree.parent / "unpacked", "-xpf", tree.parent / "all.tar")
    assert picture(tree.parent / "unpacked") == picture(tree)
    with tarfile.open(tree.parent / "all.tar") as archive:
        assert len(archive.getmembers()) > 45


def test_a_large_file_is_copied_in_and_out(place: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(BYTES.randbytes(48 * MIB))
    expected = digest(tmp_path / "large")
    run("cp", tmp_path / "large", place / "large")
    assert digest(place / "large") == expected
    run("cp", place / "large", place / "again")
    assert digest(place / "again") == expected
    run("dd", f"if={place / 'again'}", f"of={place / 'direct'}", "bs=1M", "iflag=direct", "oflag=direct", "status=none")
    run("cmp", place / "direct", tmp_path / "large")
    shutil.move(place / "direct", tmp_path / "moved")
    assert digest(tmp_path / "moved") == expected


def rsynced(root: Path) -> dict[str, tuple[object, ...]]:
    """A picture of what rsync copies with -a: not the times of what is neither file nor directory."""
    return {name: seen for name, seen in picture(root).items() if name not in ("pipe", "deep/er/link")}


@needs("rsync")
def test_rsync_copies_and_updates(tree: Path) -> None:
    copy = tree.parent / "copy"
    command = ["rsync", "-aHXS", "--delete", "--checksum", f"{tree}/", copy]
    run(*command)
    assert rsynced(copy) == rsynced(tree)
    (tree / "deep" / "file-7").write_bytes(b"another")
    (tree / "deep" / "file-8").unlink()
    run(*command)
    assert rsynced(copy) == rsynced(tree)
    with (copy / "deep" / "file-39").open("r+b") as file:  # only what differs is written, in place
        file.write(b"damaged")
    run("rsync", "-aHX", "--inplace", "--no-whole-file", "--checksum", f"{tree}/", copy)
    assert rsynced(copy)["deep/file-39"] == rsynced(tree)["deep/file-39"]


def test_cp_reflink_and_sparse(tree: Path) -> None:
    for options in (["--reflink=auto"], ["--reflink=never", "--sparse=always"], ["--reflink=never", "--sparse=never"]):
        run("cp", *options, tree / "sparse", tree / "copy")
        run("cmp", tree / "sparse", tree / "copy")
    assert (tree / "copy").stat().st_blocks * 512 > 10 * MIB


def test_mv_within_and_away(tree: Path, tmp_path: Path) -> None:
    expected = picture(tree)
    run("mv", tree, tree.parent / "moved")
    assert picture(tree.parent / "moved") == expected
    run("mv", tree.parent / "moved", tmp_path / "outside")
    run("mv", tmp_path / "outside", tree)
    assert picture(tree) == expected


def test_find_du_and_ls_see_the_same_as_on_tmpfs(tree: Path) -> None:
    for number in range(1500):
        (tree / "deep" / f"empty-{number:04}").touch()
    names = run("find", ".", "-printf", "%p %y %m %n %s\\n", cwd=tree).splitlines()
    assert len(names) == len(set(names)) == 1500 + 48
    assert len(run("find", ".", "-name", "empty-*", "-empty", cwd=tree).splitlines()) == 1500
    listed = run("ls", "-lR", "--time-style=full-iso", tree).splitlines()
    assert sum("empty-" in line for line in listed) == 1500
    sizes = sum(number * 1000 for number in range(40))
    assert int(run("du", "-s", "--apparent-size", "-B1", tree / "deep").split()[0]) >= sizes
    taken = int(run("du", "-s", "-B4096", tree / "deep").split()[0])
    assert taken == sum(-(-number * 1000 // 4096) for number in range(40))
    run("find", ".", "-name", "empty-*", "-delete", cwd=tree)
    assert len(os.listdir(tree / "deep")) == 41
    run("rm", "-r", tree)


@needs("gcc")
def test_gcc_compiles_links_and_the_program_runs(place: Path) -> None:
    (place / "answer.c").write_text("int answer(void) { return 42; }\n")
    (place / "main.c").write_text(
        '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }\n'
    )
    run("gcc", "-O1", "-g", "-shared", "-fPIC", "-o", "libanswer.so", "answer.c", cwd=place)
    run("gcc", "-O1", "-g", "-o", "main", "main.c", "-L.", "-lanswer", "-Wl,-rpath,$ORIGIN", cwd=place)
    assert run(place / "main") == "42\n"
    run("strip", "main", cwd=place)
    assert run(place / "main") == "42\n"


@needs("flock")
def test_flock_lets_one_in_at_a_time(place: Path) -> None:
    script = "for i in $(seq 15); do flock lock sh -c 'n=$(cat count); echo $((n + 1)) > count'; done"
    (place / "count").write_text("0")
    loop = f"{{ {script}; }}"
    run("/bin/bash", "-c", f"{loop} & {loop} & {loop} & wait", cwd=place)
    assert (place / "count").read_text() == "45\n"
    run("/bin/bash", "-c", "exec 9>lock; flock -s 9; ! flock -n -x lock true && flock -n -s lock true", cwd=place)


@needs("inotifywait")
def test_inotifywait_sees_what_happens(place: Path) -> None:
    seen = place.with_name(f"{place.name}-seen")  # not in the directory that is watched
    command = f"exec inotifywait -m -r --format '%e %f' . > {seen} 2>&1"
    with started("/bin/sh", "-c", command, cwd=place):
        wait_until(lambda: seen.exists() and "Watches established" in seen.read_text(), "it watches")
        (place / "a").write_text("x")
        os.rename(place / "a", place / "b")
        os.unlink(place / "b")
        wait_until(lambda: "DELETE b" in seen.read_text(), "the last event")
    events = seen.read_text().splitlines()
    seen.unlink()
    for event in ("CREATE a", "MODIFY a", "CLOSE_WRITE,CLOSE a", "MOVED_FROM a", "MOVED_TO b", "DELETE b"):
        assert event in events


@pytest.mark.parametrize("how", ["inotify", "polling"])
def test_tail_follows_a_file(place: Path, tmp_path: Path, how: str) -> None:
    (place / "log").write_text("")
    seen = tmp_path / "seen"
    options = "-s 0.1" if how == "inotify" else "-s 0.1 ---disable-inotify"
    with started("/bin/sh", "-c", f"exec tail -n +1 -F {options} log > {seen}", cwd=place):
        with (place / "log").open("a") as log:
            for number in range(20):
                log.write(f"{number}\n")
                log.flush()
                wait_until(lambda last=number: seen.exists() and f"{last}\n" in seen.read_text(), f"line {number}")
        os.rename(place / "log", place / "log.1")
        (place / "log").write_text("after the rotation\n")
        wait_until(lambda: "after the rotation" in seen.read_text(), "the new file is followed")
    assert seen.read_text() == "".join(f"{number}\n" for number in range(20)) + "after the rotation\n"
