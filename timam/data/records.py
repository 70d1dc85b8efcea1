"""Captioned pictures with identity and split: what every reader returns."""

import hashlib
import json
import posixpath
import reprlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from timam.embedded import container

SPLITS = ("train", "val", "test")

show = reprlib.Repr()  # of a value in a message: a caption may have megabytes
show.maxstring = show.maxother = 400


def plain(line: str) -> str:
    """A message for a terminal: control characters are escaped, and it has at most 1,000 characters."""
    line = line if len(line) <= 1000 else f"{line[:1000]}... ({len(line):,} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


class DataError(ValueError):
    """All problems of a data set, a line each, in `problems`."""

    def __init__(self, heading: str, problems: list[str]) -> None:
        problems = self.problems = [plain(p) for p in problems]
        shown = problems[:50] + ([f"... and {len(problems) - 50} more"] if len(problems) > 50 else [])
        super().__init__("\n  ".join([f"{heading}: {len(problems)} problem(s)", *shown]))


@dataclass(frozen=True)
class Record:
    """One picture with its sentences."""

    image: str  # path relative to the data set's picture folder
    captions: tuple[str, ...]
    identity: int  # as the data set numbers it
    split: str  # train, val or test
    source: str  # for messages: "reid_raw.json record 17"


@dataclass(frozen=True)
class Split:
    """One split as arrays. N pictures, M captions, C identities."""

    name: str
    image_paths: list[Path]
    image_labels: np.ndarray  # (N,) int64, contiguous 0 .. C-1 in the order of the data set's identities
    captions: list[str]
    caption_image: np.ndarray  # (M,) int64, the picture that each caption describes
    identities: np.ndarray  # (C,) the data set's own number of each label

    @property
    def caption_labels(self) -> np.ndarray:
        """(M,) int64: the identity label of each caption."""
        return self.image_labels[self.caption_image]

    @cached_property
    def captions_of_image(self) -> list[np.ndarray]:
        """For each picture, the indices of its captions."""
        order = np.argsort(self.caption_image, kind="stable")
        return np.split(order, np.searchsorted(self.caption_image[order], np.arange(1, len(self.image_paths))))


@dataclass(frozen=True)
class Dataset:
    """A data set; its records are in the order of the annotation file.

    `kind` says what is relevant: "identity" (every picture of the same one), "instance" (the described picture) or
    "class" (every picture of the same class); `timam_lab.check.PROTOCOLS` says what is reported.
    """

    name: str
    kind: str
    image_root: Path
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()  # decisions of the reader, such as a split that it made
    warnings: tuple[str, ...] = ()  # errors that do not prevent the use of the data set
    folds: int = 1  # the test split is also searched in this many parts; 1: only as a whole

    def split(self, name: str) -> Split:
        """The pictures of one split. Raises ValueError for an unknown or an empty one."""
        records = [r for r in self.records if r.split == name]
        if not records:
            raise ValueError("; ".join([f"{self.name} has no pictures in its {name} split", *self.notes]))
        identities, labels = np.unique([r.identity for r in records], return_inverse=True)
        counts = [len(r.captions) for r in records]
        return Split(
            name=name,
            image_paths=[self.image_root / r.image for r in records],
            image_labels=labels.astype(np.int64),
            captions=[c for r in records for c in r.captions],
            caption_image=np.repeat(np.arange(len(records)), counts),
            identities=identities,
        )

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over records and the sizes of the picture files, the same on every machine."""
        digest = hashlib.sha256()
        for r in self.records:
            size = container(self.image_root / r.image).stat().st_size
            digest.update(json.dumps([r.image, r.captions, r.identity, r.split, size]).encode())
        return digest.hexdigest()[:16]


def path_guard(folder: Path, root: Path) -> Callable[[str], str | None]:
    """Returns a function that checks the path of a file in an annotation: None, or the reason not to read it.

    A path must not leave its folder. Links to folders are followed, as users compose data sets of them. A link to a
    single file may come from an archive; it must stay within the data's root or the folder that it lies in. In the
    Hugging Face hub's cache each file of snapshots/REVISION is a link into blobs/.
    """
    resolve = cache(Path.resolve)  # thousands of pictures share a folder
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []

    def problem(name: str) -> str | None:
        path = folder / name
        try:
            link = path.is_symlink()
            real = path.resolve() if link else resolve(path.parent) / path.name
            with suppress(FileNotFoundError, NotADirectoryError):
                path.lstat()  # raises for a name that no file can have
            if real.is_relative_to(resolve(folder)):
                return None
            if ".." in Path(name).parts or Path(name).is_absolute():
                return f"path {show.repr(name)} leaves the data root {folder}"
            if link and not any(real.is_relative_to(resolve(p)) for p in (root, path.parent, *blobs)):
                return f"path {show.repr(name)} is a link that leaves the data root {root}; copy {real} into it"
        except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL or lone surrogate
            return f"path {show.repr(name)}: {getattr(error, 'strerror', None) or error}"
        return None

    return problem


def find_conflicts(records: list[Record], kind: str) -> list[str]:
    """Pictures listed twice and identities in two splits, one line each."""
    problems = []
    first: dict[str, Record] = {}
    splits = defaultdict(set)
    for r in records:
        splits[r.identity].add(r.split)
        other = first.setdefault(posixpath.normpath(r.image), r)  # a.jpg is ./a.jpg
        if other is not r:
            problems.append(f"{r.source}: picture {r.image} also stands in {other.source} ({other.split} split)")
    several = [(i, ", ".join(sorted(names))) for i, names in sorted(splits.items()) if len(names) > 1]
    lines = [f"identity {identity}: stands in the splits {names}; expected one" for identity, names in several]
    return problems if kind == "instance" else problems + lines
