"""Writing files so that a kill at any moment leaves the old content or the new, never a half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where pixel and word-state stores are kept: $TIMAM_CACHE, else timam/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timam"
    return Path(os.environ.get("TIMAM_CACHE") or default)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place unless an exception is raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new empty folder beside `folder`; it takes its place unless an exception is raised.

    A folder cannot be replaced in one step; `recover_folder` mends a kill between the two.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    recover_folder(folder)
    if folder.exists():
        folder.rename(_old(folder))
    new.rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Puts back the old folder where a replacement was killed after it was moved away; else removes its remains."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)
