"""Writing files so that a kill at any moment leaves the old content or the new, never a half; noticing damage."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # `sha256sum --check SHA256SUMS` reads it, too
_WAY_OUT = "what was there before is kept: mend that and start again"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


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
    """Yields a temporary path beside `path`; what was written there takes its place unless an exception is raised.

    Raises:
        OSError: naming `path`, where there is no room for it or the disk cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives the name and the way out to an error that says only that the disk is full or read-only."""
    try:
        yield
    except Exception as error:
        text = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers have errors of their own
        number = getattr(error, "errno", None) or (int(text[1]) if text else 0)
        if number not in _FULL:
            raise
        raise OSError(number, f"{os.strerror(number)}; {_WAY_OUT}", str(path)) from error


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk itself.

    The system may do a renaming before it writes what is renamed: a power cut in between would leave an empty file in
    the place of the old one. Milliseconds for the small files; for a checkpoint the time that the disk takes.
    """
    if os.name == "nt":  # opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def replacing_folder(folder: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a new empty folder beside `folder`; it takes its place unless an exception is raised.

    A folder cannot be replaced in one step; `recover_folder` mends a kill between the two.

    Args:
        durable: waits for the disk, so that it survives a power cut. Not worth it for what can be made again.

    Raises:
        OSError: as `replacing_file`.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with _named(folder):
            new.mkdir(parents=True)
            yield new
            for path in (*new.rglob("*"), new) if durable else ():
                _flush(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    recover_folder(folder)
    if folder.exists():
        folder.rename(_old(folder))
    new.rename(folder)
    if durable:
        _flush(folder.parent)
    shutil.rmtree(_old(folder), ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Puts back the old folder where a replacement was killed after it was moved away; else removes its remains."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def sha256(path: Path) -> str:
    """64 hex digits of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Notes the content of files below a folder, by default of all, in its SHA256SUMS.

    Safetensors, NumPy's and JSON's forms notice a missing end, but not a flipped bit.
    """
    found = sorted(p for p in (folder.rglob("*") if paths is None else paths) if p.is_file() and p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in found))


def check_sums(folder: Path) -> None:
    """Nothing where every file is as its SHA256SUMS says, or where a folder has none.

    Raises:
        ValueError: naming every file that is absent or other than it was written.
    """
    if not (folder / SUMS).exists():
        return
    damaged = []
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            damaged.append(f"{path} is absent")
        elif (found := sha256(path)) != expected:
            damaged.append(f"{path} is damaged: its SHA-256 is {found}, was {expected}")
    if damaged:
        raise ValueError("; ".join(damaged))
