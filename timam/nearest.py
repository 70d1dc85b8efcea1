"""Nearest neighbours by cosine similarity: exactly, or through a faiss index. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS = 65_536  # gallery rows compared at a time: bounds the memory of the similarities, 64 MB for 256 queries
_CANDIDATES = 8  # of an index for each answer; their similarities are then computed exactly


def nearest(gallery: np.ndarray, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query, k at most N.

    Args:
        gallery: (N, D) float32, unit length; may be memory-mapped.
        queries: (Q, D) float32, unit length.

    Returns:
        (Q, k) float32 cosine similarities, best first, ties by row; and (Q, k) int64 rows.
    """
    best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(gallery), _ROWS):
        block = gallery[start : start + _ROWS]  # NumPy's product: torch needs writable memory
        scores, found = torch.from_numpy(queries.numpy() @ block.T).topk(min(k, len(block)), dim=1)
        scores, rows = torch.cat([best, scores], dim=1), torch.cat([rows, found + start], dim=1)
        best, order = scores.topk(min(k, scores.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return _ordered(best.numpy(), rows.numpy())


def nearest_by_index(index: Any, gallery: np.ndarray, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, among candidates that a faiss index names. Where it finds fewer than k, the rest is -inf and -1."""
    _, rows = index.search(queries.numpy(), min(_CANDIDATES * k, len(gallery)))
    scores = np.einsum("qd,qcd->qc", queries.numpy(), gallery[np.maximum(rows, 0)])
    scores, rows = _ordered(np.where(rows < 0, -np.inf, scores).astype(np.float32), rows)
    return scores[:, :k], rows[:, :k]


def _ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def make_index(gallery: np.ndarray, probes: int, seed: int = 0) -> Any:
    """A faiss index: inverted lists of rows in 8 bits a dimension. A query visits `probes` of about 4 sqrt(N) lists."""
    count, width = gallery.shape
    lists = max(1, min(round(4 * count**0.5), count // 39))  # faiss asks for 39 rows a list to learn from
    index = faiss().index_factory(width, f"IVF{lists},SQ8", faiss().METRIC_INNER_PRODUCT)
    index.cp.seed = seed + 1  # faiss takes 0 for the clock
    sample = np.random.default_rng(seed).permutation(count)[: 64 * lists]
    index.train(np.ascontiguousarray(gallery[np.sort(sample)]))
    for start in range(0, count, _ROWS):
        index.add(np.ascontiguousarray(gallery[start : start + _ROWS]))
    index.nprobe = min(probes, lists)
    return index


def faiss() -> Any:
    """The module. Raises RuntimeError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise RuntimeError("approximate search needs faiss: pip install faiss-cpu") from None
    return faiss
