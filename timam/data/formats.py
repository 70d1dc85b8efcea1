"""Annotation files of the benchmarks' layouts -> records. A bad record costs a line in `problems`, never the rest."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from timam.config import LONGEST_TEXT
from timam.data.records import SPLITS, Record, path_guard, show
from timam.files import read_json


@dataclass
class Parsed:
    """What an annotation gave.

    Attributes:
        file: the annotation file, relative to the root.
        unreadable: there is nothing to read records from.
        problems: they keep a data set from being used. warnings: something is wrong with it; it can be used.
        kind: relevance, where the annotation decides it.
    """

    file: str
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: bool = False
    kind: str | None = None


def by_hash(identities: Iterable[Any]) -> list[Any]:
    """Different identities in an order that depends on their names alone: by SHA-256 of the name."""
    return sorted(set(identities), key=lambda i: hashlib.sha256(str(i).encode()).digest())


def _read_json(root: Path, files: tuple[str, ...]) -> tuple[Any, Parsed]:
    """The content of the first of the files that is there."""
    path = next((root / f for f in files if (root / f).exists()), root / files[0])
    parsed = Parsed(path.name, unreadable=True)
    try:
        content = read_json(path)
    except FileNotFoundError:
        parsed.problems.append(f"{root / ' or '.join(files)}: no such annotation file")
    except (OSError, ValueError) as error:
        parsed.problems.append(str(error))
    else:
        parsed.unreadable = False
        return content, parsed
    return None, parsed


# -- values of a record -----------------------------------------------------------------------------------------


def _value(record: Any, key: str, kind: type, problems: list[str], source: str) -> Any:
    """record[key] if it is there and of the kind; else None, with the reason added to problems."""
    if not isinstance(record, dict):
        problems.append(f"{source}: expected an object, found {type(record).__name__}")
    elif key not in record:
        problems.append(f"{source}: no key {key!r}; it has {show.repr(sorted(record))}")
    elif type(record[key]) is not kind or (kind is int and not -(2**63) <= record[key] < 2**63):  # NumPy's int64
        problems.append(f"{source}: {key} = {show.repr(record[key])}: expected {kind.__name__}")
    else:
        return record[key]
    return None


def _captions(values: list[Any] | None, problems: list[str], source: str) -> tuple[str, ...]:
    """The captions; None, whose reason is among the problems already, gives none."""
    if values == []:
        problems.append(f"{source}: it has no captions")
    for i, caption in enumerate(values or []):
        if not isinstance(caption, str) or not caption.strip() or re.search(r"[\ud800-\udfff]", caption):
            problems.append(f"{source}: caption {i} = {show.repr(caption)}: expected a sentence")
        elif len(caption) > LONGEST_TEXT:
            problems.append(f"{source}: caption {i} has {len(caption):,} characters; expected at most {LONGEST_TEXT:,}")
    return tuple(values or [])


def _split(name: Any, problems: list[str], source: str) -> str:
    """Karpathy's `restval` (pictures of the validation set beyond its 5,000) trains, as in the literature."""
    if name == "restval":
        return "train"
    if name is not None and name not in SPLITS:
        problems.append(f"{source}: unknown split {show.repr(name)}: expected {', '.join(SPLITS)}")
    return name


# -- person search ----------------------------------------------------------------------------------------------


def parse_person_search(root: Path, files: tuple[str, ...], path_key: str = "file_path") -> Parsed:
    """CUHK-PEDES, ICFG-PEDES, RSTPReid: a list of {split, captions, file_path or img_path, id}.

    caption_all.json of CUHK-PEDES has no splits: they come from split files beside it (`_split_files`).
    """
    content, parsed = _read_json(root, files)
    if parsed.unreadable:
        return parsed
    file, problems = parsed.file, parsed.problems
    if not isinstance(content, list):
        problems.append(f"{file}: expected a list of records, found {type(content).__name__}")
        return parsed
    splits = _split_files(root, parsed) if file == "caption_all.json" else None
    for i, entry in enumerate(content):
        source, found = f"{file} record {i}", len(problems)
        if not isinstance(entry, dict):
            problems.append(f"{source}: expected an object, found {type(entry).__name__}")
            continue
        captions = _captions(_value(entry, "captions", list, problems, source), problems, source)
        path = _value(entry, path_key, str, problems, source)
        identity = _value(entry, "id", int, problems, source)
        if splits is None or "split" in entry:
            split = _split(_value(entry, "split", str, problems, source), problems, source)
        elif not splits:
            continue  # one problem for all, from _split_files
        else:
            split = splits.get(path) or splits.get(identity, "")
            if not split and len(problems) == found:
                problems.append(f"{source}: neither {show.repr(path)} nor id {identity} stands in a split file")
        if len(problems) == found:
            parsed.records.append(Record(path, captions, identity, split, source))
    return parsed


def _split_files(root: Path, parsed: Parsed) -> dict[Any, str]:
    """{picture path or identity: split} from the files that accompany caption_all.json in the field's repositories.

    Either split.json, {"train": [...], "val": [...], "test": [...]}, or a file each: train_reid.json or train.json,
    a list (or {"annotations": list}) of paths, identities or records with `file_path`.
    """
    splits: dict[str | int, str] = {}
    whole: dict[str, Any] = {}
    if (root / "split.json").exists():
        content, read = _read_json(root, ("split.json",))
        whole = content if isinstance(content, dict) else {}
        parsed.problems += read.problems or ([] if whole else ["split.json: expected an object of lists of splits"])
    for name in SPLITS:
        files = tuple(f for f in (f"{name}_reid.json", f"{name}.json") if (root / f).exists())
        members: Any = whole.get(name)
        if files:
            members, read = _read_json(root, files)
            parsed.problems += read.problems
        file = files[0] if files else f"split.json {name}"
        if isinstance(members, dict):
            members = members.get("annotations")
        if members is not None and not isinstance(members, list):
            parsed.problems.append(f"{file}: expected a list, found {type(members).__name__}")
            continue
        for i, member in enumerate(members or []):
            key: Any = member.get("file_path") if isinstance(member, dict) else member
            if type(key) not in (int, str):
                parsed.problems.append(f"{file} entry {i}: {show.repr(key)}: expected a file_path or an id")
            elif splits.setdefault(key, name) != name:
                parsed.problems.append(f"split files: {show.repr(key)} stands in {splits[key]} and in {name}")
    if not splits:
        parsed.problems.append(
            f"{root / parsed.file} has no splits, and no file beside it gives them; expected split.json "
            '({"train": [...], "val": [...], "test": [...]} of file_path or id), or {train,val,test}_reid.json. '
            "reid_raw.json, which the authors send, needs none"
        )
    return splits


# -- Karpathy's splits ------------------------------------------------------------------------------------------


def parse_karpathy(root: Path, file: str) -> Parsed:
    """Karpathy's json: {"images": [{filename, split, sentences: [{raw}]}]}; every picture is its own identity."""
    content, parsed = _read_json(root, (file,))
    if parsed.unreadable:
        return parsed
    problems = parsed.problems
    images = _value(content, "images", list, problems, file)
    for i, entry in enumerate(images or []):
        source, found = f"{file} image {i}", len(problems)
        if not isinstance(entry, dict):
            problems.append(f"{source}: expected an object, found {type(entry).__name__}")
            continue
        split = _split(_value(entry, "split", str, problems, source), problems, source)
        sentences = _value(entry, "sentences", list, problems, source) or []
        raws = [_value(s, "raw", str, problems, f"{source} sentence {k}") for k, s in enumerate(sentences)]
        if len(problems) == found:
            _captions(raws, problems, source)
        path = _value(entry, "filename", str, problems, source)
        folder = _value(entry, "filepath", str, problems, source) if "filepath" in entry else ""  # of COCO: val2014
        if len(problems) == found:
            parsed.records.append(Record(f"{folder}/{path}" if folder else path, tuple(raws), i, split, source))
    return parsed


# -- Reed's captions of CUB and Oxford Flowers ------------------------------------------------------------------


def parse_reed(root: Path, flat: bool = False) -> Parsed:
    """text_c10/CLASS/IMAGE.txt, a caption a line, and lists of classes; a class's number is its identity.

    The folders mix .txt with the authors' .t7 and .h5 files, which are passed over. Where trainclasses.txt or
    valclasses.txt is absent, trainvalclasses.txt trains.

    Args:
        flat: the pictures lie in one folder (Flowers); else in a folder a class (CUB).
    """
    base = next(
        (b for b in (root, root / "cvpr2016_cub", root / "cvpr2016_flowers") if (b / "text_c10").is_dir()), root
    )
    parsed = Parsed("text_c10")
    texts = base / "text_c10"
    if not texts.is_dir():
        parsed.problems.append(f"{root / 'text_c10'}: no such folder of captions")
    listed = ("train", "val") if all((base / f"{n}classes.txt").exists() for n in ("train", "val")) else ("trainval",)
    split_of: dict[str, str] = {}
    for name in (*listed, "test"):
        for class_name in _class_list(base / f"{name}classes.txt", parsed):
            split = "train" if name == "trainval" else name
            if re.search(r"^\.|[/\\\0]", class_name) or len(class_name) > 200:  # it becomes a folder's name
                parsed.problems.append(f"{name}classes.txt: {show.repr(class_name)}: expected a class name")
                continue
            if class_name in split_of:
                parsed.problems.append(
                    f"{name}classes.txt: {class_name} also stands in the {split_of[class_name]} split: are the lists "
                    "of one origin? (Xian et al.'s lists have the names of Reed et al.'s)"
                )
            split_of.setdefault(class_name, split)
    parsed.unreadable = bool(parsed.problems) and not (texts.is_dir() and split_of)
    if parsed.unreadable:
        return parsed
    numbered: dict[int, str] = {}
    refuse = path_guard(texts, root)
    for class_name, split in sorted(split_of.items()):
        number = re.search(r"\d{1,18}", class_name)
        files = sorted((texts / class_name).glob("*.txt"))
        if number is None or not files:
            what = "a name with a number" if number is None else "captions (*.txt) in text_c10"
            parsed.problems.append(f"class {class_name} ({split} split): expected {what}")
            continue
        if (other := numbered.setdefault(int(number[0]), class_name)) != class_name:
            parsed.problems.append(f"class {class_name} ({split} split): its number, {number[0]}, is that of {other}")
        for file in files:
            image = f"{file.stem}.jpg" if flat else f"{class_name}/{file.stem}.jpg"
            source = f"text_c10/{class_name}/{file.name}"
            if reason := refuse(f"{class_name}/{file.name}"):
                parsed.problems.append(f"{source}: {reason}")
                continue
            captions = _caption_lines(file, source, parsed)
            if captions:
                parsed.records.append(Record(image, captions, int(number[0]), split, source))
    unlisted = {p.name for p in texts.iterdir() if p.is_dir()} - set(split_of)
    if unlisted:
        parsed.warnings.append(
            f"{len(unlisted)} classes stand in no list and are not used: {', '.join(sorted(unlisted)[:5])}"
        )
    return parsed


def _class_list(path: Path, parsed: Parsed) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        reason = "no such list of classes" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
        parsed.problems.append(f"{path}: {reason}")
        return []


def _caption_lines(file: Path, source: str, parsed: Parsed) -> tuple[str, ...]:
    """The lines with words. Others are left out with a warning: the published folders may hold some."""
    try:
        if not file.is_file():
            raise OSError("not a regular file")
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        parsed.problems.append(f"{source}: not readable ({error})")
        return ()
    if "\ufffd" in text:
        parsed.warnings.append(f"{source}: it is not UTF-8 throughout; the bytes in question were replaced")
    lines = text.rstrip().split("\n")  # splitlines would also break at form feeds and Unicode's separators
    for i, line in enumerate(lines, 1):
        if not line.strip():
            parsed.warnings.append(f"{source}: line {i}: an empty caption, left out")
    return _captions([line.strip() for line in lines if line.strip()], parsed.problems, source)


# -- tables of one's own ----------------------------------------------------------------------------------------

_HELD_OUT = 0.1  # of the identities for validation, and as many for the test, where a table has no splits


def parse_table(root: Path) -> Parsed:
    """A CSV or Parquet file with the columns image_path, caption, and optionally identity and split; a row a caption.

    Rows of the same picture are one record. Without identities every picture is its own; identities that are not all
    whole numbers are numbered in the order of their names. Without splits, identities are drawn by `by_hash`.
    """
    parsed = Parsed("captions.csv", unreadable=True)
    rows = _read_table(root, parsed)
    if rows is None:
        return parsed
    parsed.unreadable = False
    columns = rows[0][1].keys() if rows else {}
    parsed.kind = "identity" if "identity" in columns else "instance"
    pictures: dict[str, dict[str, Any]] = {}
    for i, row in rows:
        _add_row(row, f"{parsed.file} row {i}", pictures, parsed.problems)
    names = sorted({p["identity"] for p in pictures.values()})
    number = _numbered(names, parsed)
    splits = {} if "split" in columns or not names else _made_splits(names, parsed)
    parsed.records = [
        Record(path, tuple(p["captions"]), number[p["identity"]], p.get("split") or splits[p["identity"]], p["source"])
        for path, p in pictures.items()
    ]
    return parsed


def _numbered(names: list[str], parsed: Parsed) -> dict[str, int]:
    """The identities' own numbers where all are whole and differ (pandas writes 3.0 for 3), else positions by name."""
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


def _read_table(root: Path, parsed: Parsed) -> list[tuple[int, dict[str, Any]]] | None:
    """The rows of the columns we read, counted from 1 below the header; None where there is no such table."""
    files = sorted(f for f in root.glob("*") if f.suffix.lower() in (".csv", ".parquet"))
    named = [f for f in files if f.stem == "captions"]
    chosen = named if len(named) == 1 else files
    if len(chosen) != 1:
        found = ", ".join(f.name for f in files) or "none"
        parsed.problems.append(f"{root}: expected one table, captions.csv or captions.parquet; found {found}")
        return None
    parsed.file = chosen[0].name
    try:
        if not chosen[0].is_file():
            raise OSError("not a regular file")
        read = _csv_rows if chosen[0].suffix.lower() == ".csv" else _parquet_rows
        header, rows = read(chosen[0], parsed)
    except Exception as error:  # csv and pyarrow raise many kinds for a damaged file
        parsed.problems.append(f"{chosen[0]}: not readable as a table ({type(error).__name__}: {error})")
        return None
    columns = ("image_path", "caption", "identity", "split")
    missing, twice = [c for c in columns[:2] if c not in header], [c for c in columns if header.count(c) > 1]
    if missing or twice:
        what = f"no column {', '.join(sorted(missing))}" if missing else f"two columns {twice[0]}"
        parsed.problems.append(f"{parsed.file}: {what}; it has {', '.join(header)}")
        return None
    places = {c: header.index(c) for c in columns if c in header}
    return [(i, {c: row[k] for c, k in places.items()}) for i, row in rows]


def _csv_rows(path: Path, parsed: Parsed) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    """All values as text, so that a caption "NA" or an identity 007 stays what it is."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header, *rows = [row for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    uneven = [(i, row) for i, row in enumerate(rows, 1) if len(row) != len(header)]
    for i, row in uneven:
        parsed.problems.append(
            f"{parsed.file} row {i}: {len(row)} values; expected {len(header)} (a caption with a comma needs quotes)"
        )
    return [c.strip() for c in header], [(i, row) for i, row in enumerate(rows, 1) if len(row) == len(header)]


def _parquet_rows(path: Path, parsed: Parsed) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    table = pq.read_table(path)
    columns = [column.to_pylist() for column in table.columns]
    return [c.strip() for c in table.column_names], list(enumerate(map(list, zip(*columns, strict=True)), 1))


# As other tools write what is not there; read as a name, it would make one person of all who have none.
_MISSING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "inf", "-inf"}


def _identity(value: Any, problems: list[str], source: str) -> str:
    """An identity of a table as text: a name, or a whole number in any form."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        problems.append(f"{source}: identity is empty")
    elif not isinstance(value, int | str) or isinstance(value, bool) or str(value) in _MISSING:
        problems.append(f"{source}: identity = {show.repr(value)}: expected a name or a whole number")
    return str(value)


def _add_row(row: dict[str, Any], source: str, pictures: dict[str, dict[str, Any]], problems: list[str]) -> None:
    found = len(problems)
    row = {k: v.strip() if isinstance(v, str) else v for k, v in row.items()}
    path = row["image_path"]
    if path in ("", None):
        problems.append(f"{source}: image_path is empty")
    elif not isinstance(path, str):
        problems.append(f"{source}: image_path = {show.repr(path)}: expected str")
    _captions([row["caption"]], problems, source)
    values: dict[str, Any] = {}
    if "identity" in row:
        values["identity"] = _identity(row["identity"], problems, source)
    if "split" in row:
        values["split"] = _split(row["split"] or "", problems, source)
    if len(problems) > found:
        return
    picture = pictures.setdefault(path, {"identity": path, **values, "captions": [], "source": source})
    for key, value in values.items():
        if picture[key] != value:
            problems.append(
                f"{source}: {key} {show.repr(value)} of {path}: {picture['source']} says {show.repr(picture[key])}"
            )
            return
    picture["captions"].append(row["caption"])


def _made_splits(names: list[str], parsed: Parsed) -> dict[str, str]:
    """{identity: split}: by hash, 80 % train, 10 % val, 10 % test, of each at least one where there are three."""
    ordered = by_hash(names)
    few = max(1, round(_HELD_OUT * len(ordered)))
    val, test = set(ordered[:few]), set(ordered[few : 2 * few])
    parsed.notes.append(
        f"{parsed.file} has no column split: {len(ordered) - 2 * few}/{few}/{few} identities were made train/val/test, "
        "in the order of their names' SHA-256 (the same on every machine)"
    )
    return {n: "val" if n in val else "test" if n in test else "train" for n in names}
