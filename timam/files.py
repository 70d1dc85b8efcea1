"""Writing files so that a kill at any moment leaves the old content or the new, never a half."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where pixel and word-state stores are kept: $TIMAM_CACHE, else timam/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timam"
    return Path(os.environ.get("TIMAM_CACHE") or default)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, finite: bool = True) -> Any:
    """A JSON file's content; what parsers read differently is refused: a key twice in an object, NaN and infinity.

    Args:
        finite: False for files of our own that hold NaN or infinity as Python writes them.

    Raises:
        OSError: no such file, or no regular one (a pipe or a device would never end).
        ValueError: not UTF-8, not JSON, or nested too deep; the message names the file.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: not a regular file")
    numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, **numbers)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key[:80]!r} stands twice in one object")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is no finite number")
    return number


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
