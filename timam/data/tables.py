"""Parsers of tables: CSV, JSON lines, Parquet; pictures as paths or, in Parquet, as embedded bytes."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from timam.data.parsing import Parsed, add_rows, expect, split_of_name
from timam.files import files_below

# What is read -> its columns, of which the first that exists is taken; or for captions caption_0, caption_1, ...
COLUMNS = {
    "image_path": ("image_path", "file_name", "filepath", "image", "img", "filename"),
    "caption": ("caption", "captions", "title", "text", "sentence", "sentences"),
    "identity": ("identity", "person_id", "pid"),
    "split": ("split",),
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class ColumnError(ValueError):
    """A column that is absent or stands twice."""


def parse_table(root: Path, columns: Mapping[str, str] | None = None) -> Parsed:
    """ROOT itself, the one table in it, or captions.csv (.tsv, .jsonl, .parquet) of several; paths are relative."""
    files = [root] if root.is_file() else sorted(f for f in root.glob("[!.]*") if f.suffix.lower() in SUFFIXES)
    files = files or sorted(root.glob("captions.txt"))  # Kaggle's; other .txt files are not tables
    named = [f for f in files if f.stem == "captions"]
    chosen = named if len(named) == 1 else files
    if len(chosen) != 1:
        found = ", ".join(f.name for f in files) or "none"
        problem = f"{root}: expected one table, captions.csv or captions.parquet; found {found}"
        return Parsed("captions.csv", problems=[problem])
    return _parse_files(root, chosen, columns or {}, by_name=False)


def parse_parquet(root: Path, columns: Mapping[str, str] | None = None) -> Parsed:
    """One Parquet file, or all below ROOT, as the Hugging Face hub has them: data/train-00000-of-00002.parquet, ..."""
    return _parse_files(root, [root] if root.is_file() else files_below(root, (".parquet",)), columns or {})


def parse_imagefolder(root: Path, columns: Mapping[str, str] | None = None) -> Parsed:
    """metadata.csv, .jsonl or .parquet in ROOT or in folders below it; pictures are relative to their metadata file."""
    return _parse_files(root, [f for f in files_below(root, SUFFIXES) if f.stem == "metadata"], columns or {})


def _parse_files(root: Path, files: list[Path], columns: Mapping[str, str], by_name: bool = True) -> Parsed:
    """Tables of one form, ROOT itself or in it.

    `columns` is {a key of COLUMNS: the column to read instead; for captions several, joined by commas}. With
    `by_name`, splits are read from the names of files and folders where there is no column of splits.
    """
    root = root.parent if root.is_file() else root
    parsed = Parsed(files[0].relative_to(root).as_posix() if len(files) == 1 else f"{len(files)} tables")
    if not files:
        parsed.problems.append(f"{root}: no table found")
    rows: list[tuple[str, dict[str, Any]]] = []
    for file in files:
        label = file.relative_to(root)
        named = {"named_split": split_of_name(label)} if by_name else {}
        try:
            if not file.is_file():
                raise OSError("not a regular file")
            if (suffix := file.suffix.lower()) not in _OPEN:
                raise ValueError(f"expected {', '.join(SUFFIXES)}")
            header, read = _OPEN[suffix](file)
            chosen = choose_columns(header, columns, parsed)
            for i, values in read(chosen):
                with parsed.naming(source := f"{label} row {i}"):
                    if None in values:
                        hint = "a caption with a comma needs quotes"
                        raise ValueError(f"expected {len(header)} values, as in the header ({hint})")
                    row = named | row_of(values, chosen)
                    if isinstance(row["image_path"], str) and row["image_path"]:
                        row["image_path"] = (label.parent / row["image_path"]).as_posix()
                    rows.append((source, row))
        except ColumnError as error:
            parsed.problems.append(f"{label}: {error}")
        except UnicodeDecodeError as error:
            parsed.problems.append(f"{file}: not UTF-8 ({error}); save it as UTF-8")
        except Exception as error:  # csv and pyarrow raise many kinds for a damaged file
            parsed.problems.append(f"{file}: not readable as a table ({type(error).__name__}: {error})")
    return add_rows(rows, parsed)


def choose_columns(header: list[str], given: Mapping[str, str], parsed: Parsed) -> dict[str, list[str]]:
    """{a key of COLUMNS: the columns to read}; a note says which, where they have other names. Raises ColumnError."""
    chosen = {}
    for key, names in COLUMNS.items():
        if key in given:
            found = [c.strip() for c in given[key].split(",")] if key == "caption" else [given[key]]
            if absent := [c for c in found if c not in header]:
                raise ColumnError(f"no column {', '.join(absent)}; it has {', '.join(header)}")
        else:
            found = next(([n] for n in names if n in header), [])
            if key == "caption" and not found:
                pattern = re.compile(rf"({'|'.join(names)})_?\d+")
                found = [c for c in header if pattern.fullmatch(c)]
        if twice := [c for c in found if header.count(c) > 1]:
            raise ColumnError(f"two columns {twice[0]}; it has {', '.join(header)}")
        if found:
            chosen[key] = found
    if missing := [k for k in ("caption", "image_path") if k not in chosen]:
        hint = " ".join(f"--column {key}=NAME" for key in missing)
        raise ColumnError(f"no column {', '.join(missing)}; it has {', '.join(header)}. {hint} reads another column")
    others = [f"{k} from {', '.join(names)}" for k, names in chosen.items() if names != [k]]
    unread = sorted(set(header) - {c for names in chosen.values() for c in names})
    told = [f"read: {'; '.join(others)}"] * bool(others) + [f"not read: {', '.join(unread)}"] * bool(unread)
    if unread and (absent := [key for key in COLUMNS if key not in chosen]):
        told.append(f"{' or '.join(f'--column {key}=NAME' for key in absent)} reads one of these")
    if told and (note := f"columns {'; '.join(told)}") not in parsed.notes:
        parsed.notes.append(note)
    return chosen


def row_of(values: Mapping[str, Any], chosen: dict[str, list[str]]) -> dict[str, Any]:
    """A row for `add_rows`. Captions may be texts and lists; of several columns, empty ones are left out."""
    captions: list[Any] = []
    for column in chosen["caption"]:
        caption = values.get(column)
        if isinstance(caption, list):
            captions += caption
        elif len(chosen["caption"]) == 1 or caption not in (None, ""):
            captions.append(caption)
    return {k: values.get(names[0]) for k, names in chosen.items() if k != "caption"} | {"captions": captions}


def _open_csv(file: Path) -> tuple[list[str], Any]:
    """Separated by what the header has most of: commas, tabs, semicolons or |.

    All values are text: "NA" and 007 are not changed. A row with more or fewer values than the header has the key None.
    """
    with file.open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        delimiter = max(",\t;|", key=first.count)
        reader = csv.reader(stream, strict=True, delimiter=delimiter)
        try:
            header, *rows = [row for row in reader if row] or [[]]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    header = [c.strip() for c in header]
    records = [dict(zip(header, row, strict=True)) if len(row) == len(header) else {None: row} for row in rows]
    return header, lambda _: enumerate(records, 1)


def _open_json_lines(file: Path) -> tuple[list[str], Any]:
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for i, line in enumerate(stream, 1):
            try:
                rows += [(i, expect(json.loads(line), dict))] if line.strip() else []
            except ValueError as error:
                raise ValueError(f"line {i}: {error}") from error
    return sorted({key for _, row in rows for key in row}), lambda _: iter(rows)


def _open_parquet(file: Path) -> tuple[list[str], Any]:
    """Read in batches, without the bytes of pictures: these are named FILE#COLUMN:ROW (`timam.embedded`)."""
    import pyarrow.parquet as pq  # here: `timam --help` need not wait for it

    table = pq.ParquetFile(file)
    own = {c.strip(): c for c in table.schema_arrow.names}

    def read(chosen: dict[str, list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        picture = own[chosen["image_path"][0]]
        form = _picture_form(table, picture)
        others = [own[c] for key, names in chosen.items() for c in names if key != "image_path"]
        leaves = {"bytes": others, "path": [*others, f"{picture}.path"], "text": [*others, picture]}[form]
        batches = table.iter_batches(1024, columns=leaves)
        for i, values in enumerate(row for batch in batches for row in batch.to_pylist()):
            if form == "bytes":
                values[picture] = f"{file.name}#{picture}:{i}"
            elif form == "path":
                values[picture] = (values[picture] or {}).get("path")
            yield i + 1, {c.strip(): v for c, v in values.items()}

    return list(map(str.strip, table.schema_arrow.names)), read


def _picture_form(table: Any, column: str) -> str:
    """How a column names pictures: "bytes" (embedded), "path" (a struct with paths alone), "text" (anything else)."""
    import pyarrow as pa

    kind = table.schema_arrow.field(column).type
    if not pa.types.is_struct(kind):
        return "bytes" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "text"
    groups = [table.metadata.row_group(k) for k in range(table.metadata.num_row_groups)]
    stored = [c for g in groups for c in map(g.column, range(g.num_columns)) if c.path_in_schema == f"{column}.bytes"]
    empty = [c.statistics is not None and c.statistics.null_count == c.num_values for c in stored]
    return "path" if all(empty) else "bytes"


# {suffix: a function of a file -> (header, a function of the chosen columns -> rows, each with its number from 1)}
_OPEN = {**dict.fromkeys((".csv", ".tsv", ".txt"), _open_csv), ".jsonl": _open_json_lines, ".parquet": _open_parquet}
