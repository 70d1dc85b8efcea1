"""Approximate search with a faiss index, which pays from some 100,000 pictures on: `timam search --approximate`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from timam.files import replacing_file
from timam.search import Gallery, ordered
from timam_lab.galleries import KeptGallery

_ROWS = 65_536  # that are added to an index at a time
_CANDIDATES = 8  # of the index for each answer; their similarities are then computed exactly


@dataclass
class IndexedGallery(Gallery):
    """A gallery whose `search` compares the candidates of an index. Where these are fewer than k: -inf and -1."""

    exact: Gallery = field(default_factory=lambda: Gallery(np.empty((0, 0), np.float32), []))
    index: Any = None  # of faiss

    @classmethod
    def of(
        cls,
        gallery: Gallery,
        queries: Tensor | np.ndarray | None = None,
        recall: float = 0.95,
        probes: int = 16,
        seed: int = 0,
    ) -> IndexedGallery:
        """Builds the index: about 4 sqrt(N) inverted lists of rows in 8 bits a dimension.

        A query visits `probes` of them, doubled until the index finds the share `recall` of the exact first 10 answers
        to `queries` (Q, D), best real sentences, by default 100 rows of the gallery. Raises RuntimeError where faiss is
        not installed.
        """
        faiss = _faiss()
        count, width = gallery.embeddings.shape
        lists = max(1, min(round(4 * count**0.5), count // 39))  # faiss asks for 39 rows a list to learn from
        index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed + 1  # faiss takes 0 for the clock
        order = np.random.default_rng(seed).permutation(count)
        index.train(np.ascontiguousarray(gallery.embeddings[np.sort(order[: 64 * lists])]))
        for start in range(0, count, _ROWS):
            index.add(np.ascontiguousarray(gallery.embeddings[start : start + _ROWS]))
        index.nprobe = min(probes, lists)
        if queries is None:
            queries = np.array(gallery.embeddings[np.sort(order[:100])])
        made = cls._over(gallery, index)
        while index.nprobe < lists and made.recall(queries) < recall:
            index.nprobe = min(2 * index.nprobe, lists)
        return made

    @classmethod
    def open(cls, gallery: KeptGallery, kept: Path, **options: Any) -> IndexedGallery:
        """With the index in KEPT, the gallery's folder. Where it is absent or damaged, it is built by `of` and kept.

        Its name says of which pictures it is: another process may have brought the folder up to date meanwhile.
        """
        file = kept / f"index-{gallery.fingerprint()}.faiss"
        with suppress(RuntimeError):  # of faiss, for a damaged file
            if (index := _faiss().read_index(str(file))).ntotal == len(gallery):
                return cls._over(gallery, index)
        made = cls.of(gallery, **options)
        try:
            with replacing_file(file) as temporary:
                _faiss().write_index(made.index, str(temporary))
            for other in set(kept.glob("index*.faiss")) - {file}:
                other.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            made.problems.append(f"{file}: not kept, to be built again the next time ({error})")
        return made

    @classmethod
    def _over(cls, gallery: Gallery, index: Any) -> IndexedGallery:
        parts = gallery.embeddings, gallery.paths, gallery.folder, gallery.problems
        return cls(*parts, exact=gallery, index=index)

    def nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        _, rows = self.index.search(queries.numpy(), min(_CANDIDATES * k, len(self)))
        scores = np.einsum("qd,qcd->qc", queries.numpy(), self.embeddings[np.maximum(rows, 0)])
        scores, rows = ordered(np.where(rows < 0, -np.inf, scores).astype(np.float32), rows)
        return scores[:, :k], rows[:, :k]

    def recall(self, queries: Tensor | np.ndarray, k: int = 10) -> float:
        """Share of the k exact answers that the index finds, in [0, 1], averaged over the queries (Q, D)."""
        pairs = zip(self.exact.search(queries, k)[1], self.search(queries, k)[1], strict=True)
        return float(np.mean([len(np.intersect1d(exact, found)) / len(exact) for exact, found in pairs]))


def _faiss() -> Any:
    """The module. Raises RuntimeError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise RuntimeError("approximate search needs faiss: pip install faiss-cpu") from None
    return faiss
