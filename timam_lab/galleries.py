"""Galleries on disk: kept and brought up to date, encoded in shards or on a Ray cluster, or written by others.

A shard is a small gallery of 1,024 pictures. A folder of more is encoded in shards, so that a killed build continues.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from filelock import FileLock
from tqdm.auto import tqdm

from timam.files import read_json, recover_folder, replacing_folder
from timam.images import unread_kinds
from timam.models import TIMAM
from timam.models.batching import slices
from timam.search import Gallery, nothing_readable, picture_files

SHARD = 1024  # pictures


class PictureFile(NamedTuple):
    """A picture file, and what changes when another takes its place."""

    path: str  # relative to its folder
    bytes: int
    changed_ns: int  # the last change of content or status; cameras and archives set the time of modification

    @classmethod
    def of(cls, folder: Path, path: str) -> PictureFile:
        stat = os.stat(folder / path)
        return cls(path, stat.st_size, stat.st_mtime_ns if os.name == "nt" else stat.st_ctime_ns)


@dataclass
class KeptGallery(Gallery):
    """A gallery that can be kept on disk and brought up to date."""

    # (N, 2) as in `PictureFile`
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64), repr=False)
    model: str = ""  # `model_fingerprint` of the model that encoded them

    def fingerprint(self) -> str:
        """16 hex digits of the model and of the pictures' names, sizes and times, which change with the embeddings."""
        digest = hashlib.sha256(json.dumps([self.model, self.paths]).encode())
        digest.update(np.ascontiguousarray(self.stamps).tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def update(
        model: TIMAM, folder: Path | str, known: Sequence[KeptGallery] = (), progress: bool = False
    ) -> KeptGallery:
        """`Gallery.build`, where what has not changed since other galleries of this folder is not encoded again."""
        folder, fingerprint = Path(folder).resolve(), model_fingerprint(model)
        pictures, problems = stamped_files(folder)
        rows = rows_of(known, folder, fingerprint)
        new = encode_pictures(model, folder, [picture for picture in pictures if picture not in rows], progress)
        rows |= rows_of([new], folder, fingerprint)
        problems += new.problems
        readable = [picture for picture in pictures if picture in rows]
        if not readable:
            raise nothing_readable(folder, problems)
        if readable == list(rows_of(known[:1], folder, fingerprint)):
            return dataclasses.replace(known[0], problems=problems)  # its embeddings are still on disk
        embeddings = np.empty((len(readable), model.model_config.embedding_dim), np.float32)
        for position, (gallery, row) in enumerate(rows[picture] for picture in readable):
            embeddings[position] = gallery.embeddings[row]
        return _stamped(Gallery(embeddings, [path for path, *_ in readable], folder, problems), readable, fingerprint)

    def save(self, folder: Path | str) -> None:
        """Writes embeddings.npy, pictures.parquet and gallery.json, all or nothing."""
        with replacing_folder(Path(folder)) as new:
            np.save(new / "embeddings.npy", self.embeddings)
            paths = pa.array(map(os.fsencode, self.paths), pa.binary())  # a file's name need not be UTF-8
            columns = {"path": paths, "bytes": self.stamps[:, 0], "changed_ns": self.stamps[:, 1]}
            pq.write_table(pa.table(columns), new / "pictures.parquet")
            content = {"folder": os.fsencode(self.folder).decode("utf-8", "surrogateescape"), "model": self.model}
            (new / "gallery.json").write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> KeptGallery:
        """The inverse of `save`, memory-mapped. FileNotFoundError: no gallery there; ValueError: a damaged one."""
        folder = Path(folder)
        recover_folder(folder)
        try:
            content = read_json(folder / "gallery.json")
            table = pq.read_table(folder / "pictures.parquet")
            embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            stamps = np.stack([table["bytes"].to_numpy(), table["changed_ns"].to_numpy()], axis=1)
            return cls(embeddings, paths, Path(content["folder"]), stamps=stamps, model=content["model"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no gallery there") from None
        except Exception as error:  # NumPy and pyarrow raise many kinds
            raise ValueError(f"{folder} is a damaged gallery ({error}); remove it") from error


def model_fingerprint(model: TIMAM) -> str:
    """16 hex digits of the image encoder: its settings and its last layer, which any training changes."""
    settings = dataclasses.asdict(model.model_config)
    del settings["discriminator_conditional"]  # younger than the first galleries, and no part of the encoder
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in list(model.image_encoder.parameters())[-2:]:
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def stamped_files(folder: Path) -> tuple[list[PictureFile], list[str]]:
    """The picture files below a folder, sorted by path; and a line for each that vanished, and each kind not read."""
    files, problems = [], unread_kinds(folder)
    for path in picture_files(folder):
        try:
            files.append(PictureFile.of(folder, path))
        except OSError as error:
            problems.append(f"{folder / path}: {error.strerror}")
    return files, problems


def rows_of(galleries: Iterable[KeptGallery], folder: Path, model: str) -> dict[PictureFile, tuple[KeptGallery, int]]:
    """Where the embedding of each picture is, among galleries of this folder by this model."""
    return {
        PictureFile(path, *stamp): (gallery, row)
        for gallery in galleries
        if (gallery.folder, gallery.model) == (folder, model)
        for row, (path, stamp) in enumerate(zip(gallery.paths, gallery.stamps.tolist(), strict=True))
    }


def encode_pictures(model: TIMAM, folder: Path, pictures: list[PictureFile], progress: bool = False) -> KeptGallery:
    """The gallery of some pictures of a folder."""
    gallery = Gallery.encoded(model, folder, [picture.path for picture in pictures], progress)
    return _stamped(gallery, pictures, model_fingerprint(model))


def _stamped(gallery: Gallery, pictures: list[PictureFile], model: str) -> KeptGallery:
    stamps = {path: stamp for path, *stamp in pictures}
    found = np.array([stamps[path] for path in gallery.paths], np.int64).reshape(-1, 2)
    return KeptGallery(**vars(gallery), stamps=found, model=model)


# -- keeping, in shards ------------------------------------------------------------------------------------------------

# (model, folder, parts of its pictures, folder for shards, progress): calls `encode_shard` for each part
Encoder = Callable[[TIMAM, Path, list[list[PictureFile]], Path, bool], None]


def open_gallery(
    model: TIMAM, folder: Path | str, kept: Path, progress: bool = False, encode_parts: Encoder | None = None
) -> KeptGallery:
    """The gallery of a folder as it is now, kept in KEPT; an older or damaged one there is brought up to date.

    A build that was killed continues from its shards. Processes that open the same gallery wait for each other. Where
    nothing can be written, on a full disk for example, the gallery is not kept, and a line in `problems` says so. The
    rest, and what is raised, as `build_in_shards`.
    """
    shards = kept.with_name(f"{kept.name}.shards")
    lock, obstacle, known = FileLock(kept.with_name(f".{kept.name}.lock")), None, []
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:  # the run's folder is read-only
        obstacle = error
    try:
        with suppress(FileNotFoundError, ValueError):
            known = [KeptGallery.load(kept)]
        if obstacle is None:
            gallery = build_in_shards(model, folder, shards, known, progress, encode_parts)
        else:
            gallery = KeptGallery.update(model, folder, known, progress)
        changed = not known or gallery.embeddings is not known[0].embeddings
        if changed and obstacle is None:
            try:
                gallery.save(kept)
            except OSError as error:
                obstacle = error
        if changed and obstacle is not None:
            gallery.problems.append(f"{kept}: not kept, to be encoded again the next time ({obstacle})")
        if obstacle is None:
            shutil.rmtree(shards, ignore_errors=True)
        return gallery
    finally:
        lock.release()


def build_in_shards(
    model: TIMAM,
    folder: Path | str,
    shards: Path,
    known: Sequence[KeptGallery] = (),
    progress: bool = False,
    encode_parts: Encoder | None = None,
) -> KeptGallery:
    """`KeptGallery.update`, in shards where there is more than one; those already in SHARDS are not encoded again.

    `encode_parts` makes them, by default here; `encode_on_ray` on a cluster. What it leaves out is tried again. Raises
    OSError where tasks of Ray cannot write their shards.
    """
    folder, shards = Path(folder).resolve(), shards.resolve()
    have = rows_of([*known, *_read(shards)], folder, model_fingerprint(model))
    new = [picture for picture in stamped_files(folder)[0] if picture not in have]
    if len(new) > SHARD:
        (encode_parts or _encode_here)(model, folder, slices(new, SHARD), shards, progress)
    return KeptGallery.update(model, folder, [*known, *_read(shards)], progress)


def _read(shards: Path) -> Iterator[KeptGallery]:
    for path in sorted(shards.glob("[!.]*")):
        with suppress(FileNotFoundError, ValueError):  # a damaged one is encoded again
            yield KeptGallery.load(path)


def _encode_here(model: TIMAM, folder: Path, parts: list[list[PictureFile]], shards: Path, progress: bool) -> None:
    with suppress(OSError):  # the disk is full: the rest is encoded without shards
        for part in tqdm(parts, desc="encoding", unit="shard", disable=not progress):
            encode_shard(model, folder, part, shards)


def encode_shard(model: TIMAM, folder: Path, part: list[PictureFile], shards: Path) -> None:
    """Writes the gallery of some pictures into the folder for shards, if it is not there."""
    key = json.dumps([str(folder), model_fingerprint(model), part])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    shards.mkdir(parents=True, exist_ok=True)
    with FileLock(shards / f".{name}.lock"):  # Ray tries a task again while a machine thought lost may still be at it
        with suppress(FileNotFoundError, ValueError):
            KeptGallery.load(shards / name)
            return
        shard = encode_pictures(model, folder, part)
        if len(shard):
            shard.save(shards / name)


def encode_on_ray(
    model: TIMAM, folder: Path, parts: list[list[PictureFile]], shards: Path, progress: bool, gpus: float = 0
) -> None:
    """Makes the shard of each part as a task of Ray, which tries the tasks of a lost machine again.

    All its machines must see the pictures and the shards. A task has so many GPUs, or without any one CPU core. Raises
    RuntimeError where Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise RuntimeError("--engine ray needs Ray: pip install ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # RAY_ADDRESS, else a cluster that runs here, else a new one

    @ray.remote(num_cpus=1, num_gpus=gpus)
    def task(model: TIMAM, part: list[PictureFile]) -> None:
        encode_shard(model.to("cuda" if gpus else "cpu"), folder, part, shards)

    shared = ray.put(copy.deepcopy(model).cpu())
    tasks = [task.remote(shared, part) for part in parts]
    for done in tqdm(tasks, desc="encoding", unit="shard", disable=not progress):
        ray.get(done)


def parquet_gallery(file: Path | str) -> Gallery:
    """A gallery that another program wrote: columns `path` (relative to the file) and `embedding` (lists of D).

    Raises FileNotFoundError, and ValueError for other columns or embeddings that are not N x D numbers.
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
    return Gallery(unit, paths, file.parent.resolve())
