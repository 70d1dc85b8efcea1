"""Searching any folder of pictures: it is encoded once into a gallery, kept on disk, and compared with queries.

Encoding saves a shard, a small gallery, after every 1,024 pictures, so that a killed build continues; on Ray each shard
is a task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from timam.cluster import map_on_ray
from timam.files import read_json, recover_folder, replacing_folder
from timam.images import SUFFIXES, PictureFile, picture_files
from timam.models import TIMAM
from timam.models.batching import slices
from timam.nearest import faiss, make_index, nearest, nearest_by_index

_SHARD = 1024  # pictures in a shard


@dataclass
class Gallery:
    """Embeddings of the pictures of a folder."""

    embeddings: np.ndarray  # (N, D) float32, unit length
    paths: list[str]  # (N,) relative to `folder`, sorted
    folder: Path = Path()
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (N, 2) as in `PictureFile`
    model: str = ""  # `model_fingerprint` of the model that encoded them
    problems: list[str] = field(default_factory=list)  # a line for each picture that could not be read
    encoded: int = 0  # pictures that the last build or update encoded
    index: Any = None  # of faiss, for approximate search

    def __len__(self) -> int:
        return len(self.paths)

    @staticmethod
    def build(
        model: TIMAM,
        folder: Path | str,
        known: Gallery | None = None,
        progress: bool = False,
        shards: Path | None = None,
        engine: str = "local",
        gpus: float = 0,
    ) -> Gallery:
        """Encodes the pictures in a folder and its subfolders. Unreadable ones are left out and named in `problems`.

        Args:
            known: an older gallery; what has not changed since is not encoded again.
            shards: a folder for shards; those in it are not encoded again.
            engine: "local", or "ray": on all machines of a Ray cluster, which must all see `folder` and `shards`.
            gpus: of each task on Ray. A task without GPUs has one CPU core.

        Raises:
            FileNotFoundError: no such folder, or no readable picture in it.
            ValueError: another engine, or Ray without `shards`.
            RuntimeError: Ray is not installed.
        """
        if engine not in ("local", "ray") or (engine == "ray" and shards is None):
            raise ValueError(f"engine = {engine!r}, shards = {shards}: expected 'local', or 'ray' with a folder")
        folder, fingerprint = Path(folder).resolve(), model_fingerprint(model)
        pictures, problems = picture_files(folder)
        rows = _rows([known, *_shards(shards)], folder, fingerprint)
        new = [picture for picture in pictures if picture not in rows]
        if engine == "ray" and shards is not None and new:
            kept = shards.resolve()
            encode = lambda model, part: _encode(model, folder, [PictureFile(*picture) for picture in part], kept)  # noqa: E731
            map_on_ray(encode, model, slices(new, _SHARD), gpus, progress)
            rows = _rows([known, *_shards(shards)], folder, fingerprint)
        left = [picture for picture in new if picture not in rows]  # after Ray, only the unreadable ones
        with tqdm(total=len(left), desc="encoding", unit="picture", disable=not progress) as bar:
            for part in slices(left, _SHARD):
                shard = _encode(model, folder, part, shards)
                rows |= _rows([shard], folder, fingerprint)
                problems += shard.problems
                bar.update(len(part))
        readable = [picture for picture in pictures if picture in rows]
        if not readable:
            reasons = "\n  ".join(["", *problems[:10]])
            raise FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it{reasons}")
        encoded = sum(picture in rows for picture in new)
        if known is not None and not encoded and readable == list(_rows([known], folder, fingerprint)):
            return dataclasses.replace(known, problems=problems, encoded=0)  # its embeddings are still on disk
        embeddings = np.empty((len(readable), model.model_config.embedding_dim), np.float32)
        for position, picture in enumerate(readable):
            shard, row = rows[picture]
            embeddings[position] = shard.embeddings[row]
        return _gallery(embeddings, readable, folder, fingerprint, problems, encoded)

    def update(self, model: TIMAM, progress: bool = False) -> Gallery:
        """The gallery of the same folder as it is now. Raises as `build`."""
        return Gallery.build(model, self.folder, self, progress)

    def save(self, folder: Path | str) -> None:
        """Writes embeddings.npy, pictures.parquet, gallery.json and, with an index, index.faiss; all or nothing."""
        with replacing_folder(Path(folder)) as new:
            np.save(new / "embeddings.npy", self.embeddings)
            # Paths as bytes: a file's name need not be UTF-8.
            columns = {"path": pa.array([os.fsencode(p) for p in self.paths], pa.binary()),
                       "bytes": self.stamps[:, 0], "changed_ns": self.stamps[:, 1]}  # fmt: skip
            pq.write_table(pa.table(columns), new / "pictures.parquet")
            content = {"folder": os.fsencode(self.folder).decode("utf-8", "surrogateescape"), "model": self.model}
            (new / "gallery.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
            if self.index is not None:
                faiss().write_index(self.index, str(new / "index.faiss"))

    @classmethod
    def load(cls, folder: Path | str) -> Gallery:
        """The inverse of `save`; the embeddings are memory-mapped.

        Raises FileNotFoundError where no gallery is, and ValueError for a damaged one.
        """
        folder = Path(folder)
        recover_folder(folder)
        try:
            content = read_json(folder / "gallery.json")
            table = pq.read_table(folder / "pictures.parquet")
            embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            stamps = np.stack([table["bytes"].to_numpy(), table["changed_ns"].to_numpy()], axis=1)
            index = faiss().read_index(str(folder / "index.faiss")) if (folder / "index.faiss").exists() else None
            return cls(embeddings, paths, Path(content["folder"]), stamps, content["model"], index=index)
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no gallery there") from None
        except Exception as error:  # NumPy, pyarrow and faiss raise many kinds
            raise ValueError(f"{folder} is a damaged gallery ({error}); remove it") from error

    @classmethod
    def from_parquet(cls, file: Path | str) -> Gallery:
        """A gallery that another program wrote: columns `path` (relative to the file) and `embedding` (lists of D).

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a Parquet file, a column that is not there, or embeddings that are not N x D numbers.
        """
        file = Path(file)
        try:
            table = pq.read_table(file, columns=["path", "embedding"])
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            embeddings = np.array(table["embedding"].to_pylist(), np.float32)
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: expected columns path and embedding of equal lengths ({error})") from error
        if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
            raise ValueError(f"{file}: embedding {embeddings.shape}: expected finite numbers, (N, D)")
        unit = F.normalize(torch.from_numpy(embeddings), dim=1).numpy()
        return cls(unit, paths, file.parent.resolve())

    def search(
        self, queries: Tensor | np.ndarray, k: int = 10, exact: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest pictures of each query; at most N.

        Args:
            queries: (Q, D) of any norm, for example from `TIMAM.encode_texts` or `encode_images`.
            exact: True compares every picture, False the candidates of the index; by default False where there is one.

        Returns:
            (Q, k) float32 cosine similarities in [-1, 1], best first, ties in the order of the paths; and (Q, k) int64
            positions in `paths`. Where an index finds fewer than k, the rest is -inf and -1.

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
        found = [
            nearest(self.embeddings, part, k)
            if exact or self.index is None
            else nearest_by_index(self.index, self.embeddings, part, k)
            for part in queries.split(256)
        ]
        scores, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if np.isnan(scores).any():
            raise ValueError(f"the gallery of {self.folder} holds embeddings that are no numbers; remove it")
        return scores, rows

    def add_index(
        self, queries: Tensor | np.ndarray | None = None, recall: float = 0.95, probes: int = 16, seed: int = 0
    ) -> None:
        """Adds a faiss index for approximate search, which pays from some 100,000 pictures on.

        The lists that a query visits are doubled until the index finds the wanted share of the exact answers.

        Args:
            queries: (Q, D) to measure with, best real sentences; by default 100 rows of the gallery.
            recall: the wanted share of the exact first 10, in [0, 1].
            probes: lists to visit at first, of about 4 sqrt(N). More find more and take longer.

        Raises:
            RuntimeError: faiss is not installed.
        """
        self.index = make_index(self.embeddings, probes, seed)
        if queries is None:
            rows = np.random.default_rng(seed).permutation(len(self))[:100]
            queries = np.array(self.embeddings[np.sort(rows)])
        exact = self.search(queries, exact=True)[1]
        while self.index.nprobe < self.index.nlist and self._share_found(exact, queries) < recall:
            self.index.nprobe = min(2 * self.index.nprobe, self.index.nlist)

    def recall(self, queries: Tensor | np.ndarray, k: int = 10) -> float:
        """Share of the k exact answers that the index finds, in [0, 1], averaged over the queries (Q, D)."""
        return self._share_found(self.search(queries, k, exact=True)[1], queries)

    def _share_found(self, exact: np.ndarray, queries: Tensor | np.ndarray) -> float:
        found = self.search(queries, exact.shape[1], exact=False)[1]
        return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, found, strict=True)]))


def model_fingerprint(model: TIMAM) -> str:
    """16 hex digits of the image encoder: its settings and its last layer, which any training changes."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.model_config), sort_keys=True).encode())
    for tensor in list(model.image_encoder.parameters())[-2:]:
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_gallery(
    model: TIMAM,
    folder: Path | str,
    kept: Path,
    progress: bool = False,
    approximate: bool = False,
    engine: str = "local",
    gpus: float = 0,
) -> Gallery:
    """The gallery of a folder as it is now, kept in KEPT; an older or damaged one there is brought up to date.

    A build that was killed continues from its shards. Processes that open the same gallery wait for each other. Where
    nothing can be written, the gallery is not kept, and a line in `problems` says so.

    Args:
        approximate: adds an index with `Gallery.add_index` where there is none.
        engine, gpus: as `Gallery.build`.

    Raises:
        FileNotFoundError, RuntimeError, ValueError: as `Gallery.build` and `Gallery.add_index`.
    """
    shards: Path | None = kept.with_name(f"{kept.name}.shards")
    lock, obstacle, known = FileLock(kept.with_name(f".{kept.name}.lock")), None, None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:  # the run's folder is read-only
        shards, obstacle = None, error
    try:
        with suppress(FileNotFoundError, ValueError):
            known = Gallery.load(kept)
        gallery = Gallery.build(model, folder, known, progress, shards, engine, gpus)
        changed = known is None or gallery.embeddings is not known.embeddings
        if approximate and gallery.index is None:
            gallery.add_index()
            changed = True
        if obstacle is None and changed:
            gallery.save(kept)
        elif changed:
            gallery.problems.append(f"{kept}: not kept, to be encoded again the next time ({obstacle})")
        if shards is not None:
            shutil.rmtree(shards, ignore_errors=True)
        return gallery
    finally:
        lock.release()


def _gallery(
    embeddings: np.ndarray, pictures: list[PictureFile], folder: Path, model: str, problems: list[str], encoded: int
) -> Gallery:
    stamps = np.array([picture[1:] for picture in pictures], np.int64).reshape(-1, 2)
    return Gallery(embeddings, [picture.path for picture in pictures], folder, stamps, model, problems, encoded)


def _rows(galleries: Iterable[Gallery | None], folder: Path, model: str) -> dict[PictureFile, tuple[Gallery, int]]:
    """Where the embedding of each picture is, among galleries of this folder by this model."""
    return {
        PictureFile(path, *stamp): (gallery, row)
        for gallery in galleries
        if gallery is not None and (gallery.folder, gallery.model) == (folder, model)
        for row, (path, stamp) in enumerate(zip(gallery.paths, gallery.stamps.tolist(), strict=True))
    }


def _shards(folder: Path | None) -> Iterator[Gallery]:
    for path in sorted(folder.glob("[!.]*")) if folder is not None else ():
        with suppress(FileNotFoundError, ValueError):  # a damaged one is encoded again
            yield Gallery.load(path)


def _encode(model: TIMAM, folder: Path, part: list[PictureFile], shards: Path | None) -> Gallery:
    """The gallery of some pictures, saved as a shard where there is a folder for shards."""
    fingerprint = model_fingerprint(model)

    def encode() -> Gallery:
        problems: dict[int, str] = {}
        embeddings = model.encode_images([folder / picture.path for picture in part], unreadable=problems)
        rows = [row for row in range(len(part)) if row not in problems]
        unit = F.normalize(embeddings[rows], dim=1).numpy()
        return _gallery(unit, [part[row] for row in rows], folder, fingerprint, list(problems.values()), len(rows))

    if shards is None:
        return encode()
    name = hashlib.sha256(json.dumps([str(folder), fingerprint, part]).encode()).hexdigest()[:32]
    shards.mkdir(parents=True, exist_ok=True)
    with FileLock(shards / f".{name}.lock"):  # Ray tries a task again while a machine thought lost may still be at it
        with suppress(FileNotFoundError, ValueError):
            return Gallery.load(shards / name)
        shard = encode()
        if len(shard):
            shard.save(shards / name)
        return shard
