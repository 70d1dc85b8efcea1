"""Several processes of one job, as `accelerate launch` starts them: one joint batch, the same result as one process.

Every process embeds its part of a batch and gathers all embeddings; the losses and the discriminator then see the
whole batch, on every process alike. A process's part of the gradient comes back through `gather`, the parts are
averaged before each step, and BatchNorm takes its statistics over the whole batch. Everything here does nothing in a
single process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """Processes of this job."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each process computed the whole loss: their sum is `processes()` times the gradient, and `average_gradients`
        # divides by that. Of parameters behind the gathered rows every process has the whole gradient already, and
        # an average changes nothing.
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def gather(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all processes, (P B, ...) in the order of the processes, with gradients."""
    return rows if processes() == 1 else _Gather.apply(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes; parameters without one are passed over."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    pending = [dist.all_reduce(g, async_op=True) for g in gradients]
    for work in pending:
        work.wait()
    torch._foreach_div_(gradients, processes())


class _CPUSyncBatchNorm(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm for CPUs, which torch's own refuses."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        count = input.numel() // input.shape[1] * processes()
        mean = gather(input.sum(dim=(0, 2, 3))[None]).sum(dim=0) / count
        centred = input - mean[:, None, None]
        variance = gather(centred.square().sum(dim=(0, 2, 3))[None]).sum(dim=0) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            step = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(mean, step)
                self.running_var.lerp_(variance * count / max(1, count - 1), step)
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        return scaled if self.weight is None else scaled * self.weight[:, None, None] + self.bias[:, None, None]


def synchronize_batch_norm(model: nn.Module) -> None:
    """Makes BatchNorm2d layers take their statistics over all processes, in place; saved models stay the same."""
    if processes() == 1:
        return
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = _CPUSyncBatchNorm
