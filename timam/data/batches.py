"""Batches: pictures with one caption each and their identities. Their order depends on seed and epoch only."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timam.config import DataConfig
from timam.data.records import Split


@dataclass(frozen=True)
class Batch:
    """B pictures with one caption each."""

    pixels: Tensor  # (B, 3, H, W) uint8
    identity_labels: Tensor  # (B,) int64
    captions: np.ndarray  # (B,) indices into the split's captions


def epoch_order(image_labels: np.ndarray, images_per_identity: int, rng: np.random.Generator) -> np.ndarray:
    """The order in which an epoch visits the N pictures, each once: a permutation (N,) int64; of their labels (N,).

    `images_per_identity`: 0 shuffles all pictures. K places up to K pictures of an identity next to each other, so that
    a batch holds several positives.
    """
    order = rng.permutation(len(image_labels))
    if images_per_identity == 0:
        return order
    by_identity = order[np.argsort(image_labels[order], kind="stable")]
    position = np.arange(len(order)) - np.searchsorted(image_labels[by_identity], image_labels[by_identity])
    group = np.cumsum(position % images_per_identity == 0) - 1  # runs of up to K within an identity
    place = rng.permutation(group[-1] + 1)[group]
    return by_identity[np.argsort(place, kind="stable")]


def epoch_batches(
    split: Split,
    pixels: np.ndarray,
    config: DataConfig,
    seed: int,
    epoch: int,
    part: tuple[int, int] = (0, 1),
    first: int = 0,
) -> Iterator[Batch]:
    """One epoch: every picture once, each with one of its captions, drawn anew in every epoch.

    An incomplete last batch is dropped: its loss is not comparable, and a batch of one has no negatives. A split
    smaller than one batch is one batch. `pixels` are (N, 3, H, W); `part` (i, n) yields the i-th of n equal parts of
    every batch, for the processes of a job; `first` batches are skipped, when an interrupted epoch is resumed.
    """
    rng = np.random.default_rng([seed, epoch])
    order = epoch_order(split.image_labels, config.images_per_identity, rng)
    of_images = split.captions_of_image
    drawn = rng.integers([len(of_image) for of_image in of_images])
    captions = np.array([of_image[i] for of_image, i in zip(of_images, drawn, strict=True)])
    size = config.batch_size
    for step in range(first, steps_per_epoch(len(order), size)):
        chosen = np.array_split(order[step * size : (step + 1) * size], part[1])[part[0]]
        labels = torch.from_numpy(split.image_labels[chosen])
        yield Batch(torch.from_numpy(pixels[chosen]), labels, captions[chosen])


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches in an epoch over `images` pictures."""
    return max(1, images // batch_size)
