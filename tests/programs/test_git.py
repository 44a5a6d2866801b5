"""git: many small files, renames into place, mapped packs."""

from pathlib import Path

from tests.support.programs import needs, run

pytestmark = needs("git")


def test_git_keeps_a_repository(place: Path) -> None:
    work = place / "work"
    work.mkdir()

    def git(*arguments: str, cwd: Path = work) -> str:
        return run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments, cwd=cwd)

    git("init", "-q")
    for number in range(60):
        (work / f"file-{number}").write_text(f"{number}\n" * number * 20)
    git("add", ".")
    git("commit", "-qm", "first")
    (work / "file-3").write_text("changed")
    git("mv", "file-4", "moved")
    git("commit", "-qam", "second")
    git("tag", "-am", "a tag", "v1")
    git("gc", "-q", "--aggressive")
    git("fsck", "--strict", "--full")
    assert git("status", "--porcelain") == ""
    assert git("show", "HEAD~:file-1") == "1\n" * 20
    git("checkout", "-q", "HEAD~")
    assert (work / "file-4").read_text() == "4\n" * 80
    for name, origin in (("by-links", str(work)), ("by-pack", f"file://{work}")):
        git("clone", "-q", origin, name, cwd=place)
        git("fsck", "--strict", "--full", cwd=place / name)
        assert git("rev-parse", "HEAD^{tree}", cwd=place / name) == git("rev-parse", "HEAD^{tree}")
    git("worktree", "add", "-q", str(place / "beside"), "v1")
    assert (place / "beside" / "file-3").read_text() == "changed"
    git("repack", "-qad")
    git("prune", "--expire=now")
    git("fsck", "--strict", "--full")
