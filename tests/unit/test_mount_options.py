"""Mount options as people, fstab and mount(8) write them."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedfs.common.errors import CallerMistake
from sharedfs.linux.mount_flags import (
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)
from sharedfs.linux.mountinfo import parse_mountinfo
from sharedfs.mount.mount_helper import words_kept_by_mount
from sharedfs.pool.options import (
    DEFAULT_FLAGS,
    Asked,
    PoolOptions,
    UnclaimedRule,
    check_changes,
    flag_words,
    flags_of,
    parse,
    setting_words,
    shown_flags,
    written,
)

MEMORY = 8 << 30


def options(text: str) -> PoolOptions:
    return parse(text, MEMORY).options("/mnt", "pool", MEMORY)


def test_nothing_asked_is_half_of_the_memory_without_set_id_programs_and_devices() -> None:
    assert options("") == options("defaults") == PoolOptions("/mnt", "pool", MEMORY // 2)
    assert options("").flags == MS_NOSUID | MS_NODEV


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("size=2g", "size_bytes", 2 << 30),
        ("size=50%", "size_bytes", 4 << 30),
        ("size=4096", "size_bytes", 4096),
        ("size=1m,size=2M", "size_bytes", 2 << 20),
        ("reserve=64k", "reserve_bytes", 64 << 10),
        ("idle=1.5", "idle_seconds", 1.5),
        ("cgroup_parent=a/b", "cgroup_parent", "a/b"),
        ("cgroup_parent=", "cgroup_parent", ""),
        ('cgroup_parent="a,b=c"', "cgroup_parent", "a,b=c"),
        ("mode=0755", "root_mode", 0o755),
        ("mode=1777", "root_mode", 0o1777),
        ("uid=1000", "root_uid", 1000),
        ("gid=100", "root_gid", 100),
        ("nr_inodes=1k", "inodes", 1024),
        ("nr_inodes=0", "inodes", 0),
        ("no_passthrough", "passthrough", False),
        ("no_passthrough,passthrough", "passthrough", True),
    ],
)
def test_settings(text: str, field: str, value: object) -> None:
    assert getattr(options(text), field) == value


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("ro", DEFAULT_FLAGS | MS_RDONLY),
        ("ro,rw", DEFAULT_FLAGS),
        ("rw,ro", DEFAULT_FLAGS | MS_RDONLY),
        ("suid,dev", 0),
        ("suid,nosuid,dev", MS_NOSUID),
        ("noexec", DEFAULT_FLAGS | MS_NOEXEC),
        ("noexec,exec", DEFAULT_FLAGS),
        ("noatime,strictatime", DEFAULT_FLAGS | MS_STRICTATIME),
        ("strictatime,noatime,nodiratime", DEFAULT_FLAGS | MS_NOATIME | MS_NODIRATIME),
        ("relatime", DEFAULT_FLAGS | MS_RELATIME),
        ("noatime,atime", DEFAULT_FLAGS),
        ("sync,dirsync", DEFAULT_FLAGS | MS_SYNCHRONOUS | MS_DIRSYNC),
        ("sync,async", DEFAULT_FLAGS),
    ],
)
def test_flags_of_which_the_last_wins(text: str, flags: int) -> None:
    assert options(text).flags == flags


@pytest.mark.parametrize(
    "text",
    [
        "rw,noauto,nofail,_netdev,user,users,user=root,owner,group,comment=a b",
        "x-systemd.automount,x-gvfs-name=shared,X-mount.mkdir=755,defaults",
        "allow_other,default_permissions,silent,loud,mand,iversion",
        ",,rw,",
    ],
)
def test_words_for_others_mean_nothing(text: str) -> None:
    assert options(text) == options("")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("blue", "blue"),
        ("size=1m,colour=blue", "colour"),
        ("ro=1", "ro"),
        ("SIZE=1m", "SIZE"),
        ("passthrough=1", "passthrough"),
        ("defaults=1", "defaults"),
        ("allow_root", "allow_root"),
        ("user_id=0", "user_id"),
    ],
)
def test_an_unknown_word_is_named_beside_those_that_are_known(text: str, named: str) -> None:
    with pytest.raises(CallerMistake, match=f"^{named} is no mount option .*size=.*nr_inodes=.*noatime") as caught:
        parse(text, MEMORY)
    assert "\n" not in str(caught.value)
    assert parse(text + ",idle=3", MEMORY, sloppy=True).settings["idle_seconds"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "size",
        "size=",
        "size=1.5g",
        "size=x%",
        "size=-1",
        "reserve=10%",
        "idle=0",
        "idle=inf",
        "idle=soon",
        "mode=9",
        "mode=77777",
        "mode=rwx",
        "uid=root",
        "uid=-1",
        "gid=4294967295",
        "nr_inodes=many",
        "cgroup_parent=../x",
    ],
)
def test_a_value_that_is_none_is_refused_with_its_option(text: str) -> None:
    with pytest.raises(CallerMistake, match=f"^{text.partition('=')[0]}="):
        parse(text, MEMORY, sloppy=True)


def test_a_quote_without_its_second_one() -> None:
    with pytest.raises(CallerMistake, match="double quote"):
        parse('size=1m,cgroup_parent="a', MEMORY)


@given(
    st.builds(
        PoolOptions,
        mountpoint=st.just("/mnt"),
        name=st.just("pool"),
        size_bytes=st.integers(0, 1 << 50),
        cgroup_parent=st.sampled_from(["", "a", "a/b", "a,b", "a=b", "with space"]),
        reserve_bytes=st.integers(0, 1 << 50),
        idle_seconds=st.integers(1, 10**6).map(lambda thousandths: thousandths / 1000),
        passthrough=st.booleans(),
        unclaimed=st.sampled_from(UnclaimedRule),
        grace_seconds=st.integers(1, 10**6).map(lambda thousandths: thousandths / 1000),
        spill_directory=st.sampled_from(["", "/var/a", "/a, b/c"]),
        root_mode=st.integers(0, 0o7777),
        root_uid=st.integers(0, 0xFFFFFFFE),
        root_gid=st.integers(0, 0xFFFFFFFE),
        inodes=st.none() | st.integers(0, 1 << 32),
        flags=st.sets(
            st.sampled_from([MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_DIRSYNC, MS_NODIRATIME])
        ).map(sum)
        | st.sampled_from([MS_NOATIME, MS_RELATIME, MS_STRICTATIME]),
    )
)
def test_what_is_written_is_read_back(pool: PoolOptions) -> None:
    assert options(written(pool)) == pool


def test_a_mounts_flags_as_the_kernel_shows_them() -> None:
    (mount,) = parse_mountinfo(b"1 2 0:3 / /m ro,nosuid,noexec,noatime - fuse.sharedfs n ro,sync,user_id=0\n")
    assert flags_of(mount) == MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NOATIME | MS_SYNCHRONOUS
    assert shown_flags(mount) == "ro,nosuid,noexec,noatime,sync"
    assert parse(",".join(flag_words(flags_of(mount))), MEMORY).flags_on(DEFAULT_FLAGS) == flags_of(mount)


def test_a_remount_repeats_what_the_kernel_shows() -> None:
    asked = parse("rw,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576", MEMORY)
    assert asked == Asked(cleared=asked.cleared, set=MS_RELATIME, remount=True)
    with pytest.raises(CallerMistake, match="blue"):
        parse("remount,user_id=0,blue", MEMORY)


def test_a_remount_changes_some_settings_and_names_those_it_cannot() -> None:
    now = options("mode=750,reserve=1m")
    check_changes(now, parse("remount,size=3g,idle=5,nr_inodes=9,mode=750,reserve=1m,passthrough", MEMORY))
    for word in ("mode=700", "reserve=2m", "uid=1", "gid=1", "cgroup_parent=other", "huge=always", "no_passthrough"):
        named = word.removeprefix("no_").partition("=")[0]
        with pytest.raises(CallerMistake, match=f"^{named} cannot change"):
            check_changes(now, parse(f"remount,{word}", MEMORY))
    assert setting_words(parse("size=1m,no_passthrough", MEMORY).settings) == ["size=1048576", "no_passthrough"]
    assert replace(now, **parse("idle=5", MEMORY).settings).idle_seconds == 5


@pytest.mark.parametrize(
    ("command_line", "words"),
    [
        ("mount -t fuse.sharedfs n /m -o size=1m,suid,dev", ["suid", "dev"]),
        ("/usr/bin/mount n /m -tfuse.sharedfs -nosuid", ["suid"]),
        ("mount n /m --options dev -o nodev", ["dev", "nodev"]),
        ("mount n /m --options=dev --types fuse.sharedfs", ["dev"]),
        ("mount n /m -o size=1m", []),
        ("mount n /m -o x-suid,suid=1", []),
        ("mount -T FSTAB /m", ["suid"]),
        ("mount -T FSTAB -a", ["suid"]),
        ("mount --fstab=FSTAB /m -o nosuid,dev", ["suid", "nosuid", "dev"]),
        ("mount -T FSTAB n /m", []),
        ("mount -T /missing /m", []),
        ("mount --unheard-of n /m -o suid", []),
        ("systemd -o suid n /m", []),
        ("", []),
    ],
)
def test_words_that_mount_keeps_to_itself(command_line: str, words: list[str], tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(
        "# n /m fuse.sharedfs dev 0 0\nn /m tmpfs dev\n"
        "n /m\\040m fuse.sharedfs dev\nn /m/ fuse.sharedfs size=1m,suid 0 0\n"
    )
    assert words_kept_by_mount(command_line.replace("FSTAB", str(fstab)).split(), "/m") == words
