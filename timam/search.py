"""Searching any folder of pictures: it is encoded once into a gallery, and compared with queries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from timam.files import files_below, read_json, recover_folder, replacing_folder
from timam.images import SUFFIXES
from timam.models import TIMAM
from timam.models.batching import slices
from timam.models.joint import IMAGE

AT_ONCE = 1024  # pictures that are encoded between two steps of the progress bar
ROWS = 65_536  # gallery rows compared at a time: bounds the memory of the similarities, 64 MB for 256 queries


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
class Gallery:
    """Embeddings of the pictures of a folder."""

    embeddings: np.ndarray  # (N, D) float32, unit length
    paths: list[str]  # (N,) relative to `folder`, sorted
    folder: Path = Path()
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))  # (N, 2) as in `PictureFile`
    model: str = ""  # `model_fingerprint` of the model that encoded them
    problems: list[str] = field(default_factory=list)  # a line for each picture that could not be read

    def __len__(self) -> int:
        return len(self.paths)

    @staticmethod
    def build(model: TIMAM, folder: Path | str, known: Sequence[Gallery] = (), progress: bool = False) -> Gallery:
        """Encodes the pictures in a folder and its subfolders. Unreadable ones are left out and named in `problems`.

        `known` are other galleries of this folder: what has not changed since is not encoded again. Raises
        FileNotFoundError where no readable picture is.
        """
        folder, fingerprint = Path(folder).resolve(), model_fingerprint(model)
        pictures, problems = picture_files(folder)
        rows = rows_of(known, folder, fingerprint)
        new = [picture for picture in pictures if picture not in rows]
        for part in tqdm(slices(new, AT_ONCE), desc="encoding", disable=not progress):
            encoded = encode_pictures(model, folder, part)
            rows |= rows_of([encoded], folder, fingerprint)
            problems += encoded.problems
        readable = [picture for picture in pictures if picture in rows]
        if not readable:
            reasons = "\n  ".join(["", *problems[:10]])
            raise FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it{reasons}")
        if readable == list(rows_of(known[:1], folder, fingerprint)):
            return dataclasses.replace(known[0], problems=problems)  # its embeddings are still on disk
        embeddings = np.empty((len(readable), model.model_config.embedding_dim), np.float32)
        for position, (gallery, row) in enumerate(rows[picture] for picture in readable):
            embeddings[position] = gallery.embeddings[row]
        return _gallery(embeddings, readable, folder, fingerprint, problems)

    def centered(self, model: TIMAM) -> Gallery:
        """The same pictures without their mean on validation, in memory; queries must be `TIMAM.centered`, too."""
        return dataclasses.replace(self, embeddings=model.centered(torch.tensor(self.embeddings), IMAGE).numpy())

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
    def load(cls, folder: Path | str) -> Gallery:
        """The inverse of `save`, memory-mapped. FileNotFoundError: no gallery there; ValueError: a damaged one."""
        folder = Path(folder)
        recover_folder(folder)
        try:
            content = read_json(folder / "gallery.json")
            table = pq.read_table(folder / "pictures.parquet")
            embeddings = np.load(folder / "embeddings.npy", mmap_mode="r")
            paths = [os.fsdecode(path) for path in table["path"].to_pylist()]
            stamps = np.stack([table["bytes"].to_numpy(), table["changed_ns"].to_numpy()], axis=1)
            return cls(embeddings, paths, Path(content["folder"]), stamps, content["model"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no gallery there") from None
        except Exception as error:  # NumPy and pyarrow raise many kinds
            raise ValueError(f"{folder} is a damaged gallery ({error}); remove it") from error

    def search(self, queries: Tensor | np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest pictures of each query (Q, D) of any norm; at most N.

        Returns (Q, k) float32 cosine similarities in [-1, 1], best first, ties in the order of the paths; and (Q, k)
        int64 positions in `paths`. ValueError: queries of another width or not finite, or k below 1.
        """
        queries = torch.as_tensor(queries, dtype=torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeddings.shape[1] or not queries.isfinite().all():
            raise ValueError(f"queries {tuple(queries.shape)}: expected finite (Q, {self.embeddings.shape[1]})")
        if k < 1:
            raise ValueError(f"k = {k}: expected 1 or more")
        queries, k = F.normalize(queries, dim=1), min(k, len(self))
        found = [self.nearest(part, k) for part in queries.split(256)]
        scores, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if np.isnan(scores).any():
            raise ValueError(f"the gallery of {self.folder} holds embeddings that are no numbers; remove it")
        return scores, rows

    def nearest(self, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` of some queries of unit length."""
        best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), ROWS):
            block = self.embeddings[start : start + ROWS]  # NumPy's product: torch needs writable memory
            scores, found = torch.from_numpy(queries.numpy() @ block.T).topk(min(k, len(block)), dim=1)
            scores, rows = torch.cat([best, scores], dim=1), torch.cat([rows, found + start], dim=1)
            best, order = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return ordered(best.numpy(), rows.numpy())


def model_fingerprint(model: TIMAM) -> str:
    """16 hex digits of the image encoder: its settings and its last layer, which any training changes."""
    settings = dataclasses.asdict(model.model_config)
    del settings["discriminator_conditional"]  # younger than the first galleries, and no part of the encoder
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in list(model.image_encoder.parameters())[-2:]:
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


# -- parts of a gallery ------------------------------------------------------------------------------------------------


def picture_files(folder: Path) -> tuple[list[PictureFile], list[str]]:
    """The picture files in a folder and its subfolders, sorted by path; and a line for each that vanished meanwhile."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    files, problems = [], []
    for path in sorted(p.relative_to(folder).as_posix() for p in files_below(folder, SUFFIXES) if p.is_file()):
        try:
            files.append(PictureFile.of(folder, path))
        except OSError as error:
            problems.append(f"{folder / path}: {error.strerror}")
    return files, problems


def _gallery(
    embeddings: np.ndarray, pictures: list[PictureFile], folder: Path, model: str, problems: list[str]
) -> Gallery:
    stamps = np.array([picture[1:] for picture in pictures], np.int64).reshape(-1, 2)
    return Gallery(embeddings, [picture.path for picture in pictures], folder, stamps, model, problems)


def rows_of(galleries: Iterable[Gallery], folder: Path, model: str) -> dict[PictureFile, tuple[Gallery, int]]:
    """Where the embedding of each picture is, among galleries of this folder by this model."""
    return {
        PictureFile(path, *stamp): (gallery, row)
        for gallery in galleries
        if (gallery.folder, gallery.model) == (folder, model)
        for row, (path, stamp) in enumerate(zip(gallery.paths, gallery.stamps.tolist(), strict=True))
    }


def encode_pictures(model: TIMAM, folder: Path, pictures: list[PictureFile]) -> Gallery:
    """The gallery of some pictures of a folder."""
    unreadable: dict[int, str] = {}
    embeddings = model.encode_images([folder / picture.path for picture in pictures], unreadable=unreadable)
    rows = [row for row in range(len(pictures)) if row not in unreadable]
    unit, readable = F.normalize(embeddings[rows], dim=1).numpy(), [pictures[row] for row in rows]
    return _gallery(unit, readable, folder, model_fingerprint(model), list(unreadable.values()))


def ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, ties by row."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
