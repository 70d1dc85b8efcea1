"""Reading a data set by name: layout -> checked records, with every problem named.

`formats` knows the annotation files; `benchmarks` what is published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from timam.data import formats
from timam.data.benchmarks import BENCHMARKS
from timam.data.records import SPLITS, DataError, Dataset, Record, find_conflicts, path_guard


@dataclass(frozen=True)
class _Reader:
    """How one data set is read: relevance, the parser of its annotation, and the folders its pictures may lie in."""

    kind: str
    parse: Callable[[Path], formats.Parsed]
    image_folders: tuple[str, ...]
    holds_out: bool = False  # validation identities are taken from training where none are published


_KARPATHY = formats.parse_karpathy
_PERSONS = formats.parse_person_search

DATASETS: dict[str, _Reader] = {
    "pedestrians": _Reader("identity", partial(_PERSONS, files=("reid_raw.json",)), ("imgs",)),
    "cuhk-pedes": _Reader("identity", partial(_PERSONS, files=("reid_raw.json", "caption_all.json")), ("imgs",)),
    "icfg-pedes": _Reader(
        "identity", partial(_PERSONS, files=("ICFG-PEDES.json", "ICFG_PEDES.json")), ("imgs",), holds_out=True
    ),
    "rstp-reid": _Reader(
        "identity", partial(_PERSONS, files=("data_captions.json",), path_key="img_path"), ("imgs",)
    ),
    "flickr8k": _Reader(
        "instance", partial(_KARPATHY, file="dataset_flickr8k.json"),
        ("Flicker8k_Dataset", "Flickr8k_Dataset", "images"),
    ),
    "flickr30k": _Reader(
        "instance", partial(_KARPATHY, file="dataset_flickr30k.json"), ("flickr30k-images", "images")
    ),
    "coco": _Reader("instance", partial(_KARPATHY, file="dataset_coco.json"), ("images", ".")),
    "cub": _Reader("class", formats.parse_reed, ("CUB_200_2011/images", "images"), holds_out=True),
    "flowers": _Reader("class", partial(formats.parse_reed, flat=True), ("jpg",), holds_out=True),
    "csv": _Reader("identity", formats.parse_table, (".",), holds_out=True),
}  # fmt: skip


def load_dataset(name: str, root: Path | str, required_splits: tuple[str, ...] = SPLITS) -> Dataset:
    """Reads and checks a data set.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds annotation and pictures.
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
    reader, benchmark, root = DATASETS[name], BENCHMARKS[name], Path(root)
    parsed = reader.parse(root)
    records, problems = parsed.records, list(parsed.problems)
    folders = [root / f for f in reader.image_folders if (root / f).is_dir()]
    if not folders:
        problems.append(f"{root}: no folder of pictures; expected {' or '.join(reader.image_folders)}")
    # Reed's archive has a folder images/ too, of features: the right folder is the one with the pictures.
    first = [r.image for r in records[:20]]
    image_root = next((f for f in folders if any(_exists(f / i) for i in first)), folders[0] if folders else root)
    published = f"{name} is published here: {benchmark.source}; {root} must then hold {benchmark.layout}"
    if parsed.unreadable or not folders:
        problems.append(published)
        return Dataset(name, parsed.kind or reader.kind, image_root, ()), problems
    if not records and not problems:
        problems.append(f"{root / parsed.file}: it holds no records")
    kind = parsed.kind or reader.kind
    conflicts = find_conflicts(records, kind)
    records, unusable = _with_pictures(records, image_root, root)
    if records and not any(_exists(image_root / r.image) for r in records):  # else one archive may be missing
        problems.append(f"{image_root}: none of the {len(records):,} pictures; {published}")
    problems += unusable + conflicts
    notes = [*parsed.notes, *_linked_folders(records, image_root, root)]
    splits = {r.split for r in records}
    if reader.holds_out and "train" in splits and "val" not in splits:
        records, note = hold_out(records)
        notes.append(note)
    dataset = Dataset(name, kind, image_root, tuple(records), tuple(notes), tuple(parsed.warnings), benchmark.folds)
    return dataset, problems


def hold_out(records: list[Record]) -> tuple[list[Record], str]:
    """Moves a tenth of the training identities (at least one) to validation: those of `formats.by_hash` come first.

    Returns:
        The records in their order, and a note that says so.
    """
    identities = formats.by_hash({r.identity for r in records if r.split == "train"})
    held = set(identities[: max(1, len(identities) // 10)])
    moved = [replace(r, split="val") if r.split == "train" and r.identity in held else r for r in records]
    return moved, (
        f"no validation split is given: {len(held)} of {len(identities)} training identities are held out for it "
        "(those whose number has the lowest SHA-256, the same on every machine)"
    )


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _with_pictures(records: list[Record], image_root: Path, root: Path) -> tuple[list[Record], list[str]]:
    """The records whose path may be read, and a line for each picture that cannot be used; they are decoded later."""
    usable, problems, refuse = [], [], path_guard(image_root, root)
    for r in records:
        if reason := refuse(r.image):
            problems.append(f"{r.source}: picture {reason}")
            continue
        usable.append(r)
        if not (image_root / r.image).is_file():
            problems.append(f"{r.source}: no such picture: {image_root / r.image}")
    return usable, problems


def _linked_folders(records: list[Record], image_root: Path, root: Path) -> list[str]:
    """A note where folders of pictures are links that lead out of the root."""
    inside = root.resolve()
    parents = sorted({image_root / Path(r.image).parent for r in records})
    linked = [p.relative_to(root).as_posix() for p in parents if not p.resolve().is_relative_to(inside)]
    shown = ", ".join(linked[:5]) + (f" and {len(linked) - 5} more" if len(linked) > 5 else "")
    return [f"links lead out of the root to the pictures of {shown}"] if linked else []
