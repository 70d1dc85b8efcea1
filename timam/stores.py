"""Stores: what never changes during training is computed once, kept in a memory-mapped file and gathered from it.

Each store is named by a fingerprint of its inputs, so a changed picture, size, caption or model makes another one.
They appear whole or not at all, are built once where several runs want them, and made again where they are damaged.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from timam.data.records import DataError, Split
from timam.embedded import container
from timam.files import cache_folder, check_sums, replacing_folder, write_sums
from timam.images import ImageError, read_image, to_pixels
from timam.models import TIMAM
from timam.models.joint import eval_mode

_VERSION = b"2"  # of the stored form: raise it when decoding or resizing changes


def _fingerprint(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in (_VERSION, *parts):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def _open_store(
    kind: str, name: str, dtype: type, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """A store's array, read-only memory-mapped; where it is absent or damaged, `fill` makes it first."""
    folder = cache_folder() / kind / name
    if (found := _load(folder)) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{name}.lock")):  # a second run waits for the first one's store
        if (found := _load(folder, say=True)) is not None:
            return found
        with replacing_folder(folder, durable=False) as new:
            fill(_new_array(new / "store.npy", dtype, shape))
            write_sums(new)
    return np.load(folder / "store.npy", mmap_mode="r")


def _load(folder: Path, say: bool = False) -> np.ndarray | None:
    if not folder.exists():
        return None
    try:
        check_sums(folder)
        return np.load(folder / "store.npy", mmap_mode="r")
    except (OSError, ValueError) as error:
        if say:
            warnings.warn(f"{error}; the store is made again", stacklevel=3)
        return None


def _new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped file with its room on the disk: a page that found none later would end the process (SIGBUS)."""
    size, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    try:
        if size > free:
            raise OSError(errno.ENOSPC, "too small")
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):  # also where a quota is less than what is free
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array
    except OSError as error:
        reason = f"the store needs {size:,} bytes and the disk has {free:,}; set TIMAM_CACHE to another"
        raise OSError(f"{path.parent}: {reason} ({error.strerror})") from error


def open_pixels(paths: Sequence[Path], height: int, width: int, progress: bool = True) -> np.ndarray:
    """Decoded and resized pictures, read-only memory-mapped: (N, 3, height, width) uint8 in channels-last memory.

    Decodes in parallel threads on the first call for these files and this size (Pillow releases the
    interpreter's lock); later calls open the stored file. Every unreadable picture is found before any is used.

    Raises:
        DataError: every picture that cannot be read.
        OSError: too little space on the disk.
    """
    stats = [os.stat(container(p)) for p in paths]
    # The time of the last change of status, too: tools that copy pictures set back the time of modification.
    files = [f"{p.resolve()}|{s.st_size}|{s.st_mtime_ns}|{s.st_ctime_ns}" for p, s in zip(paths, stats, strict=True)]
    name = _fingerprint(f"{height}x{width}".encode(), *map(str.encode, files))
    shape = len(paths), height, width, 3
    return _open_store("pixels", name, np.uint8, shape, lambda store: _decode(paths, store, progress)).transpose(
        0, 3, 1, 2
    )


def _decode(paths: Sequence[Path], pixels: np.ndarray, progress: bool) -> None:
    """Fills the pixels (N, H, W, 3) from picture files."""
    height, width = pixels.shape[1:3]

    def build(index: int) -> str | None:
        try:
            pixels[index] = to_pixels(read_image(paths[index]), height, width).transpose(1, 2, 0)
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = tqdm(
            pool.map(build, range(len(paths))), total=len(paths), desc="decoding", unit="picture", disable=not progress
        )
        problems = [problem for problem in results if problem]
    if problems:
        raise DataError("pictures", problems)


class WordStates:
    """The frozen language model's outputs for a list of captions: half precision, ragged, memory-mapped.

    Args:
        states: (all tokens, C) float16.
        offsets: (M + 1,) int64; caption m has the rows offsets[m] to offsets[m + 1].
    """

    def __init__(self, states: np.ndarray, offsets: np.ndarray) -> None:
        self.states, self.offsets = states, offsets

    def select(self, captions: np.ndarray) -> WordStates:
        """A copy of the states of some captions, given by their indices, in that order."""
        rows = [self.states[self.offsets[m] : self.offsets[m + 1]] for m in captions]
        return WordStates(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(r) for r in rows])]))

    def gather(self, captions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Caption indices (B,) -> word states (B, T, C) float32, right-padded with zeros, and a mask (B, T)."""
        rows = [self.states[self.offsets[m] : self.offsets[m + 1]] for m in captions]
        states = pad_sequence([torch.from_numpy(r.astype(np.float32)) for r in rows], batch_first=True)
        lengths = torch.tensor([len(r) for r in rows])
        return states, (torch.arange(states.shape[1])[None, :] < lengths[:, None]).long()


def open_word_states(model: TIMAM, captions: list[str], batch_size: int = 64, progress: bool = True) -> WordStates:
    """The language model's outputs for the captions, computed on the first call and stored.

    Raises:
        OSError: too little space on the disk.
    """
    token_ids, mask = model.tokenize(captions)  # (M, T)
    lengths = mask.sum(dim=1).numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    language_model = model.text_encoder.language_model
    weights = [t.detach().cpu().contiguous().numpy().tobytes() for t in language_model.state_dict().values()]
    name = _fingerprint(token_ids.numpy().tobytes(), offsets.tobytes(), *weights)

    def read(states: np.ndarray) -> None:
        order = np.argsort(lengths, kind="stable")  # alike lengths together: little padding
        starts = range(0, len(order), batch_size)
        with eval_mode(model):
            for start in tqdm(starts, desc="reading captions", unit="batch", disable=not progress):
                batch = order[start : start + batch_size]
                longest = int(lengths[batch].max())
                ids = token_ids[batch, :longest].to(model.device)
                outputs = model.text_encoder.word_states(ids, mask[batch, :longest].to(model.device))
                for m, output in zip(batch, outputs.cpu().numpy(), strict=True):
                    states[offsets[m] : offsets[m + 1]] = output[: lengths[m]]

    shape = int(offsets[-1]), model.text_encoder.lstm.input_size
    return WordStates(_open_store("word_states", name, np.float16, shape, read), offsets)


@dataclass
class StoredSplit:
    """A split with what is stored of it.

    Attributes:
        pixels: (N, 3, H, W) uint8, as from `open_pixels`.
        words: of the captions, while they are used in place of the language model; else None.
    """

    split: Split
    pixels: np.ndarray
    words: WordStates | None = None

    def sample(self, identities: int) -> StoredSplit:
        """The pictures and captions of so many identities, copied; the same ones in every call."""
        split = self.split
        chosen = np.random.default_rng(0).permutation(len(split.identities))[:identities]
        pictures = np.flatnonzero(np.isin(split.image_labels, chosen))
        captions = np.flatnonzero(np.isin(split.caption_labels, chosen))
        part = Split(
            name=split.name,
            image_paths=[split.image_paths[i] for i in pictures],
            image_labels=split.image_labels[pictures],
            captions=[split.captions[i] for i in captions],
            caption_image=np.searchsorted(pictures, split.caption_image[captions]),
            identities=split.identities,
        )
        return StoredSplit(part, self.pixels[pictures], self.words and self.words.select(captions))
