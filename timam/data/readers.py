"""Reading a data set by name: annotation and layout -> checked records, with every problem named."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from timam.data.datasets import DATASETS
from timam.data.parsing import by_hash
from timam.data.records import SPLITS, DataError, Dataset, Record, find_conflicts, path_guard
from timam.data.tables import COLUMNS
from timam.embedded import container


def load_dataset(
    name: str,
    root: Path | str,
    required_splits: tuple[str, ...] = SPLITS,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Reads and checks a data set. Pictures must exist; they are not decoded here.

    Args:
        name: one of `DATASETS`.
        root: the folder of annotation and pictures.
        required_splits: these must not be empty.
        columns: for tables, {"image_path", "caption", "identity" or "split": the column to read it from}.

    Raises:
        ValueError: an unknown name, or columns for a data set that has none.
        DataError: every problem of annotation and records.
    """
    dataset, problems = read_dataset(name, root, columns)
    present = {r.split for r in dataset.records}
    if not problems:
        problems = [f"the {s} split has no identities" for s in required_splits if s not in present]
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
    if unknown := set(columns or ()) - set(COLUMNS):
        raise ValueError(f"unknown columns {', '.join(sorted(unknown))}: expected some of {', '.join(COLUMNS)}")
    parsed = spec.parse(root, columns=columns) if columns else spec.parse(root)
    kind, records, problems = parsed.kind or spec.kind, parsed.records, list(parsed.problems)
    published = f"{name} is published here: {spec.source}; {root} must then hold {spec.layout}"
    folders = [root / f for f in spec.image_folders if (root / f).is_dir()]
    if not records and not problems:
        problems.append(f"{root / parsed.file}: it holds no records")
    if not folders:
        problems.append(f"{root}: no folder of pictures; expected {' or '.join(spec.image_folders)}")
    if not records or not folders:
        return Dataset(name, kind, root, ()), [*problems, published]
    # Reed's archive has a folder images/ of features; the right folder is the one that holds the pictures.
    image_root = max(folders, key=lambda f: sum(os.path.isfile(container(f / r.image)) for r in records[:20]))
    conflicts = find_conflicts(records, kind)
    records, unusable = _with_pictures(records, image_root, root)
    if records and not any(os.path.isfile(container(image_root / r.image)) for r in records):
        problems.append(f"{image_root}: none of the {len(records):,} pictures; {published}")
    problems += unusable + conflicts
    notes = [*parsed.notes, *_linked_folders(records, image_root, root)]
    splits = {r.split for r in records}
    if spec.holds_out and "train" in splits and "val" not in splits:
        records, note = _hold_out(records)
        notes.append(note)
    return Dataset(name, kind, image_root, tuple(records), tuple(notes), tuple(parsed.warnings), spec.folds), problems


def _hold_out(records: list[Record]) -> tuple[list[Record], str]:
    """Moves a tenth of the training identities, the first by `by_hash`, to validation. Returns records and a note."""
    identities = by_hash({r.identity for r in records if r.split == "train"})
    held = set(identities[: max(1, len(identities) // 10)])
    moved = [replace(r, split="val") if r.split == "train" and r.identity in held else r for r in records]
    return moved, (
        f"no validation split is given: {len(held)} of {len(identities)} training identities are held out for it "
        "(those whose number has the lowest SHA-256, the same on every machine)"
    )


def _with_pictures(records: list[Record], image_root: Path, root: Path) -> tuple[list[Record], list[str]]:
    """The records whose path may be read, and a line for each picture that must not be read or does not exist."""
    usable, problems, refuse = [], [], path_guard(image_root, root)
    for r in records:
        if reason := refuse(r.image):
            problems.append(f"{r.source}: picture {reason}")
            continue
        usable.append(r)
        if not container(image_root / r.image).is_file():
            problems.append(f"{r.source}: no such picture: {image_root / r.image}")
    return usable, problems


def _linked_folders(records: list[Record], image_root: Path, root: Path) -> list[str]:
    """A note if folders of pictures are links that lead out of the root."""
    inside = root.resolve()
    parents = sorted({image_root / Path(r.image).parent for r in records})
    linked = [p.relative_to(root).as_posix() for p in parents if not p.resolve().is_relative_to(inside)]
    shown = ", ".join(linked[:5]) + (f" and {len(linked) - 5} more" if len(linked) > 5 else "")
    return [f"links lead out of the root to the pictures of {shown}"] if linked else []
