"""Rows of picture and captions, with identity and split where given -> records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from timam.data.parsing import Parsed, by_hash, check_captions, check_split
from timam.data.records import Record, show

HELD_OUT = 0.1  # share of the identities for validation, and again for the test, where no splits are given
# What other tools write for a missing value. Read as a name, it would make one person of all who have none.
MISSING = {"nan", "None", "null", "NULL", "NA", "N/A", "#N/A", "<NA>", "NaN", "NaT", "inf", "-inf"}
_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip


def split_of_name(path: PurePath) -> str | None:
    """The split that a file's name has as a word, or a folder as its name: data/test-00000.parquet, val2014/1.jpg."""
    words = [part.rstrip("0123456789") for part in path.parent.as_posix().lower().split("/")]
    words += re.findall("[a-z]+", path.name.lower())
    return next((_NAMES[word] for word in words if word in _NAMES), None)


def add_rows(rows: Iterable[tuple[str, dict[str, Any]]], parsed: Parsed) -> None:
    """Adds the records of rows to `parsed`; several rows of a picture become one record.

    Without identities every picture is its own. Identities that are not all whole numbers are numbered in the order
    of their names. Splits that are missing are made of the identities by `by_hash`, and a note says so.

    Args:
        rows: (source, {"image_path", "captions": list, and where known "identity", "split"}). Instead of "split",
            "named_split" is what the name of a file says, or None; only such splits are completed.
    """
    pictures: dict[str, dict[str, Any]] = {}
    keys: set[str] = set()
    for source, row in rows:
        keys |= row.keys()
        _add_row(row, source, pictures, parsed.problems)
    parsed.kind = "identity" if "identity" in keys else "instance"
    names = sorted({p["identity"] for p in pictures.values()})
    number = _numbered(names, parsed)
    if "split" not in keys:
        _complete_splits(list(pictures.values()), parsed)
    parsed.records = [
        Record(path, tuple(p["captions"]), number[p["identity"]], p["split"], p["source"])
        for path, p in pictures.items()
        if p["split"]
    ]


def _add_row(row: dict[str, Any], source: str, pictures: dict[str, dict[str, Any]], problems: list[str]) -> None:
    """Adds a row's captions to its picture, or a problem."""
    found = len(problems)
    row = {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
    path = row["image_path"]
    if path in ("", None):
        problems.append(f"{source}: image_path is empty")
    elif not isinstance(path, str):
        problems.append(f"{source}: image_path = {show.repr(path)}: expected str")
    captions = [c.strip() if isinstance(c, str) else c for c in row["captions"]]
    check_captions(captions, problems, source)
    values: dict[str, Any] = {}
    if "identity" in row:
        values["identity"] = _identity(row["identity"], problems, source)
    values["split"] = check_split(row["split"] or "", problems, source) if "split" in row else row.get("named_split")
    if len(problems) > found:
        return
    picture = pictures.setdefault(path, {"identity": path, **values, "captions": [], "source": source})
    for key, value in values.items():
        if picture[key] != value:
            says = f"{picture['source']} says {show.repr(picture[key])}"
            problems.append(f"{source}: {key} {show.repr(value)} of {path}: {says}")
            return
    picture["captions"] += captions


def _identity(value: Any, problems: list[str], source: str) -> str:
    """An identity as text: a name, or a whole number of any type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        problems.append(f"{source}: identity is empty")
    elif not isinstance(value, int | str) or isinstance(value, bool) or str(value) in MISSING:
        problems.append(f"{source}: identity = {show.repr(value)}: expected a name or a whole number")
    elif re.fullmatch(r"\d(\.\d+)?[eE]\+\d+", str(value)):  # 1.23457E+11 may have been several persons
        problems.append(f"{source}: identity = {value!r}: a number as spreadsheets shorten it; expected all its digits")
    return str(value)


def _numbered(names: list[str], parsed: Parsed) -> dict[str, int]:
    """The identities' own numbers, if all are whole and differ (pandas writes 3.0 for 3), else positions by name."""
    whole = all(re.fullmatch(r"-?\d{1,18}(\.0+)?", n) for n in names)
    number = {n: int(n.partition(".")[0]) if whole else i for i, n in enumerate(names)}
    if len(set(number.values())) == len(names):
        return number
    first: dict[int, str] = {}
    alike = [(first[k], n) for n, k in number.items() if first.setdefault(k, n) != n]
    parsed.warnings.append(
        f"{parsed.file}: identities {alike[0][0]} and {alike[0][1]} are one number and were read as two names"
        + (f"; and {len(alike) - 1} more such pairs" if len(alike) > 1 else "")
    )
    return {n: i for i, n in enumerate(names)}


def _complete_splits(pictures: list[dict[str, Any]], parsed: Parsed) -> None:
    """Makes the splits that are missing: all three of nothing or training data alone, the test of half of `val`."""
    given = {p["split"] for p in pictures}
    if None in given and len(given) > 1:
        bare = [p["source"] for p in pictures if p["split"] is None]
        parsed.problems.append(f"{bare[0]} and {len(bare) - 1} more are in no split, others are by the names of files")
        return
    if given not in ({None}, {"train"}, {"train", "val"}):
        return
    source = "val" if "val" in given else None
    names = by_hash(p["identity"] for p in pictures if source is None or p["split"] == source)
    if source is None:
        few = max(1, round(HELD_OUT * len(names)))
        split = {n: "val" if i < few else "test" if i < 2 * few else "train" for i, n in enumerate(names)}
        made = f"{len(names) - 2 * few}/{few}/{few} identities were made train/val/test"
    else:
        split = {n: "test" if i < len(names) // 2 else "val" for i, n in enumerate(names)}
        made = f"{len(names) // 2} of {len(names)} val identities were made the test split"
    for p in pictures:
        if p["split"] == source or source is None:
            p["split"] = split[p["identity"]]
    what = "no test split" if source else "no column split" if given == {None} else "training data alone"
    parsed.notes.append(
        f"{parsed.file} has {what}: {made}, in the order of their names' SHA-256 (the same on every machine)"
    )
