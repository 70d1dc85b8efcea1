"""Searching any folder of pictures: a gallery is encoded once, kept on disk, and answers from memory-mapped rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from timam.files import read_json, recover_folder, replacing_folder
from timam.images import SUFFIXES, ImageError, read_image, to_pixels
from timam.models import TIMAM

_DECODED = 1024  # pictures held decoded at a time
_ROWS = 65_536  # gallery rows compared at a time: bounds the memory of the scores, 64 MB for 256 queries
_RESCORED = 8  # candidates of an approximate search that are compared exactly, for each answer


@dataclass
class Gallery:
    """Pictures of a folder in the joint space.

    `Gallery.build(model, folder)` makes one, `update` encodes what is new or changed, `save` and `load` keep it: a
    loaded gallery's embeddings stay on disk until they are compared.
    """

    embeddings: np.ndarray  # (N, D) float32, unit length
    paths: list[str]  # (N,) relative to `folder`, in their order
    folder: Path = Path()
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (N, 2) bytes and time of change
    model: str = ""  # `model_fingerprint` of what encoded them
    problems: list[str] = field(default_factory=list)  # a line for each picture that was passed over
    encoded: int = 0  # pictures that the last build or update had to encode
    index: Any = None  # of faiss, for approximate search

    def __len__(self) -> int:
        return len(self.paths)

    # -- making -------------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, model: TIMAM, folder: Path | str, known: Gallery | None = None, progress: bool = False) -> Gallery:
        """Encodes the pictures below a folder, except those that `known` holds from the same model unchanged.

        Unreadable pictures are passed over and named in `problems`.

        Raises:
            FileNotFoundError: no such folder, or no readable picture in it.
        """
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        pictures = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found = sorted(p.relative_to(folder).as_posix() for p in pictures)
        stats = [os.stat(folder / path) for path in found]
        stamps = np.array([[s.st_size, s.st_mtime_ns] for s in stats], np.int64).reshape(-1, 2)
        fingerprint = model_fingerprint(model)
        old = {}
        if known is not None and known.model == fingerprint and known.folder == folder:
            old = {path: (i, tuple(known.stamps[i])) for i, path in enumerate(known.paths)}
        kept = [old[p][0] if p in old and old[p][1] == tuple(s) else -1 for p, s in zip(found, stamps, strict=True)]
        new = [i for i, row in enumerate(kept) if row < 0]
        embeddings = np.empty((len(found), model.model_config.embedding_dim), np.float32)
        if known is not None and len(new) < len(found):
            same = [i for i, row in enumerate(kept) if row >= 0]
            embeddings[same] = known.embeddings[[kept[i] for i in same]]
        problems: list[str] = []
        unreadable: set[int] = set()
        with tqdm(total=len(new), desc="encoding", unit="picture", disable=not progress) as bar:
            for start in range(0, len(new), _DECODED):
                part = new[start : start + _DECODED]
                failed = _encode(model, [folder / found[i] for i in part], part, embeddings)
                unreadable |= failed.keys()
                problems += failed.values()
                bar.update(len(part))
        readable = [i for i in range(len(found)) if i not in unreadable]
        if not readable:
            raise FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it")
        return cls(embeddings[readable], [found[i] for i in readable], folder, stamps[readable], fingerprint,
                   problems, len(new) - len(unreadable))  # fmt: skip

    def update(self, model: TIMAM, progress: bool = False) -> Gallery:
        """The gallery of the same folder as it is now. Raises as `build`."""
        return Gallery.build(model, self.folder, self, progress)

    # -- keeping ------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Writes embeddings.npy, pictures.parquet, gallery.json and index.faiss where there is one; all or nothing."""
        folder = Path(folder)
        with replacing_folder(folder) as new:
            np.save(new / "embeddings.npy", self.embeddings)
            # Paths as bytes: a name on disk need not be UTF-8.
            columns = {"path": pa.array([os.fsencode(p) for p in self.paths], pa.binary()),
                       "bytes": self.stamps[:, 0], "changed_ns": self.stamps[:, 1]}  # fmt: skip
            pq.write_table(pa.table(columns), new / "pictures.parquet")
            content = {"folder": os.fsencode(self.folder).decode("utf-8", "surrogateescape"), "model": self.model}
            (new / "gallery.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
            if self.index is not None:
                _faiss().write_index(self.index, str(new / "index.faiss"))

    @classmethod
    def load(cls, folder: Path | str) -> Gallery:
        """The inverse of `save`; the embeddings are memory-mapped.

        Raises:
            FileNotFoundError: no gallery there.
            ValueError: a damaged one.
        """
        folder = Path(folder)
        recover_folder(folder)
        try:
            content = read_json(folder / "gallery.json")
            table = pq.read_table(folder / "pictures.parquet")
            embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            stamps = np.stack([table["bytes"].to_numpy(), table["changed_ns"].to_numpy()], axis=1)
            if embeddings.ndim != 2 or embeddings.dtype != np.float32 or len(embeddings) != len(paths):
                raise ValueError(f"embeddings {embeddings.shape} {embeddings.dtype} of {len(paths)} pictures")
            if stamps.dtype != np.int64 or any(os.path.isabs(p) or ".." in p.split("/") for p in paths):
                raise ValueError("pictures without sizes, or outside their folder")
            index = _faiss().read_index(str(folder / "index.faiss")) if (folder / "index.faiss").exists() else None
            if index is not None and (index.ntotal, index.d) != embeddings.shape:
                raise ValueError(f"an index of {index.ntotal} pictures")
            return cls(embeddings, paths, Path(content["folder"]), stamps, content["model"], index=index)
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no gallery there") from None
        except Exception as error:  # NumPy, pyarrow and faiss raise many kinds
            raise ValueError(f"{folder} is a damaged gallery ({error}); remove it") from error

    # -- searching ----------------------------------------------------------------------------------------------

    def search(
        self, queries: Tensor | np.ndarray, k: int = 10, exact: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest pictures of each query.

        Args:
            queries: (Q, D) of any norm, for example `TIMAM.encode_texts` or `encode_images`.
            k: at most N answers.
            exact: compares every picture; by default where there is no index. Otherwise the index names candidates,
                whose similarity is then computed exactly.

        Returns:
            (Q, k) float32 cosine similarities in [-1, 1], best first, equal ones in the order of the paths; and
            (Q, k) int64 their positions in `paths`. An index that finds fewer fills up with -inf and -1.

        Raises:
            ValueError: queries of another width or not finite, k below 1, or exact=False without an index.
        """
        queries = torch.as_tensor(queries, dtype=torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1] or not queries.isfinite().all():
            raise ValueError(f"queries {tuple(queries.shape)}: expected finite (Q, {self.embeddings.shape[1]})")
        if k < 1:
            raise ValueError(f"k = {k}: expected 1 or more")
        if exact is False and self.index is None:
            raise ValueError("exact=False needs an index: call add_index first")
        queries, k = F.normalize(queries, dim=1), min(k, len(self))
        search = self._nearest if exact or self.index is None else self._nearest_by_index
        scores, rows = zip(*(search(part, k) for part in queries.split(256)), strict=True)
        if np.isnan(scores := np.concatenate(scores)).any():
            raise ValueError(f"the gallery of {self.folder} holds embeddings that are no numbers; remove it")
        return scores, np.concatenate(rows)

    def _nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), _ROWS):
            block = self.embeddings[start : start + _ROWS]  # numpy's product: torch wants writable memory
            scores, found = torch.from_numpy(queries.numpy() @ block.T).topk(min(k, len(block)), dim=1)
            scores, rows = torch.cat([best, scores], dim=1), torch.cat([rows, found + start], dim=1)
            best, order = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return _ordered(best.numpy(), rows.numpy())

    def _nearest_by_index(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        _, rows = self.index.search(queries.numpy(), min(_RESCORED * k, len(self)))
        rows = np.where(rows < len(self), rows, -1)  # a damaged index names pictures that there are not
        scores = np.einsum("qd,qcd->qc", queries.numpy(), self.embeddings[np.maximum(rows, 0)])
        scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
        scores, rows = _ordered(scores, rows)
        return scores[:, :k], rows[:, :k]

    def add_index(
        self, queries: Tensor | np.ndarray | None = None, recall: float = 0.95, probes: int = 16, seed: int = 0
    ) -> None:
        """Adds a faiss index for approximate search: inverted lists of rows in 8 bits a dimension.

        Worth it from some 100,000 pictures on. How many lists a query must look into depends on the embeddings, so
        that it is measured: their number is doubled until the index finds the wanted share of the exact answers.

        Args:
            queries: (Q, D) to measure with, by default 100 of the gallery's own rows. Sentences lie elsewhere than
                pictures and are harder to find: better give some, if there are any.
            recall: `recall` at 10 to reach, in [0, 1].
            probes: lists to begin with, of about 4 sqrt(N); more of them find more and take longer.

        Raises:
            RuntimeError: faiss is not installed.
        """
        faiss = _faiss()
        count, width = self.embeddings.shape
        lists = max(1, min(round(4 * count**0.5), count // 39))  # faiss wants 39 rows a list to learn from
        self.index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        self.index.cp.seed = seed + 1  # 0 would be drawn from the clock
        sample = np.random.default_rng(seed).permutation(count)[: 64 * lists]
        self.index.train(np.ascontiguousarray(self.embeddings[np.sort(sample)]))
        for start in range(0, count, _ROWS):
            self.index.add(np.ascontiguousarray(self.embeddings[start : start + _ROWS]))
        self.index.nprobe = min(probes, lists)
        if queries is None:
            queries = np.array(self.embeddings[np.sort(sample[:100])])
        exact = self.search(queries, exact=True)[1]
        while self.index.nprobe < lists and self._share_found(exact, queries) < recall:
            self.index.nprobe = min(2 * self.index.nprobe, lists)

    def recall(self, queries: Tensor | np.ndarray, k: int = 10) -> float:
        """Share of the k exact answers that the index finds, in [0, 1], averaged over the queries (Q, D)."""
        return self._share_found(self.search(queries, k, exact=True)[1], queries)

    def _share_found(self, exact: np.ndarray, queries: Tensor | np.ndarray) -> float:
        found = self.search(queries, exact.shape[1], exact=False)[1]
        return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, found, strict=True)]))


def model_fingerprint(model: TIMAM) -> str:
    """16 hex digits that change with the image encoder: over its settings and last layer, which all training moves."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.model_config), sort_keys=True).encode())
    for tensor in model.image_encoder.projection.state_dict().values():
        digest.update(tensor.cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def kept_in(run: Path, folder: Path | str) -> Path:
    """Where a run keeps the gallery of a folder."""
    folder = Path(folder).resolve()
    return run / "galleries" / f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def open_gallery(model: TIMAM, folder: Path | str, kept: Path, progress: bool = False) -> Gallery:
    """The gallery of a folder as it is now, kept in KEPT: a damaged or older one there is brought up to date.

    Raises:
        FileNotFoundError: as `Gallery.build`.
    """
    try:
        known = Gallery.load(kept)
    except (FileNotFoundError, ValueError):
        known = None
    gallery = Gallery.build(model, folder, known, progress)
    if known is not None and not gallery.encoded and gallery.paths == known.paths and gallery.model == known.model:
        gallery.index = known.index
        return gallery
    gallery.save(kept)
    return gallery


def _encode(model: TIMAM, paths: list[Path], rows: list[int], out: np.ndarray) -> dict[int, str]:
    """Writes unit-length embeddings into the rows of `out`; a line for each row whose picture cannot be read."""
    size = model.model_config.image_height, model.model_config.image_width

    def decode(path: Path) -> Tensor | str:
        try:
            return torch.from_numpy(to_pixels(read_image(path), *size).copy())
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = dict(zip(rows, pool.map(decode, paths), strict=True))
    pixels = {row: found for row, found in decoded.items() if isinstance(found, Tensor)}
    if pixels:
        out[list(pixels)] = F.normalize(model.encode_images(list(pixels.values())), dim=1).numpy()
    return {row: found for row, found in decoded.items() if isinstance(found, str)}


def _ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, equal ones by position."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise RuntimeError("approximate search needs faiss: pip install faiss-cpu") from None
    return faiss
