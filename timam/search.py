"""Searching any folder of pictures: a gallery is encoded once, kept on disk, and answers from memory-mapped rows."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from timam.files import read_json, recover_folder, replacing_folder
from timam.images import SUFFIXES
from timam.models import TIMAM

_SHARD = 1024  # pictures encoded between two savings
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
    def build(
        cls, model: TIMAM, folder: Path | str, known: Gallery | None = None, progress: bool = False,
        shards: Path | None = None, engine: str = "local", gpus: float = 0,
    ) -> Gallery:  # fmt: skip
        """Encodes the pictures below a folder, except those that `known` holds from the same model unchanged.

        Unreadable pictures are passed over and named in `problems`.

        Args:
            shards: a folder for the galleries of some 1,000 pictures that this one is put together from. One that is
                there already is not encoded again, so that a killed build goes on where it was.
            engine: "local", or "ray": on every machine of a Ray cluster, which must all see `folder` and `shards`.
            gpus: of each task on Ray, which has one CPU core without any.

        Raises:
            FileNotFoundError: no such folder, or no readable picture in it.
            ValueError: another engine, or Ray without `shards`.
            RuntimeError: Ray is not installed.
        """
        if engine not in ("local", "ray") or (engine == "ray" and shards is None):
            raise ValueError(f"engine = {engine!r}, shards = {shards}: expected 'local', or 'ray' with a folder")
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        pictures = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found = [_Picture.of(folder, path) for path in sorted(p.relative_to(folder).as_posix() for p in pictures)]
        fingerprint = model_fingerprint(model)

        def lacking() -> list[_Picture]:
            return [picture for picture in found if picture not in rows]

        rows = _rows([known, *_shards(shards)], folder, fingerprint)
        before = len(lacking())
        if engine == "ray" and shards is not None:
            _encode_on_ray(model, folder, lacking(), shards, gpus, progress)
            rows = _rows([known, *_shards(shards)], folder, fingerprint)
        # On Ray, what is left are the unreadable ones.
        left, problems = lacking(), list[str]()
        with tqdm(total=len(left), desc="encoding", unit="picture", disable=not progress) as bar:
            for part in _parts(left):
                piece = _encode(model, folder, part, shards)
                rows |= _rows([piece], folder, fingerprint)
                problems += piece.problems
                bar.update(len(part))
        readable = [picture for picture in found if picture in rows]
        if not readable:
            raise FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it")
        encoded = before - (len(found) - len(readable))
        if known is not None and not encoded and readable == list(_rows([known], folder, fingerprint)):
            return dataclasses.replace(known, problems=problems, encoded=0)  # still on disk
        embeddings = np.empty((len(readable), model.model_config.embedding_dim), np.float32)
        for row, picture in enumerate(readable):
            piece, position = rows[picture]
            embeddings[row] = piece.embeddings[position]
        stamps = np.array([picture[1:] for picture in readable], np.int64)
        return cls(embeddings, [picture.path for picture in readable], folder, stamps, fingerprint, problems,
                   encoded)  # fmt: skip

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


def open_gallery(
    model: TIMAM, folder: Path | str, kept: Path, progress: bool = False, approximate: bool = False,
    engine: str = "local", gpus: float = 0,
) -> Gallery:  # fmt: skip
    """The gallery of a folder as it is now, kept in KEPT: a damaged or older one there is brought up to date.

    Encoding that was killed goes on from its shards of some 1,000 pictures; several processes wait for each other.
    Where nothing can be written, the gallery is made all the same, and a line in `problems` says that it is not kept.

    Args:
        approximate: with an index, as `Gallery.add_index` makes it where there is none yet.
        engine, gpus: as `Gallery.build`.

    Raises:
        FileNotFoundError, RuntimeError: as `Gallery.build` and `Gallery.add_index`.
        OSError: Ray where nothing can be written.
    """
    lock = FileLock(kept.with_name(f".{kept.name}.lock"))
    shards = kept.with_name(f"{kept.name}.shards")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:  # of a run that can only be read
        gallery, is_kept = _up_to_date(model, folder, kept, progress, approximate, None, engine, gpus)
        if not is_kept:
            gallery.problems.append(f"{kept}: not kept, to be encoded again the next time ({error})")
        return gallery
    try:
        gallery, is_kept = _up_to_date(model, folder, kept, progress, approximate, shards, engine, gpus)
        if not is_kept:
            gallery.save(kept)
        shutil.rmtree(shards, ignore_errors=True)
        return gallery
    finally:
        lock.release()


def _up_to_date(
    model: TIMAM, folder: Path | str, kept: Path, progress: bool, approximate: bool, *how: Any
) -> tuple[Gallery, bool]:
    """The gallery, and whether KEPT holds it as it is."""
    known = None
    with suppress(FileNotFoundError, ValueError):
        known = Gallery.load(kept)
    gallery = Gallery.build(model, folder, known, progress, *how)
    is_kept = known is not None and gallery.embeddings is known.embeddings
    if approximate and gallery.index is None:
        gallery.add_index()
        is_kept = False
    return gallery, is_kept


class _Picture(NamedTuple):
    path: str  # relative to the gallery's folder
    bytes: int
    changed_ns: int

    @classmethod
    def of(cls, folder: Path, path: str) -> _Picture:
        stat = os.stat(folder / path)
        return cls(path, stat.st_size, stat.st_mtime_ns)


def _rows(pieces: Iterable[Gallery | None], folder: Path, model: str) -> dict[_Picture, tuple[Gallery, int]]:
    """Where the embedding of each picture is, among galleries of this folder by this model."""
    return {
        _Picture(path, *stamp): (piece, row)
        for piece in pieces
        if piece is not None and (piece.folder, piece.model) == (folder, model)
        for row, (path, stamp) in enumerate(zip(piece.paths, piece.stamps.tolist(), strict=True))
    }


def _parts(pictures: list[_Picture]) -> list[list[_Picture]]:
    return [pictures[start : start + _SHARD] for start in range(0, len(pictures), _SHARD)]


def _shards(folder: Path | None) -> Iterator[Gallery]:
    """The whole ones; what is damaged is encoded again."""
    for path in sorted(folder.glob("[!.]*")) if folder is not None else ():
        with suppress(FileNotFoundError, ValueError):
            yield Gallery.load(path)


def _encode(model: TIMAM, folder: Path, part: list[_Picture], shards: Path | None) -> Gallery:
    """The gallery of some pictures of a folder, kept as a shard where there is a folder for them."""
    fingerprint = model_fingerprint(model)
    name = hashlib.sha256(json.dumps([str(folder), fingerprint, part]).encode()).hexdigest()[:32]
    if shards is not None:
        with suppress(FileNotFoundError, ValueError):
            return Gallery.load(shards / name)  # by a task that was lost with its machine after its work
        shutil.rmtree(shards / name, ignore_errors=True)
    problems: dict[int, str] = {}
    embeddings = model.encode_images([folder / picture.path for picture in part], unreadable=problems)
    readable = [row for row in range(len(part)) if row not in problems]
    stamps = np.array([part[row][1:] for row in readable], np.int64).reshape(-1, 2)
    unit = F.normalize(embeddings[readable], dim=1).numpy()
    piece = Gallery(unit, [part[row].path for row in readable], folder, stamps, fingerprint, list(problems.values()))
    if shards is not None and readable:
        new = shards / f".{uuid.uuid4().hex}"  # a lost machine may still be writing
        piece.save(new)
        try:
            new.rename(shards / name)
        except OSError:  # the other one was first
            shutil.rmtree(new)
    return piece


def _encode_on_ray(
    model: TIMAM, folder: Path, pictures: list[_Picture], shards: Path, gpus: float, progress: bool
) -> None:
    """Ray Data's batch inference, a task a shard. Ray itself tries a task again whose worker or machine is lost."""
    try:
        import ray.data
    except ImportError:
        raise RuntimeError("engine = 'ray' needs Ray: pip install 'ray[data]'") from None
    if not pictures:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one
    shared = ray.put(copy.deepcopy(model).cpu())

    def encode(part: dict[str, Any]) -> dict[str, Any]:
        device = "cuda" if gpus else "cpu"
        pictures = [_Picture(*picture) for picture in json.loads(part["pictures"])]
        return {"encoded": len(_encode(ray.get(shared).to(device), folder, pictures, shards.resolve()))}

    parts = [{"pictures": json.dumps(part)} for part in _parts(pictures)]
    found = ray.data.from_items(parts, override_num_blocks=len(parts)).map(encode, num_cpus=1, num_gpus=gpus or None)
    with tqdm(total=len(pictures), desc="encoding", unit="picture", disable=not progress) as bar:
        for row in found.iter_rows():
            bar.update(row["encoded"])


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
