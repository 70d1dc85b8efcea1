"""`timam data check`: everything that is wrong with a data set, and its counts beside the published ones."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from timam.data.datasets import DATASETS, Counts, read_dataset
from timam.data.records import SPLITS, Dataset, Record, plain, show
from timam.embedded import container, open_picture
from timam.images import find_unreadable

MAX_WORDS = 120  # most benchmarks have at most 100; UFine6926 has 81 on average, and captions by models are as long
FEW = 10  # identities of a split; with fewer, one of them moves rank-1 by more than a tenth
MAX_LOST = 0.05  # share of the captions that may be cut, and of tokens that may be unknown, without a warning
_COUNTS = ("images", "captions", "identities")

PROTOCOLS = {
    "identity": "relevant is every picture (or caption) of the same identity; rank-1/5/10, mAP, mINP, both directions",
    "instance": "relevant is the described picture, or any of its captions; rank-1/5/10, both directions",
    "class": "relevant is every picture of the same class; image-to-text rank-1, text-to-image AP@50 (and the ranks)",
}


def check_dataset(
    name: str,
    root: Path,
    columns: Mapping[str, str] | None = None,
    max_words: int = MAX_WORDS,
    progress: bool = False,
    tokenizer: Any = None,
    max_tokens: int = 0,
) -> dict[str, Any]:
    """Reads a data set whole and decodes every picture.

    Args:
        columns: as `load_dataset` takes them.
        max_words: longer captions are warned of.
        tokenizer, max_tokens: of transformers; also counts the captions with more tokens, and unknown tokens.

    Returns:
        {"dataset", "root", "protocol", "splits": {split: {"images", "captions", "identities", "words_mean",
        "words_max", "images_by_captions"}}, "published": {split or "train+val": {"images", "captions",
        "identities"}}, "problems": [...], "warnings": [...], "remarks": [...], "notes": [...]}. With problems the data
        set cannot be used; with warnings it can, but its numbers may mislead. Remarks are the warnings about what
        captions say, which may be meant so.

    Raises:
        ValueError: an unknown name.
    """
    dataset, problems = read_dataset(name, root, columns)
    splits = {s: _statistics(dataset, s) for s in SPLITS if any(r.split == s for r in dataset.records)}
    if not problems:
        problems += [f"the {s} split has no identities" for s in SPLITS if s not in splits]
    paths = [dataset.image_root / r.image for r in dataset.records]
    present = [p for p in paths if container(p).is_file()]
    problems += find_unreadable(present, progress and len(present) > 1000)
    spec = DATASETS[name]
    known = [message for message, counts in spec.versions.items() if not _differing(splits, counts)]
    warnings = [*dataset.warnings, *(f"not the published version: {message}" for message in known)]
    warnings += [*_partial_download(dataset), *_duplicates(dataset), *_long_captions(dataset, max_words)]
    warnings += _lost_identities(dataset)
    remarks, notes = [*_shared_captions(dataset), *_repeated_captions(dataset)], list(dataset.notes)
    if splits and (differing := _differing(splits, spec.published)):
        notes.append(f"a part or another version of the benchmark: {', '.join(differing)}")
    if tokenizer is not None and dataset.records:
        share, line = _tokens(dataset, tokenizer, max_tokens)
        (remarks if share > MAX_LOST else notes).append(line)
    for split, counts in splits.items():
        (warnings if counts["identities"] == 1 else notes).extend(too_few(split, counts["identities"]))
    folds = f"; also on {dataset.folds} folds of the test split" if dataset.folds > 1 else ""
    return {
        "dataset": name,
        "root": str(root),
        "protocol": f"{dataset.kind}: {PROTOCOLS[dataset.kind]}{folds}",
        "splits": splits,
        "published": {key: dict(zip(_COUNTS, counts, strict=True)) for key, counts in spec.published.items()},
        "problems": [plain(p) for p in problems],
        "warnings": [plain(w) for w in (*warnings, *remarks)],
        "remarks": [plain(r) for r in remarks],
        "notes": notes,
    }


def too_few(split: str, identities: int) -> list[str]:
    """A line for a validation or test split with fewer identities than `FEW`, else none."""
    small = split != "train" and identities < FEW
    number = "1 identity" if identities == 1 else f"{identities} identities"
    return [f"the {split} split has {number}: too few for rank-1 to mean anything"] * small


def found_beside_published(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table: {"split", "images", "images (published)", ...}; None where nothing is published.

    Splits that are published only together ("train+val") have a row of their own.
    """
    rows = []
    for key in dict.fromkeys([*report["splits"], *report["published"]]):
        row: dict[str, Any] = {"split": key}
        for what in _COUNTS:
            row[what] = _sum(report["splits"], key, what)
            row[f"{what} (published)"] = report["published"].get(key, {}).get(what)
        rows.append(row)
    return rows


def _sum(splits: dict[str, dict[str, Any]], key: str, what: str) -> int:
    return sum(splits[s][what] for s in key.split("+") if s in splits)


def _statistics(dataset: Dataset, name: str) -> dict[str, Any]:
    split = dataset.split(name)
    words = [len(c.split()) for c in split.captions]
    per_image = Counter(np.bincount(split.caption_image).tolist())
    return {
        "images": len(split.image_paths),
        "captions": len(split.captions),
        "identities": len(split.identities),
        "words_mean": float(np.mean(words)),
        "words_max": max(words),
        "images_by_captions": {str(k): n for k, n in sorted(per_image.items())},
    }


def _differing(splits: dict[str, dict[str, Any]], counts: dict[str, Counts]) -> list[str]:
    """The counts that are not the published ones, as text."""
    pairs = [(key, what, n) for key, known in counts.items() for what, n in zip(_COUNTS, known, strict=True)]
    sums = [(_sum(splits, key, what), what, key, n) for key, what, n in pairs if n is not None]
    return [f"{mine:,} {what} in {key}, published {n:,}" for mine, what, key, n in sums if mine != n]


def _partial_download(dataset: Dataset) -> list[str]:
    """Missing pictures by folder: a whole missing folder is often an archive that was not unpacked."""
    listed, absent = Counter[str](), Counter[str]()
    for r in dataset.records:
        folder = r.image.split("/")[0] if "/" in r.image else "."
        listed[folder] += 1
        absent[folder] += not container(dataset.image_root / r.image).is_file()
    folders = ", ".join(f"{f} {n:,} of {listed[f]:,}" for f, n in sorted(absent.items()) if n)
    missing = f"partial download: {absent.total():,} of {listed.total():,} pictures are missing, by folder: {folders}"
    return [missing] if folders else []


def _duplicates(dataset: Dataset) -> list[str]:
    """Pictures of the same bytes in different splits or of different identities. Files of unique sizes are not read.

    Where each picture is an identity of its own, those within a split have one line together.
    """
    by_size = defaultdict(list)
    for r in dataset.records:
        path = dataset.image_root / r.image
        if (file := container(path)).is_file():
            by_size[file.stat().st_size if file == path else 0].append(r)
    warnings, twins = [], []
    for records in by_size.values():
        first: dict[bytes, Record] = {}
        for r in records if len(records) > 1 else ():
            try:
                source = open_picture(dataset.image_root / r.image)
                content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
            except (OSError, ValueError):  # `find_unreadable` has named it
                continue
            other = first.setdefault(hashlib.sha256(content).digest(), r)
            if other is r:
                continue
            mine, its = (
                f"split {o.split}" + (f", identity {o.identity}" if dataset.kind != "instance" else "")
                for o in (r, other)
            )
            if mine != its:
                same = f"has the bytes of {other.image} ({its}; {other.source})"
                warnings.append(f"{r.source}: picture {r.image} ({mine}) {same}")
            elif dataset.kind == "instance":
                twins.append(f"{r.image} ({r.source}) those of {other.image} ({other.source})")
    if twins:
        wrong = "each counts as a picture of its own, and so as a wrong answer to the other's captions"
        warnings.append(f"{len(twins):,} pictures have the bytes of another one in their split: {wrong}: {twins[0]}")
    return warnings


def _shared_captions(dataset: Dataset) -> list[str]:
    """One caption of three or more identities: it cannot tell them apart, and is often a default text."""
    identities = defaultdict(set)
    for r in dataset.records if dataset.kind == "identity" else ():
        for caption in r.captions:
            identities[caption.strip().lower()].add(r.identity)
    shared = sorted(((len(who), text) for text, who in identities.items() if len(who) > 2), reverse=True)
    worst = "; ".join(f"{show.repr(text)} ({n} identities)" for n, text in shared[:5])
    return [f"{len(shared):,} captions stand under three or more identities, most often {worst}"] if shared else []


def _repeated_captions(dataset: Dataset) -> list[str]:
    """One caption several times under a picture, as of rows that a table has twice."""
    pictures = [r.source for r in dataset.records if len(set(r.captions)) < len(r.captions)]
    told = f"{len(pictures):,} pictures have one caption several times, each time a query of its own; the first is "
    return [told + pictures[0]] if pictures else []


def _lost_identities(dataset: Dataset) -> list[str]:
    """Pictures without identities, as many as a data set of identities has: a copy that lost them."""
    warnings = []
    for name, spec in DATASETS.items() if dataset.kind == "instance" else ():
        parts = [pictures for pictures, _, _ in spec.published.values() if pictures]
        known = {n for n in (*parts, sum(parts)) if n % 1000}  # others may have a round number by chance
        if spec.kind == "identity" and len(dataset.records) in known:
            warnings.append(
                f"{len(dataset.records):,} pictures, as {name} has, but no identities: every picture counts as its "
                f"own, and results do not compare with published ones; its authors give the identities ({spec.source})"
            )
    return warnings


def _tokens(dataset: Dataset, tokenizer: Any, max_tokens: int) -> tuple[float, str]:
    """What a model does not read of the captions: the larger of both shares, and a line."""
    captions = [c for r in dataset.records for c in r.captions]
    rows = tokenizer(captions, add_special_tokens=False, verbose=False)["input_ids"]  # CLIP's end token is its unknown
    cut = sum(len(row) + tokenizer.num_special_tokens_to_add() > max_tokens for row in rows) / len(rows)
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows) / max(1, sum(map(len, rows)))
    line = f"{cut:.1%} of the captions have more than {max_tokens} tokens and are cut; {unknown:.1%} of all tokens"
    return max(cut, unknown), f"{line} are unknown to the tokenizer"


def _long_captions(dataset: Dataset, max_words: int) -> list[str]:
    words = [(len(c.split()), i, r.source) for r in dataset.records for i, c in enumerate(r.captions)]
    long = [caption for caption in words if caption[0] > max_words]
    count, i, source = max(long, default=(0, 0, ""), key=lambda caption: caption[0])
    longest = f"the longest, caption {i} of {source}, has {count:,}"
    return [f"{len(long):,} captions have more than {max_words} words; {longest}"] if long else []
