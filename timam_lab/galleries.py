"""Galleries on disk: kept and brought up to date, encoded in shards or on a Ray cluster, or written by others.

A shard is a small gallery of 1,024 pictures. A folder of more is encoded in shards, so that a killed build continues.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from filelock import FileLock
from tqdm.auto import tqdm

from timam.models import TIMAM
from timam.models.batching import slices
from timam.search import Gallery, PictureFile, encode_pictures, model_fingerprint, picture_files, rows_of

SHARD = 1024  # pictures
# (model, folder, parts of its pictures, folder for shards, progress): calls `encode_shard` for each part
Encoder = Callable[[TIMAM, Path, list[list[PictureFile]], Path, bool], None]


def open_gallery(
    model: TIMAM, folder: Path | str, kept: Path, progress: bool = False, encode_parts: Encoder | None = None
) -> Gallery:
    """The gallery of a folder as it is now, kept in KEPT; an older or damaged one there is brought up to date.

    A build that was killed continues from its shards. Processes that open the same gallery wait for each other. Where
    nothing can be written, the gallery is not kept, and a line in `problems` says so. The rest, and what is raised, as
    `build_in_shards`.
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
            known = [Gallery.load(kept)]
        if obstacle is None:
            gallery = build_in_shards(model, folder, shards, known, progress, encode_parts)
        else:
            gallery = Gallery.build(model, folder, known, progress)
        changed = not known or gallery.embeddings is not known[0].embeddings
        if changed and obstacle is None:
            gallery.save(kept)
        elif changed:
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
    known: Sequence[Gallery] = (),
    progress: bool = False,
    encode_parts: Encoder | None = None,
) -> Gallery:
    """`Gallery.build`, in shards where there is more than one; those already in SHARDS are not encoded again.

    `encode_parts` makes them, by default here; `encode_on_ray` on a cluster. What it leaves out is tried again.
    """
    folder, shards = Path(folder).resolve(), shards.resolve()
    have = rows_of([*known, *_read(shards)], folder, model_fingerprint(model))
    new = [picture for picture in picture_files(folder)[0] if picture not in have]
    if len(new) > SHARD:
        (encode_parts or _encode_here)(model, folder, slices(new, SHARD), shards, progress)
    return Gallery.build(model, folder, [*known, *_read(shards)], progress)


def _read(shards: Path) -> Iterator[Gallery]:
    for path in sorted(shards.glob("[!.]*")):
        with suppress(FileNotFoundError, ValueError):  # a damaged one is encoded again
            yield Gallery.load(path)


def _encode_here(model: TIMAM, folder: Path, parts: list[list[PictureFile]], shards: Path, progress: bool) -> None:
    for part in tqdm(parts, desc="encoding", unit="shard", disable=not progress):
        encode_shard(model, folder, part, shards)


def encode_shard(model: TIMAM, folder: Path, part: list[PictureFile], shards: Path) -> None:
    """Writes the gallery of some pictures into the folder for shards, if it is not there."""
    key = json.dumps([str(folder), model_fingerprint(model), part])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    shards.mkdir(parents=True, exist_ok=True)
    with FileLock(shards / f".{name}.lock"):  # Ray tries a task again while a machine thought lost may still be at it
        with suppress(FileNotFoundError, ValueError):
            Gallery.load(shards / name)
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
