"""Annotation files of the benchmarks' layouts -> records. A bad record costs a line in `problems`, never the rest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from timam.data.records import SPLITS, Record


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        parsed.problems.append(f"{root / ' or '.join(files)}: no such annotation file")
    except (OSError, ValueError, RecursionError) as error:
        parsed.problems.append(f"{path}: not readable as JSON ({error})")
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
        problems.append(f"{source}: no key {key!r}; it has {', '.join(map(repr, sorted(record)))}")
    elif type(record[key]) is not kind:
        problems.append(f"{source}: {key} = {record[key]!r}: expected {kind.__name__}")
    else:
        return record[key]
    return None


def _captions(values: list[Any] | None, problems: list[str], source: str) -> tuple[str, ...]:
    """The captions; None, whose reason is among the problems already, gives none."""
    if values == []:
        problems.append(f"{source}: it has no captions")
    for i, caption in enumerate(values or []):
        if not isinstance(caption, str) or not caption.strip() or re.search(r"[\ud800-\udfff]", caption):
            problems.append(f"{source}: caption {i} = {caption!r}: expected a sentence")
    return tuple(values or [])


def _split(name: Any, problems: list[str], source: str) -> str:
    """Karpathy's `restval` (pictures of the validation set beyond its 5,000) trains, as in the literature."""
    if name == "restval":
        return "train"
    if name is not None and name not in SPLITS:
        problems.append(f"{source}: unknown split {name!r}: expected {', '.join(SPLITS)}")
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
                problems.append(f"{source}: neither {path!r} nor id {identity} stands in a split file")
        if len(problems) == found:
            parsed.records.append(Record(path, captions, identity, split, source))
    return parsed


def _split_files(root: Path, parsed: Parsed) -> dict[Any, str]:
    """{picture path or identity: split} from the files that accompany caption_all.json in the field's repositories.

    Either split.json, {"train": [...], "val": [...], "test": [...]}, or a file each: train_reid.json or train.json,
    a list (or {"annotations": list}) of paths, identities or records with `file_path`.
    """
    splits: dict[Any, str] = {}
    whole = _read_json(root, ("split.json",))[0] if (root / "split.json").exists() else {}
    for name in SPLITS:
        files = tuple(f for f in (f"{name}_reid.json", f"{name}.json") if (root / f).exists())
        members = _read_json(root, files)[0] if files else whole.get(name, []) if isinstance(whole, dict) else []
        if isinstance(members, dict):
            members = members.get("annotations", [])
        for member in members or []:
            key = member.get("file_path") if isinstance(member, dict) else member
            if splits.setdefault(key, name) != name:
                parsed.problems.append(f"split files: {key!r} stands in {splits[key]} and in {name}")
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
            if class_name in split_of:
                parsed.problems.append(
                    f"{name}classes.txt: {class_name} also stands in the {split_of[class_name]} split: are the lists "
                    "of one origin? (Xian et al.'s lists have the names of Reed et al.'s)"
                )
            split_of.setdefault(class_name, split)
    parsed.unreadable = bool(parsed.problems) and not (texts.is_dir() and split_of)
    if parsed.unreadable:
        return parsed
    for class_name, split in sorted(split_of.items()):
        number = re.search(r"\d+", class_name)
        files = sorted((texts / class_name).glob("*.txt"))
        if number is None or not files:
            what = "a name with a number" if number is None else "captions (*.txt) in text_c10"
            parsed.problems.append(f"class {class_name} ({split} split): expected {what}")
            continue
        for file in files:
            image = f"{file.stem}.jpg" if flat else f"{class_name}/{file.stem}.jpg"
            source = f"text_c10/{class_name}/{file.name}"
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
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = "no such list of classes" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
        parsed.problems.append(f"{path}: {reason}")
        return []


def _caption_lines(file: Path, source: str, parsed: Parsed) -> tuple[str, ...]:
    """The lines with words. Others are left out with a warning: the published folders may hold some."""
    content = file.read_bytes()
    text = content.decode("utf-8", errors="replace")
    if "\ufffd" in text:
        parsed.warnings.append(f"{source}: it is not UTF-8 throughout; the bytes in question were replaced")
    lines = text.rstrip().splitlines()
    for i, line in enumerate(lines, 1):
        if not line.strip():
            parsed.warnings.append(f"{source}: line {i}: an empty caption, left out")
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        parsed.problems.append(f"{source}: it has no captions")
    return captions


# -- tables of one's own ----------------------------------------------------------------------------------------

_HELD_OUT = 0.1  # of the identities for validation, and as many for the test, where a table has no splits


def parse_table(root: Path) -> Parsed:
    """A CSV or Parquet file with the columns image_path, caption, and optionally identity and split; a row a caption.

    Rows of the same picture are one record. Without identities every picture is its own; identities that are not all
    whole numbers are numbered in the order of their names. Without splits, identities are drawn by `by_hash`.
    """
    parsed = Parsed("captions.csv", unreadable=True)
    table = _read_table(root, parsed)
    if table is None:
        return parsed
    missing = {"image_path", "caption"} - set(table.columns)
    if missing:
        parsed.problems.append(
            f"{parsed.file}: no column {', '.join(sorted(missing))}; it has {', '.join(map(str, table.columns))}"
        )
        return parsed
    parsed.unreadable = False
    parsed.kind = "identity" if "identity" in table else "instance"
    columns = [c for c in ("image_path", "caption", "identity", "split") if c in table]
    pictures: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(table[columns].to_dict("records"), 1):  # rows count from 1, below the header
        _add_row({str(k): v for k, v in row.items()}, f"{parsed.file} row {i}", pictures, parsed.problems)
    names = sorted({p["identity"] for p in pictures.values()})
    number = {n: int(n) for n in names} if all(re.fullmatch(r"-?\d+", n) for n in names) else {}
    number = number if len(set(number.values())) == len(names) else {n: i for i, n in enumerate(names)}
    splits = {} if "split" in table else _made_splits(names, parsed)
    parsed.records = [
        Record(path, tuple(p["captions"]), number[p["identity"]], p.get("split") or splits[p["identity"]], p["source"])
        for path, p in pictures.items()
    ]
    return parsed


def _read_table(root: Path, parsed: Parsed) -> pd.DataFrame | None:
    """All values as text, so that a caption "NA" or an identity 007 stays what it is."""
    files = sorted(f for f in root.glob("*") if f.suffix.lower() in (".csv", ".parquet"))
    named = [f for f in files if f.stem == "captions"]
    chosen = named if len(named) == 1 else files
    if len(chosen) != 1:
        found = ", ".join(f.name for f in files) or "none"
        parsed.problems.append(f"{root}: expected one table, captions.csv or captions.parquet; found {found}")
        return None
    parsed.file = chosen[0].name
    try:
        if chosen[0].suffix.lower() == ".csv":
            table = pd.read_csv(chosen[0], dtype=str, keep_default_na=False, encoding="utf-8-sig")
        else:
            raw = pd.read_parquet(chosen[0])
            table = raw.astype(object).where(raw.notna(), "").map(str)
    except (OSError, ValueError) as error:  # pandas's and pyarrow's own errors are ValueErrors
        parsed.problems.append(f"{chosen[0]}: not readable as a table ({error})")
        return None
    return table.rename(columns=lambda c: str(c).strip())


def _add_row(row: dict[str, str], source: str, pictures: dict[str, dict[str, Any]], problems: list[str]) -> None:
    path, found = row["image_path"].strip(), len(problems)
    if not path:
        problems.append(f"{source}: image_path is empty")
    _captions([row["caption"]], problems, source)
    values: dict[str, Any] = {key: row[key].strip() for key in ("identity", "split") if key in row}
    if values.get("identity") == "":
        problems.append(f"{source}: identity is empty")
    if "split" in values:
        values["split"] = _split(values["split"], problems, source)
    if len(problems) > found:
        return
    picture = pictures.setdefault(path, {"identity": path, **values, "captions": [], "source": source})
    for key, value in values.items():
        if picture[key] != value:
            problems.append(f"{source}: {key} {value!r} of {path}: {picture['source']} says {picture[key]!r}")
            return
    picture["captions"].append(row["caption"].strip())


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
