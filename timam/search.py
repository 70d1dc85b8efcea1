"""Searching any folder of pictures by its gallery of embeddings. `timam_lab.galleries` keeps such galleries on disk."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timam.files import files_below
from timam.images import SUFFIXES, unread_kinds
from timam.models import TIMAM

SIMILARITIES = 1 << 26  # in memory at once: 256 MB


@dataclass
class Gallery:
    """Embeddings of the pictures of a folder."""

    embeddings: np.ndarray = field(repr=False)  # (N, D) float32, unit length
    paths: list[str] = field(repr=False)  # (N,) relative to `folder`, sorted
    folder: Path = Path()
    problems: list[str] = field(default_factory=list)  # a line for each picture that could not be read, and each kind

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def build(cls, model: TIMAM, folder: Path | str, progress: bool = False) -> "Gallery":
        """Encodes the pictures below a folder; `problems` names unreadable ones. FileNotFoundError: none readable."""
        folder = Path(folder).resolve()
        gallery = cls.encoded(model, folder, picture_files(folder), progress)
        gallery.problems += unread_kinds(folder)
        if not gallery.paths:
            raise nothing_readable(folder, gallery.problems)
        return gallery

    @classmethod
    def encoded(cls, model: TIMAM, folder: Path, paths: list[str], progress: bool = False) -> "Gallery":
        """As `build`, of some pictures of a folder; it may be empty."""
        unreadable: dict[int, str] = {}
        embeddings = model.encode_images([folder / path for path in paths], progress=progress, unreadable=unreadable)
        rows = [row for row in range(len(paths)) if row not in unreadable]
        unit = F.normalize(embeddings[rows], dim=1).numpy()
        return cls(unit, [paths[row] for row in rows], folder, [unreadable[row] for row in sorted(unreadable)])

    def search(self, queries: Tensor | np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest pictures of each query (Q, D) of any norm; k is at least 1, and more than N are N.

        Returns (Q, k) float32 cosine similarities in [-1, 1], best first, ties in the order of the paths; and (Q, k)
        int64 positions in `paths`. ValueError: another k; queries of another width or not finite.
        """
        queries = torch.as_tensor(queries, dtype=torch.float32)
        shape, width = tuple(queries.shape), self.embeddings.shape[1]
        if queries.ndim != 2 or shape[1] != width or not queries.isfinite().all() or k < 1:
            raise ValueError(f"queries {shape}, k = {k}: expected finite (Q, {width}), and k of 1 or more")
        queries, k = F.normalize(queries, dim=1), min(k, len(self))
        found = [self.nearest(part, k) for part in queries.split(max(1, SIMILARITIES // max(1, len(self))))]
        scores, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return scores, rows

    def nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` of some queries of unit length."""
        similarity = torch.from_numpy(queries.numpy() @ self.embeddings.T)  # NumPy's: torch needs writable memory
        scores, rows = similarity.topk(k, dim=1)
        for query in ((similarity >= scores[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]:  # k cuts a tie, of copies
            scores[query], rows[query] = (found[:k] for found in similarity[query].sort(descending=True, stable=True))
        return ordered(scores.numpy(), rows.numpy())


def picture_files(folder: Path) -> list[str]:
    """The picture files in a folder and its subfolders, relative to it and sorted. FileNotFoundError: no folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return sorted(path.relative_to(folder).as_posix() for path in files_below(folder, SUFFIXES) if path.is_file())


def nothing_readable(folder: Path, problems: list[str]) -> FileNotFoundError:
    """The error for a folder without a readable picture."""
    reasons = "\n  ".join(["", *problems[:10]])
    return FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it{reasons}")


def ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, ties by row."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
