"""What the parsers of annotation files share: their result, and checks of single values.

A bad record adds a line to `problems`; the other records are still read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timam.config import LONGEST_TEXT
from timam.data.records import SPLITS, Record, show
from timam.files import read_json


@dataclass
class Parsed:
    """The content of an annotation.

    Attributes:
        file: the annotation file, relative to the root.
        problems: errors; the data set cannot be used.
        warnings: errors that do not prevent its use.
        notes: what the parser decided, such as a split of its own.
        unreadable: there is no annotation to read records from.
        kind: what is relevant ("identity", "instance", "class"), where the annotation decides it.
    """

    file: str
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: bool = False
    kind: str | None = None


def by_hash(identities: Iterable[Any]) -> list[Any]:
    """Different identities in the order of the SHA-256 of their names: the same order on every machine."""
    return sorted(set(identities), key=lambda i: hashlib.sha256(str(i).encode()).digest())


def read_text(path: Path, errors: str = "strict") -> str:
    """A UTF-8 file without its byte-order mark. Raises OSError for anything else, such as a pipe that never ends."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: not a regular file")
    return path.read_text(encoding="utf-8-sig", errors=errors)


def read_first_json(root: Path, files: tuple[str, ...]) -> tuple[Any, Parsed]:
    """The content of the first of the files that exists."""
    path = next((root / f for f in files if (root / f).exists()), root / files[0])
    parsed = Parsed(path.name)
    try:
        return read_json(path), parsed
    except FileNotFoundError:
        parsed.problems.append(f"{root / ' or '.join(files)}: no such annotation file")
    except (OSError, ValueError) as error:
        parsed.problems.append(str(error))
    parsed.unreadable = True
    return None, parsed


def objects(values: list[Any], parsed: Parsed, what: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(17, "reid_raw.json record 17", {...}) for each object of a JSON list."""
    for i, entry in enumerate(values):
        source = f"{parsed.file} {what} {i}"
        if isinstance(entry, dict):
            yield i, source, entry
        else:
            parsed.problems.append(f"{source}: expected an object, found {type(entry).__name__}")


def value(record: Any, key: str, kind: type, problems: list[str], source: str) -> Any:
    """record[key], if it exists and has this type; else None, and a problem is added."""
    if not isinstance(record, dict):
        problems.append(f"{source}: expected an object, found {type(record).__name__}")
    elif key not in record:
        problems.append(f"{source}: no key {key!r}; it has {show.repr(sorted(record))}")
    elif type(record[key]) is not kind or (kind is int and not -(2**63) <= record[key] < 2**63):  # NumPy's int64
        problems.append(f"{source}: {key} = {show.repr(record[key])}: expected {kind.__name__}")
    else:
        return record[key]
    return None


def check_captions(captions: list[Any] | None, problems: list[str], source: str) -> tuple[str, ...]:
    """The captions of a picture. None (whose problem has been added already) gives none."""
    if captions == []:
        problems.append(f"{source}: it has no captions")
    for i, caption in enumerate(captions or []):
        if not isinstance(caption, str) or not caption.strip() or re.search(r"[\ud800-\udfff]", caption):
            problems.append(f"{source}: caption {i} = {show.repr(caption)}: expected a sentence")
        elif len(caption) > LONGEST_TEXT:
            problems.append(f"{source}: caption {i} has {len(caption):,} characters; expected at most {LONGEST_TEXT:,}")
    return tuple(captions or [])


def check_split(name: Any, problems: list[str], source: str) -> str:
    """The split's name. Karpathy's `restval`, the rest of COCO's validation pictures, is training data."""
    if name == "restval":
        return "train"
    if name is not None and name not in SPLITS:
        problems.append(f"{source}: unknown split {show.repr(name)}: expected {', '.join(SPLITS)}")
    return name
