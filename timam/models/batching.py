"""Running an encoder over many items in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from timam.images import prefetch


def slices(items: Any, batch_size: int) -> list[Any]:
    """The items in consecutive batches; the last one may be smaller. Raises ValueError for a batch_size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected 1 or more")
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def encode_batches(
    model: Any,
    batches: Sequence[Any],
    load: Callable[[Any], tuple[Tensor, ...]],
    encode: Callable[..., Tensor],
    bar: str | None = None,
) -> Iterator[Tensor]:
    """encode(*load(batch)) for each batch, in order, as float32 on the CPU; in eval mode, without gradients.

    A thread loads the next batch, CPU tensors with one row an item; `encode` gets them on the model's device.
    `bar` names a progress bar; None shows none.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for tensors in prefetch(load, tqdm(batches, disable=bar is None, desc=bar, unit="batch"), model.device):
                yield encode(*tensors).float().cpu()
    finally:
        model.train(training)
