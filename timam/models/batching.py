"""Running an encoder over many items in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm


def slices(items: Any, batch_size: int) -> list[Any]:
    """The items in consecutive batches; the last one may be smaller."""
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def padding_mask(lengths: Sequence[int]) -> Tensor:
    """(B, T) int64: 1 for the first `lengths[b]` of T = max(lengths) tokens, 0 for the padding."""
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def ahead(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """work(item) for each item, in order. A thread works one item ahead."""
    with ThreadPoolExecutor(1) as thread:
        futures = (thread.submit(work, item) for item in items)
        future = next(futures, None)
        while future is not None:
            current, future = future, next(futures, None)
            yield current.result()


def encode_batches(
    model: Any,
    batches: Sequence[Any],
    load: Callable[[Any], tuple[Tensor, ...]],
    encode: Callable[..., Tensor],
    bar: str | None = None,
) -> Iterator[Tensor]:
    """encode(*load(batch)) for each batch, in order, as float32 on the CPU; in eval mode, without gradients.

    A thread loads one batch ahead, CPU tensors with one row an item; `encode` gets them on the model's device. `bar`
    names a progress bar; None shows none.
    """

    def work(batch: Any) -> tuple[Tensor, ...]:
        if model.device.type == "cuda":
            return tuple(tensor.pin_memory().to(model.device, non_blocking=True) for tensor in load(batch))
        return load(batch)

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shown = tqdm(batches, disable=not (bar and batches), desc=bar, unit="batch")
            for loaded in ahead(work, shown):
                yield encode(*loaded).float().cpu()
    finally:
        model.train(training)
