"""Parsers of tables: rows of picture, caption and, where given, identity and split -> records."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timam.data.parsing import Parsed, by_hash, check_captions, check_split
from timam.data.records import Record, show

COLUMNS = ("image_path", "caption", "identity", "split")
HELD_OUT = 0.1  # share of the identities for validation, and again for the test, where a table has no splits
# What other tools write for a missing value. Read as a name, it would make one person of all who have none.
MISSING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "inf", "-inf"}

Rows = list[tuple[int, list[Any]]]  # (number, values); the first row below the header has number 1


def parse_table(root: Path) -> Parsed:
    """A CSV or Parquet file; a row a caption. `COLUMNS` are read, of which identity and split may be absent."""
    parsed = Parsed("captions.csv", unreadable=True)
    files = sorted(f for f in root.glob("*") if f.suffix.lower() in (".csv", ".parquet"))
    named = [f for f in files if f.stem == "captions"]
    chosen = named if len(named) == 1 else files
    if len(chosen) != 1:
        found = ", ".join(f.name for f in files) or "none"
        parsed.problems.append(f"{root}: expected one table, captions.csv or captions.parquet; found {found}")
        return parsed
    parsed.file = chosen[0].name
    try:
        if not chosen[0].is_file():
            raise OSError("not a regular file")
        read = _csv_rows if chosen[0].suffix.lower() == ".csv" else _parquet_rows
        header, rows = read(chosen[0], parsed)
    except Exception as error:  # csv and pyarrow raise many kinds for a damaged file
        parsed.problems.append(f"{chosen[0]}: not readable as a table ({type(error).__name__}: {error})")
        return parsed
    missing, twice = [c for c in COLUMNS[:2] if c not in header], [c for c in COLUMNS if header.count(c) > 1]
    if missing or twice:
        what = f"no column {', '.join(sorted(missing))}" if missing else f"two columns {twice[0]}"
        parsed.problems.append(f"{parsed.file}: {what}; it has {', '.join(header)}")
        return parsed
    parsed.unreadable = False
    places = {c: header.index(c) for c in COLUMNS if c in header}
    add_rows(((f"{parsed.file} row {i}", {c: row[k] for c, k in places.items()}) for i, row in rows), parsed)
    return parsed


def _csv_rows(path: Path, parsed: Parsed) -> tuple[list[str], Rows]:
    """All values as text, so that a caption "NA" or an identity 007 is not changed."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header, *rows = [row for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    parsed.problems += [
        f"{parsed.file} row {i}: {len(row)} values; expected {len(header)} (a caption with a comma needs quotes)"
        for i, row in enumerate(rows, 1)
        if len(row) != len(header)
    ]
    return [c.strip() for c in header], [(i, row) for i, row in enumerate(rows, 1) if len(row) == len(header)]


def _parquet_rows(path: Path, _: Parsed) -> tuple[list[str], Rows]:
    import pyarrow.parquet as pq  # here: `timam --help` need not wait for it

    table = pq.read_table(path)
    columns = [column.to_pylist() for column in table.columns]
    return [c.strip() for c in table.column_names], list(enumerate(map(list, zip(*columns, strict=True)), 1))


def add_rows(rows: Iterable[tuple[str, dict[str, Any]]], parsed: Parsed) -> None:
    """Adds the records of (source, {column: value}) to `parsed`; the rows of a picture become one record.

    Without identities every picture is its own. Identities that are not all whole numbers are numbered in the order
    of their names. Without splits, the identities are split by `by_hash`.
    """
    pictures: dict[str, dict[str, Any]] = {}
    columns: set[str] = set()
    for source, row in rows:
        columns |= row.keys()
        _add_row(row, source, pictures, parsed.problems)
    parsed.kind = "identity" if "identity" in columns else "instance"
    names = sorted({p["identity"] for p in pictures.values()})
    number = _numbered(names, parsed)
    splits = {} if "split" in columns or not names else _made_splits(names, parsed)
    parsed.records = [
        Record(path, tuple(p["captions"]), number[p["identity"]], p.get("split") or splits[p["identity"]], p["source"])
        for path, p in pictures.items()
    ]


def _add_row(row: dict[str, Any], source: str, pictures: dict[str, dict[str, Any]], problems: list[str]) -> None:
    """Adds a row's caption to its picture, or a problem."""
    found = len(problems)
    row = {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
    path = row["image_path"]
    if path in ("", None):
        problems.append(f"{source}: image_path is empty")
    elif not isinstance(path, str):
        problems.append(f"{source}: image_path = {show.repr(path)}: expected str")
    check_captions([row["caption"]], problems, source)
    values: dict[str, Any] = {}
    if "identity" in row:
        values["identity"] = _identity(row["identity"], problems, source)
    if "split" in row:
        values["split"] = check_split(row["split"] or "", problems, source)
    if len(problems) > found:
        return
    picture = pictures.setdefault(path, {"identity": path, **values, "captions": [], "source": source})
    for key, value in values.items():
        if picture[key] != value:
            says = f"{picture['source']} says {show.repr(picture[key])}"
            problems.append(f"{source}: {key} {show.repr(value)} of {path}: {says}")
            return
    picture["captions"].append(row["caption"])


def _identity(value: Any, problems: list[str], source: str) -> str:
    """An identity as text: a name, or a whole number of any type."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        problems.append(f"{source}: identity is empty")
    elif not isinstance(value, int | str) or isinstance(value, bool) or str(value) in MISSING:
        problems.append(f"{source}: identity = {show.repr(value)}: expected a name or a whole number")
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


def _made_splits(names: list[str], parsed: Parsed) -> dict[str, str]:
    """{identity: split}: by hash, 80 % train, 10 % val, 10 % test; at least one each if there are three identities."""
    ordered = by_hash(names)
    few = max(1, round(HELD_OUT * len(ordered)))
    val, test = set(ordered[:few]), set(ordered[few : 2 * few])
    parsed.notes.append(
        f"{parsed.file} has no column split: {len(ordered) - 2 * few}/{few}/{few} identities were made train/val/test, "
        "in the order of their names' SHA-256 (the same on every machine)"
    )
    return {n: "val" if n in val else "test" if n in test else "train" for n in names}
