"""Stores: what never changes during training is computed once, kept in a memory-mapped file and gathered from it.

Each store's file is named by a fingerprint of its inputs, so a changed picture, size, caption or model makes
another store. Files appear whole or not at all, also when two runs build the same one at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from timam.data.records import DataError
from timam.files import cache_folder, replacing_file
from timam.images import ImageError, read_image, to_pixels
from timam.models import TIMAM
from timam.models.joint import eval_mode

_VERSION = b"2"  # of the stored form: raise it when decoding or resizing changes


def _fingerprint(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in (_VERSION, *parts):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(f"{path}: the store needs {size:,} bytes and the disk has {free:,}; set TIMAM_CACHE to another")


def open_pixels(paths: Sequence[Path], height: int, width: int, progress: bool = True) -> np.ndarray:
    """Decoded and resized pictures, read-only memory-mapped: (N, 3, height, width) uint8 in channels-last memory.

    Decodes in parallel threads on the first call for these files and this size (Pillow releases the
    interpreter's lock); later calls open the stored file. Every unreadable picture is found before any is used.

    Raises:
        DataError: every picture that cannot be read.
        OSError: too little space on the disk.
    """
    stats = [os.stat(p) for p in paths]
    # The time of the last change of status, too: tools that copy pictures set back the time of modification.
    files = [f"{p.resolve()}|{s.st_size}|{s.st_mtime_ns}|{s.st_ctime_ns}" for p, s in zip(paths, stats, strict=True)]
    target = cache_folder() / "pixels" / f"{_fingerprint(f'{height}x{width}'.encode(), *map(str.encode, files))}.npy"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target, len(paths) * 3 * height * width)
        with replacing_file(target) as temporary:
            _build_pixels(temporary, paths, height, width, progress)
    return np.load(target, mmap_mode="r").transpose(0, 3, 1, 2)


def _build_pixels(target: Path, paths: Sequence[Path], height: int, width: int, progress: bool) -> None:
    pixels = np.lib.format.open_memmap(target, "w+", np.uint8, (len(paths), height, width, 3))

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
    pixels.flush()


class WordStates:
    """The frozen language model's outputs for a list of captions: half precision, ragged, memory-mapped.

    Args:
        states: (all tokens, C) float16.
        offsets: (M + 1,) int64; caption m has the rows offsets[m] to offsets[m + 1].
    """

    def __init__(self, states: np.ndarray, offsets: np.ndarray) -> None:
        self.states, self.offsets = states, offsets

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
    target = cache_folder() / "word_states" / f"{name}.npy"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        width = model.text_encoder.lstm.input_size
        _check_space(target, int(offsets[-1]) * width * 2)
        with replacing_file(target) as temporary:
            states = np.lib.format.open_memmap(temporary, "w+", np.float16, (int(offsets[-1]), width))
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
            states.flush()
    return WordStates(np.load(target, mmap_mode="r"), offsets)
