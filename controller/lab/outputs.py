"""Files that a user names for the lab's output: what is there and was not written by the lab is not written over."""

import os
from collections.abc import Callable
from pathlib import Path

from sharedfs.common.errors import CallerMistake

REPORT_HEAD = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>sharedfs lab: '
"""How a report begins."""


def check_replaceable(path: Path, kind: str, is_ours: Callable[[Path], bool]) -> None:
    """Raises CallerMistake unless `path` is free, or a regular file that is empty or passes `is_ours`."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or (path.stat().st_size and not is_ours(path)):
        raise CallerMistake(f"{path} is there and is no {kind}: choose another name, or remove it")


def is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(REPORT_HEAD)) == REPORT_HEAD.encode()
