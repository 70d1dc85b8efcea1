"""What the parsers share: their result, checks of single values, and rows of a table -> records.

A check raises ValueError. `Parsed.naming` makes it a problem of its record; the other records are still read.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from timam.config import check_sentences
from timam.data.records import SPLITS, Record, show
from timam.files import read_json

HELD_OUT = 0.1  # share of the identities for validation, and again for the test, where no splits are given
# What other tools write for a missing value. Read as a name, it would make one person of all who have none.
MISSING = {"nan", "None", "null", "NULL", "NA", "N/A", "#N/A", "<NA>", "NaN", "NaT", "inf", "-inf"}
_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


@dataclass
class Parsed:
    """The content of an annotation."""

    file: str  # relative to the root
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # the data set cannot be used
    warnings: list[str] = field(default_factory=list)  # these do not prevent its use
    notes: list[str] = field(default_factory=list)  # what the parser decided, such as a split of its own
    kind: str | None = None  # what is relevant, as `Dataset.kind`, where the annotation decides it

    @contextmanager
    def naming(self, source: object) -> Iterator[None]:
        """Makes an OSError or ValueError within the block a problem of `source`, a record or a file."""
        try:
            yield
        except FileNotFoundError:
            self.problems.append(f"{source}: no such annotation file")
        except (OSError, ValueError) as error:
            self.problems.append(f"{source}: {str(error).removeprefix(f'{source}: ')}")


def by_hash(identities: Iterable[Any]) -> list[Any]:
    """Different identities in the order of the SHA-256 of their names: the same order on every machine."""
    return sorted(set(identities), key=lambda i: hashlib.sha256(str(i).encode()).digest())


def read_lines(path: Path, errors: str = "strict") -> list[str]:
    """The lines of a UTF-8 file, stripped, without its byte-order mark. Lines end at line ends only.

    Raises OSError for what is no regular file, such as a pipe that never ends, and ValueError for other encodings.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig", errors=errors).split("\n")]


def read_records(root: Path, patterns: list[str], key: str | None = None) -> tuple[Parsed, list[Any]]:
    """The list in the first file that exists, the only one of its pattern; with `key`, it is in the file's object."""
    file, *others = next(filter(None, (sorted(f.name for f in root.glob(p)) for p in patterns)), patterns[:1])
    parsed = Parsed(file)
    with parsed.naming(root / file):
        if others:
            raise ValueError(f"expected one annotation file {patterns[0]}; found {', '.join([file, *others])}")
        content = read_json(root / file)
        return parsed, value(content, key, list) if key else expect(content, list)
    return parsed, []


def expect(found: Any, kind: type) -> Any:
    """`found`, if it is a dict or a list, as `kind` says."""
    if not isinstance(found, kind):
        raise ValueError(f"expected {'an object' if kind is dict else 'a list'}, found {type(found).__name__}")
    return found


def value(record: Any, key: str, kind: type) -> Any:
    """record[key], if it exists and has this type."""
    if key not in expect(record, dict):
        raise ValueError(f"no key {key!r}; it has {show.repr(sorted(record))}")
    value: Any = record[key]
    if type(value) is not kind or (isinstance(value, int) and not -(2**63) <= value < 2**63):  # NumPy's int64
        raise ValueError(f"{key} = {show.repr(value)}: expected {kind.__name__}")
    return value


def check_captions(captions: list[Any]) -> tuple[str, ...]:
    """The captions of a picture."""
    if not captions:
        raise ValueError("it has no captions")
    check_sentences(captions, "caption {}")
    return tuple(captions)


def check_split(name: Any) -> str:
    """The split's name. Karpathy's `restval`, the rest of COCO's validation pictures, is training data."""
    if name == "restval":
        return "train"
    if name not in SPLITS:
        raise ValueError(f"unknown split {show.repr(name)}: expected {', '.join(SPLITS)}")
    return name


def split_of_name(path: PurePath) -> str | None:
    """The split that a file's name has as a word, or a folder as its name: data/test-00000.parquet, val2014/1.jpg."""
    words = [part.rstrip("0123456789") for part in path.parent.as_posix().lower().split("/")]
    words += re.findall("[a-z]+", path.name.lower())
    return next((split for word in words for split, names in _NAMES.items() if word in names), None)


def add_rows(rows: Iterable[tuple[str, dict[str, Any]]], parsed: Parsed) -> Parsed:
    """Adds the records of rows to `parsed` and returns it; several rows of a picture become one record.

    Rows are (source, {"image_path", "captions": list, and where known "identity", "split"}). Instead of "split",
    "named_split" is a file name's, or None. Missing splits are made. Without identities every picture is its own.
    """
    pictures: dict[str, dict[str, Any]] = {}
    keys: set[str] = set()
    for source, row in rows:
        keys |= row.keys()
        with parsed.naming(source):
            _add_row(row, source, pictures)
    parsed.kind = "identity" if "identity" in keys else "instance"
    number = _numbered(sorted({p["identity"] for p in pictures.values()}), parsed)
    _complete_splits(list(pictures.values()), parsed)
    parsed.records = [
        Record(path, tuple(p["captions"]), number[p["identity"]], p["split"], p["source"])
        for path, p in pictures.items()
        if p["split"]
    ]
    return parsed


def _add_row(row: dict[str, Any], source: str, pictures: dict[str, dict[str, Any]]) -> None:
    row = {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
    path = row["image_path"]
    if not isinstance(path, str) or not path:
        raise ValueError(f"image_path = {show.repr(path)}: expected a path")
    captions = check_captions([c.strip() if isinstance(c, str) else c for c in row["captions"]])
    values: dict[str, Any] = {"identity": _identity(row["identity"])} if "identity" in row else {}
    values["split"] = _split(row["split"]) if "split" in row else row.get("named_split")
    picture = pictures.setdefault(path, {"identity": path, **values, "captions": [], "source": source})
    for key, value in values.items():
        if picture[key] != value:
            says = f"{picture['source']} says {show.repr(picture[key])}"
            raise ValueError(f"{key} {show.repr(value)} of {path}: {says}")
    picture["captions"] += captions


def _split(name: Any) -> str:
    """As `check_split`, of a table, where other tools write `validation` or `dev`."""
    return next((s for s, names in _NAMES.items() if str(name).lower() in names), None) or check_split(name or "")


def _identity(value: Any) -> str:
    """An identity as text: a name, or a whole number of any type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("identity is empty")
    if not isinstance(value, int | str) or isinstance(value, bool) or str(value) in MISSING:
        raise ValueError(f"identity = {show.repr(value)}: expected a name or a whole number")
    if re.fullmatch(r"\d(\.\d+)?[eE]\+\d+", str(value)):  # 1.23457E+11 may have been several persons
        raise ValueError(f"identity = {value!r}: a number as spreadsheets shorten it; expected all its digits")
    return str(value)


def _numbered(names: list[str], parsed: Parsed) -> dict[str, int]:
    """The identities' own numbers, if all are whole and differ (pandas writes 3.0 for 3), else positions by name."""
    whole = all(re.fullmatch(r"-?\d{1,18}(\.0+)?", n) for n in names)
    number = {n: int(n.partition(".")[0]) if whole else i for i, n in enumerate(names)}
    if len(set(number.values())) < len(names):  # 3 and 03
        parsed.warnings.append(f"{parsed.file}: identities are one number in several spellings, and read as names")
        number = {n: i for i, n in enumerate(names)}
    return number


def _complete_splits(pictures: list[dict[str, Any]], parsed: Parsed) -> None:
    """Makes the splits that are missing: all three of nothing or training data alone, the test of half of `val`."""
    given = {p["split"] for p in pictures}
    if None in given and len(given) > 1:
        bare = [p["source"] for p in pictures if p["split"] is None]
        parsed.problems.append(f"{bare[0]} and {len(bare) - 1} more are in no split, others are")
    if given not in ({None}, {"train"}, {"train", "val"}):
        return
    halved = "val" in given
    drawn = [p for p in pictures if not halved or p["split"] == "val"]
    names = by_hash(p["identity"] for p in drawn)
    n = len(names) // 2 if halved else max(1, round(HELD_OUT * len(names)))
    order = ("test", "val", "val") if halved else ("val", "test", "train")  # of the first n, the next n, the others
    split = {name: order[min(i // n if n else 2, 2)] for i, name in enumerate(names)}
    for p in drawn:
        p["split"] = split[p["identity"]]
    what = "no test split" if halved else "no splits" if given == {None} else "training data alone"
    made = "/".join(str(list(split.values()).count(s)) for s in SPLITS) + " identities were made train/val/test"
    made = f"{n} of {len(names)} val identities were made the test split" if halved else made
    parsed.notes.append(
        f"{parsed.file} has {what}: {made}, in the order of their names' SHA-256 (the same on every machine)"
    )
