"""Atomic writing (a kill at any moment leaves the old content or the new), checksums, and strict JSON."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # in the format of `sha256sum --check`
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def cache_folder() -> Path:
    """The folder of pixel and word-state stores: $TIMAM_CACHE, else timam/ in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timam"
    return Path(os.environ.get("TIMAM_CACHE") or default).expanduser()


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files in a folder and its subfolders, linked folders too, whose names end so (in small letters), sorted.

    Hidden ones are left out: tools keep their own files there, and macOS a ._NAME beside each file on a foreign disk.
    Raises OSError for a subfolder that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    paths = []
    for top, folders, files in os.walk(folder, onerror=refuse if folder.is_dir() else None, followlinks=True):
        if any(os.path.samefile(top, above) for above in Path(top).parents if above.is_relative_to(folder)):
            folders.clear()  # a link in a circle
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(top, name) for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
    return sorted(paths)


def read_json(path: Path) -> Any:
    """The content of a stranger's JSON file. A repeated key, NaN and infinity are errors, as parsers disagree on them.

    Raises, naming the file, ValueError: not UTF-8, not JSON, nested too deeply; OSError: a pipe, which might never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: not a regular file")
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error


def parse_json(text: str) -> Any:
    """As `read_json`, of a text."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"key {key[:80]!r} stands twice in one object")
        content[key] = value
    return content


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:80]} is no finite number")
    return number


def write_text(path: Path, text: str) -> None:
    """Replaces a file atomically, in UTF-8."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; the file written there replaces `path` at the end, unless an exception is raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _disk_errors_naming(path):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, durable: bool = True) -> Iterator[Path]:
    """As `replacing_file` for a folder; yields a new empty one. Only one process at a time may replace a folder.

    Replacing takes two renamings; after a kill between them `recover_folder` puts the old folder back. `durable` waits
    until everything is on the disk, to survive a power cut; it is not needed for what can be recomputed.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        with _disk_errors_naming(folder):
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
    """Repairs a killed `replacing_folder`: puts the old folder back if the new one is missing, else removes it."""
    old = _old(folder)
    if not folder.exists() and old.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def _disk_errors_naming(path: Path) -> Iterator[None]:
    """Adds the path, and what to do, to errors that only say that the disk is full or read-only."""
    try:
        yield
    except Exception as error:
        text = re.search(r"\(os error (\d+)\)", str(error))  # safetensors and tokenizers raise their own types
        number = getattr(error, "errno", None) or (int(text[1]) if text else 0)
        if number not in _NOT_WRITABLE:
            raise
        advice = "what was there before is kept: solve this and start again"
        raise OSError(number, f"{os.strerror(number)}; {advice}", str(path)) from error


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk: a power cut must not leave a new empty file."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sha256(path: Path) -> str:
    """64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Writes checksums of files below a folder (all by default) to its SHA256SUMS. No format detects a flipped bit."""
    found = sorted(p for p in (folder.rglob("*") if paths is None else paths) if p.is_file() and p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in found))


def check_sums(folder: Path) -> None:
    """Raises ValueError with every file that is missing or differs from SHA256SUMS; a folder without one passes."""
    listed = folder / SUMS
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.exists() else []
    files = [(folder / name, digest) for digest, _, name in (line.partition("  ") for line in lines)]
    damaged = [f"{path} is absent" for path, _ in files if not path.is_file()]
    damaged += [f"{path} is damaged" for path, digest in files if path.is_file() and sha256(path) != digest]
    if damaged:
        raise ValueError("; ".join(damaged))
