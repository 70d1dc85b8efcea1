"""Readers: an annotation file of a benchmark's layout -> checked records, with every problem named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timam.data.records import SPLITS, DataError, Dataset, Record, find_conflicts


@dataclass(frozen=True)
class _Reader:
    """Layout of one benchmark: annotation file, picture folders tried in order, relevance, and its parser."""

    annotation: str
    image_folders: tuple[str, ...]
    kind: str
    parse: Callable[[Any, str], tuple[list[Record], list[str]]]
    published: str  # where the data is published and how to get it


def load_dataset(name: str, root: Path | str, required_splits: tuple[str, ...] = SPLITS) -> Dataset:
    """Reads and checks a data set.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the annotation file and the pictures.
        required_splits: those that must not be empty.

    Raises:
        ValueError: an unknown name.
        DataError: every problem found in file and records; pictures are only looked for here, decoded later.
    """
    dataset, problems = read_dataset(name, root)
    present = {r.split for r in dataset.records}
    if not problems:
        problems = [f"the {s} split has no identities" for s in required_splits if s not in present]
    if problems:
        raise DataError(f"{name} in {root}", problems)
    return dataset


def read_dataset(name: str, root: Path | str) -> tuple[Dataset, list[str]]:
    """As `load_dataset`, but returns what could be read beside the problems."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")
    reader, root = DATASETS[name], Path(root)
    image_root = next((root / f for f in reader.image_folders if (root / f).is_dir()), None)
    empty = Dataset(name, reader.kind, image_root or root, ())
    content, problems = _read_json(root / reader.annotation)
    if image_root is None:
        problems.append(f"{root}: no folder of pictures; expected {' or '.join(reader.image_folders)}")
    if problems:
        return empty, [*problems, f"where the data is published: {reader.published}"]
    records, problems = reader.parse(content, reader.annotation)
    if not records and not problems:
        problems = [f"{root / reader.annotation}: it holds no records"]
    problems += [p for r in records if (p := _missing_image(r, empty.image_root))]
    problems += find_conflicts(records, reader.kind)
    return Dataset(name, reader.kind, empty.image_root, tuple(records)), problems


def _read_json(path: Path) -> tuple[Any, list[str]]:
    try:
        return json.loads(path.read_text(encoding="utf-8")), []
    except FileNotFoundError:
        return None, [f"{path}: no such annotation file"]
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{path}: not readable as JSON ({error})"]


def _missing_image(record: Record, image_root: Path) -> str | None:
    """Why the record's picture cannot be used, if so; its content is decoded later."""
    path = image_root / record.image
    try:
        if not path.resolve().is_relative_to(image_root.resolve()):
            return f"{record.source}: picture path {record.image!r} leaves the data root {image_root}"
        if not path.is_file():
            return f"{record.source}: no such picture: {path}"
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL or lone surrogate
        return f"{record.source}: picture path {record.image!r}: {error}"
    return None


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


def _parse_person_search(content: Any, file: str) -> tuple[list[Record], list[str]]:
    """CUHK-PEDES: a list of {split, captions, file_path, id}."""
    if not isinstance(content, list):
        return [], [f"{file}: expected a list of records, found {type(content).__name__}"]
    records: list[Record] = []
    problems: list[str] = []
    for i, entry in enumerate(content):
        source, found = f"{file} record {i}", len(problems)
        if not isinstance(entry, dict):
            problems.append(f"{source}: expected an object, found {type(entry).__name__}")
            continue
        split = _split(_value(entry, "split", str, problems, source), problems, source)
        captions = _captions(_value(entry, "captions", list, problems, source), problems, source)
        path = _value(entry, "file_path", str, problems, source)
        identity = _value(entry, "id", int, problems, source)
        if len(problems) == found:
            records.append(Record(path, captions, identity, split, source))
    return records, problems


def _parse_karpathy(content: Any, file: str) -> tuple[list[Record], list[str]]:
    """Karpathy's json: {"images": [{filename, split, sentences: [{raw}]}]}; every picture is its own identity."""
    problems: list[str] = []
    images = _value(content, "images", list, problems, file)
    records = []
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
            records.append(Record(f"{folder}/{path}" if folder else path, tuple(raws), i, split, source))
    return records, problems


_PEDESTRIANS = "rendered here: timam data pedestrians --output DIR"
_CUHK = "on request from its authors: https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description"
_FLICKR = (
    "pictures on request at https://shannon.cs.illinois.edu/DenotationGraph; dataset_flickr30k.json with "
    "Karpathy's splits at https://cs.stanford.edu/people/karpathy/deepimagesent"
)

DATASETS: dict[str, _Reader] = {
    "pedestrians": _Reader("reid_raw.json", ("imgs",), "identity", _parse_person_search, _PEDESTRIANS),
    "cuhk-pedes": _Reader("reid_raw.json", ("imgs",), "identity", _parse_person_search, _CUHK),
    "flickr30k": _Reader(
        "dataset_flickr30k.json", ("flickr30k-images", "images"), "instance", _parse_karpathy, _FLICKR
    ),
}
