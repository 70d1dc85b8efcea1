"""Stores: decoded pictures, and outputs of frozen layers, are computed once and kept on disk.

A store is a memory-mapped array in the cache folder, named by a fingerprint of its inputs: a changed picture, size,
caption or model gives another store. Processes that need the same one wait until one of them has built it.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from timam.data.records import DataError, Split
from timam.embedded import container
from timam.files import cache_folder, check_sums, replacing_folder, write_sums
from timam.images import find_unreadable, to_pixels
from timam.models import TIMAM
from timam.models.batching import encode_batches, padding_mask, slices
from timam.models.saving import transformers_config

_VERSION = b"2"  # of the stored values: raise it when decoding or resizing changes


def _fingerprint(*parts: bytes | np.ndarray | Tensor) -> str:
    digest = hashlib.sha256()
    for part in (_VERSION, *parts):
        content = part if isinstance(part, bytes) else np.ascontiguousarray(part).data
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


def _parts_of(module: nn.Module, *tensors: Tensor) -> list[bytes | Tensor]:
    """Of a fingerprint: what a module computes also follows from settings that its weights do not show."""
    config = transformers_config(getattr(module, "model", module))
    return [(json.dumps(config, sort_keys=True) if config else repr(module)).encode(), *(t.cpu() for t in tensors)]


def _open_store(name: str, dtype: type, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The array CACHE/name, read-only memory-mapped. Where it is absent or damaged, `fill` writes its values."""
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # another run may be building the same store
        try:
            check_sums(folder)
            return np.load(folder / "store.npy", mmap_mode="r")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; the store is built again", stacklevel=3)
        with replacing_folder(folder, durable=False) as new:
            array = np.lib.format.open_memmap(new / "store.npy", "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # later, writing to a page on a full disk would kill the process
                with (new / "store.npy").open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
            fill(array)
            write_sums(new)
    return np.load(folder / "store.npy", mmap_mode="r")


def open_pixels(paths: Sequence[Path], height: int, width: int, progress: bool = True) -> np.ndarray:
    """Decoded and resized pictures, read-only memory-mapped: (N, 3, height, width) uint8 in channels-last memory.

    The first call for these files and this size decodes them, in threads; later calls open the stored array. Raises
    DataError, naming every picture that cannot be read, and OSError on a full disk.
    """
    stats = [os.stat(container(p)) for p in paths]
    # With ctime, as tools that copy pictures set mtime back.
    files = [f"{p.resolve()}|{s.st_size}|{s.st_mtime_ns}|{s.st_ctime_ns}" for p, s in zip(paths, stats, strict=True)]
    name = _fingerprint(f"{height}x{width}".encode(), *map(os.fsencode, files))  # a file's name need not be UTF-8

    def fill(pixels: np.ndarray) -> None:
        def store(row: int, image: Image.Image) -> None:
            pixels[row] = to_pixels(image, height, width).transpose(1, 2, 0)

        if problems := find_unreadable(paths, progress, store):
            raise DataError("pictures", problems)

    return _open_store(f"pixels/{name}", np.uint8, (len(paths), height, width, 3), fill).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class WordStates:
    """Outputs of the frozen language model for M captions: half precision, memory-mapped, without padding."""

    states: np.ndarray  # (all tokens, C) float16
    offsets: np.ndarray  # (M + 1,) int64; caption m has the rows offsets[m] to offsets[m + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _rows(self, captions: np.ndarray) -> list[np.ndarray]:
        return [self.states[self.offsets[m] : self.offsets[m + 1]] for m in captions]

    def select(self, captions: np.ndarray) -> "WordStates":
        """A copy of the states of some captions, given by their indices, in that order."""
        rows = self._rows(captions)
        return WordStates(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))

    def gather(self, captions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Caption indices (B,) -> word states (B, T, C) float16, right-padded with zeros, and a mask (B, T) int64."""
        rows = self._rows(captions)
        states = pad_sequence([torch.from_numpy(np.array(r)) for r in rows], batch_first=True)
        return states, padding_mask([len(r) for r in rows])


def open_word_states(model: TIMAM, captions: list[str], batch_size: int = 64, progress: bool = True) -> WordStates:
    """The language model's outputs for the captions, computed on the first call and stored. OSError: a full disk."""
    token_ids, mask = model.tokenize(captions)  # (M, T)
    lengths = mask.sum(dim=1).numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    language_model = model.text_encoder.language_model
    name = _fingerprint(token_ids, offsets, *_parts_of(language_model, *language_model.state_dict().values()))

    def fill(states: np.ndarray) -> None:
        batches = slices(np.argsort(lengths, kind="stable"), batch_size)  # similar lengths together: little padding
        sentences = [[captions[m] for m in batch] for batch in batches]
        bar = "reading captions" if progress else None
        outputs = encode_batches(model, sentences, model.tokenize, model.text_encoder.word_states, bar)
        for batch, output in zip(batches, outputs, strict=True):
            for m, words in zip(batch, output.numpy(), strict=True):
                states[offsets[m] : offsets[m + 1]] = words[: lengths[m]]

    shape = int(offsets[-1]), model.text_encoder.input_width
    return WordStates(_open_store(f"word_states/{name}", np.float16, shape, fill), offsets)


def open_block_outputs(model: TIMAM, pixels: np.ndarray, batch_size: int = 64, progress: bool = True) -> np.ndarray:
    """The frozen blocks' outputs (N, C, h, w) float16 for pixels (N, 3, H, W) uint8, stored as `open_pixels` does."""
    encoder = model.image_encoder
    tensors = *encoder._parts[0].state_dict().values(), *encoder.backbone.buffers(recurse=False)  # a tower's colours
    name = _fingerprint(pixels.transpose(0, 2, 3, 1), *_parts_of(encoder.backbone, *tensors))
    _, channels, height, width = model.encode_pixels(pixels[:1], encode=encoder.block_outputs).shape

    def fill(store: np.ndarray) -> None:
        batches = list(zip(slices(store, batch_size), slices(pixels, batch_size), strict=True))
        for rows, batch in tqdm(batches, desc="frozen blocks", disable=not progress):
            rows[:] = model.encode_pixels(batch, encode=encoder.block_outputs).permute(0, 2, 3, 1).numpy()

    shape = len(pixels), height, width, channels
    return _open_store(f"blocks/{name}", np.float16, shape, fill).transpose(0, 3, 1, 2)


@dataclass
class StoredSplit:
    """A split with what is stored of it."""

    split: Split
    pixels: np.ndarray  # (N, 3, H, W) uint8
    words: WordStates | None = None  # while the language model is frozen
    blocks: np.ndarray | None = None  # (N, C, h, w) float16, outputs of the backbone's frozen blocks

    def sample(self, identities: int) -> "StoredSplit":
        """The pictures and captions of so many identities, copied; the same ones in every call."""
        split = self.split
        chosen = np.random.default_rng(0).permutation(len(split.identities))[:identities]
        pictures = np.flatnonzero(np.isin(split.image_labels, chosen))
        captions = np.flatnonzero(np.isin(split.caption_labels, chosen))
        part = replace(
            split,
            image_paths=[split.image_paths[i] for i in pictures],
            image_labels=split.image_labels[pictures],
            captions=[split.captions[i] for i in captions],
            caption_image=np.searchsorted(pictures, split.caption_image[captions]),
        )
        words = None if self.words is None else self.words.select(captions)
        blocks = None if self.blocks is None else self.blocks[pictures]
        return StoredSplit(part, self.pixels[pictures], words, blocks)
