"""The data sets, each declared once in datasets.yaml, and reading one by name: every problem is named."""

import os.path
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from timam.data import annotations as benchmarks
from timam.data import folders, tables
from timam.data.parsing import Parsed, by_hash
from timam.data.records import DataError, Dataset, Record, find_conflicts, path_guard
from timam.embedded import container

Counts = list[int | None]  # [pictures, captions, identities or classes]; None: no source states it

_PARSERS: dict[str, Callable[..., Parsed]] = {
    name.removeprefix("parse_"): parser
    for module in (benchmarks, folders, tables)
    for name, parser in vars(module).items()
    if name.startswith("parse_")
}


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as published, and how it is read: parse_PARSER(ROOT, **options)."""

    kind: str  # what is relevant: as `Dataset.kind`; the parser may decide otherwise
    parser: str
    image_folders: list[str]  # where in ROOT the pictures may lie; "." is ROOT itself
    layout: str  # what ROOT must hold
    source: str  # where it is published, and who hands it out on request
    terms: str  # its licence or conditions
    options: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Counts] = field(default_factory=dict)  # {split, or splits joined by "+": counts}
    # {what to tell the user: counts of another version that is around}
    versions: dict[str, dict[str, Counts]] = field(default_factory=dict)
    holds_out: bool = False  # without a validation split, some training identities become one
    folds: int = 1  # the test split is also searched in so many parts, whose results are averaged (COCO's 1K protocol)
    has_columns: bool = False  # the parser takes columns={...}


_DECLARED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DATASETS: dict[str, DatasetSpec] = {name: DatasetSpec(**entry) for name, entry in _DECLARED.items()}


def load_dataset(name: str, root: Path | str, columns: Mapping[str, str] | None = None) -> Dataset:
    """Reads and checks a data set of `DATASETS`. Pictures must exist; they are not decoded here.

    Args:
        root: the folder of annotation and pictures; for csv and parquet, also the table itself.
        columns: for tables, {"image_path", "caption", "identity" or "split": the column to read it from}.

    Raises ValueError for an unknown name, and DataError with every problem of annotation and records.
    """
    dataset, problems = read_dataset(name, root, columns)
    if problems:
        raise DataError(f"{name} in {root}", problems)
    return dataset


def read_dataset(name: str, root: Path | str, columns: Mapping[str, str] | None = None) -> tuple[Dataset, list[str]]:
    """As `load_dataset`, but returns the usable records and the problems."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")
    spec, root = DATASETS[name], Path(root)
    if columns and not spec.has_columns:
        raise ValueError(f"{name} has no columns that could have other names")
    if unknown := set(columns or ()) - set(tables.COLUMNS):
        raise ValueError(f"unknown columns {', '.join(sorted(unknown))}: expected some of {', '.join(tables.COLUMNS)}")
    options = {**spec.options, "columns": columns} if columns else spec.options
    parsed = _PARSERS[spec.parser](root, **options)
    if root.is_file() and spec.parser in ("table", "parquet"):
        root = root.parent
    kind, records, problems = parsed.kind or spec.kind, parsed.records, list(parsed.problems)
    origin = "" if spec.source == "your own" else f"{name} is published here: {spec.source}; "
    published = f"{origin}{root} must hold {spec.layout}"
    candidates = [root / f for f in spec.image_folders if (root / f).is_dir()]
    if not records and not problems:
        problems.append(f"{root / parsed.file}: it holds no records")
    if not candidates:
        problems.append(f"{root}: no folder of pictures; expected {' or '.join(spec.image_folders)}")
    if not records or not candidates:
        return Dataset(name, kind, root, ()), [f"{problems[0]}; {published}", *problems[1:]]
    # Reed's archive has a folder images/ of features; the right folder is the one that holds the pictures.
    image_root = max(candidates, key=lambda f: sum(os.path.isfile(container(f / r.image)) for r in records[:20]))
    conflicts = find_conflicts(records, kind)
    records, unusable = _with_pictures(records, image_root, root)
    if records and not any(os.path.isfile(container(image_root / r.image)) for r in records):
        problems.append(f"{image_root}: none of the {len(records):,} pictures; {published}")
    problems += unusable + conflicts
    splits = {r.split for r in records}
    if spec.holds_out and "train" in splits and "val" not in splits:
        records = _hold_out(records, parsed)
    notes, warnings = tuple(parsed.notes), tuple(parsed.warnings)
    return Dataset(name, kind, image_root, tuple(records), notes, warnings, spec.folds), problems


def _hold_out(records: list[Record], parsed: Parsed) -> list[Record]:
    """Moves a tenth of the training identities, the first by `by_hash`, to validation; a note says so."""
    identities = by_hash({r.identity for r in records if r.split == "train"})
    held = set(identities[: max(1, len(identities) // 10)])
    parsed.notes.append(
        f"no validation split is given: {len(held)} of {len(identities)} training identities are held out for it "
        "(those whose number has the lowest SHA-256, the same on every machine)"
    )
    return [replace(r, split="val") if r.split == "train" and r.identity in held else r for r in records]


def _with_pictures(records: list[Record], image_root: Path, root: Path) -> tuple[list[Record], list[str]]:
    """The records whose path may be read, and a line for each picture that must not be read or does not exist."""
    refuse = path_guard(image_root, root)
    reasons = [refuse(r.image) for r in records]
    problems = [f"{r.source}: picture {reason}" for r, reason in zip(records, reasons, strict=True) if reason]
    usable = [r for r, reason in zip(records, reasons, strict=True) if not reason]
    absent = [r for r in usable if not container(image_root / r.image).is_file()]
    return usable, problems + [f"{r.source}: no such picture: {image_root / r.image}" for r in absent]
