"""The processes of a training job: one process, or several that `accelerate launch` or `torchrun` started.

Each process embeds its part of a batch. `gather` then collects the embeddings of all processes, so that the losses and
the discriminator see the whole batch, on every process alike. Gradients flow back through `gather` and are averaged
before each optimizer step; BatchNorm computes its statistics over the whole batch. So P processes with B pictures each
take the same step as one process with P x B pictures. With a single process all of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer

from timam.interruption import Signals, interruptible
from timam.run import RunError

# How long a process waits for the others. The main process may be building a store, which takes hours for large data;
# torch's default of ten minutes would end the job. The launcher notices a process that died at once.
PATIENCE = timedelta(days=1)

Result = TypeVar("Result")


def processes() -> int:
    """The number of processes of this job, P."""
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
        # Every process computes the loss of the whole batch, so the sum over the processes is P times too large.
        # `average_gradients` divides by P. Parameters that come after the gathering (classifier, discriminator) already
        # have the full gradient on every process; their average is the same gradient.
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def gather(rows: Tensor) -> Tensor:
    """Rows (B, ...) of this process -> rows (P B, ...) of all P processes, in their order, with gradients."""
    return rows if processes() == 1 else _Gather.apply(rows)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes. Parameters without a gradient are skipped."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for work in [dist.all_reduce(g, async_op=True) for g in gradients]:
        work.wait()
    torch._foreach_div_(gradients, processes())


class _CPUSyncBatchNorm(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm works on GPUs only; this one works on CPUs."""

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
    """Makes BatchNorm2d layers compute their statistics over all processes, in place. State dicts do not change."""
    if processes() == 1:
        return
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.__class__ = _CPUSyncBatchNorm


class Job:
    """This process's place in the job: its device and precision, the signals it received, and the other processes.

    The settings are `train.mixed_precision` and `train.tracker`; TensorBoard's files go to `folder`. Raises RunError:
    several processes were started, but they cannot find each other; or the tracker is not installed.
    """

    def __init__(self, mixed_precision: str = "auto", tracker: str = "none", folder: Path | None = None) -> None:
        if tracker not in ("none", *map(str, get_available_trackers())):
            raise RunError(f"train.tracker = {tracker!r} is not installed: pip install {tracker}")
        if mixed_precision == "auto":  # CPUs use float32: without native bf16 they are many times slower
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            mixed_precision = "bf16" if has_bf16 else "no"
        self.signals = Signals()
        self._accelerator = Accelerator(
            mixed_precision=mixed_precision,
            log_with=None if tracker == "none" else tracker,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.device: torch.device = self._accelerator.device
        self.index: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        if int(os.environ.get("WORLD_SIZE", "1")) != self.count:  # each would train alone and overwrite the others
            raise RunError(
                "started as one of several processes, but without GPUs: set ACCELERATE_USE_CPU=true to use CPUs"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM raise `Interrupted`, or wait while `signals.held`.

        In a job of several processes, RunError says what to do where torch's error alone would not.
        """
        try:
            with interruptible(several=self.count > 1) as self.signals:
                yield
        except RuntimeError as error:
            if self.count == 1 or isinstance(error, RunError):
                raise
            raise RunError(
                f"process {self.index} of {self.count} cannot go on: {error}\nThe last finished epoch is kept; start "
                "the same command again with --resume"
            ) from error
        finally:
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def start_tracking(self, name: str, settings: dict[str, Any]) -> None:
        """Opens the tracker, if there is one, with the run's name and its settings."""
        options = {tracker: {"name": name} for tracker in ("wandb", "trackio")}
        self._accelerator.init_trackers("timam", settings, options)

    def track(self, row: dict[str, Any]) -> None:
        self._accelerator.log(row, step=row["epoch"])

    def on_main(self, compute: Callable[[], Result]) -> Result:
        """The main process computes; every process gets the result."""
        results: list[Any] = [compute() if self.is_main else None]
        if self.count > 1:
            broadcast_object_list(results)
        return results[0]

    def main_first(self) -> AbstractContextManager[None]:
        """The main process runs the block first; the others then find, for example, the store that it built."""
        return self._accelerator.main_process_first()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()

    def interrupted(self) -> bool:
        """Whether a signal reached any process. All processes get the same answer, so they stop at the same step."""
        received = self.signals.number is not None
        return received if self.count == 1 else bool(gather(torch.tensor([float(received)], device=self.device)).any())

    def share_weights(self, model: nn.Module) -> None:
        """Gives every process the main process's weights: equal seeds give equal weights on equal machines only."""
        broadcast(model.state_dict())
        synchronize_batch_norm(model)

    def autocast(self) -> AbstractContextManager[None]:
        return self._accelerator.autocast()

    def step(self, loss: Tensor, optimizers: Sequence[Optimizer], gradient_clip: float) -> None:
        """Backward pass, then one step; `gradient_clip` limits the norm of all their gradients together, 0 does not."""
        loss.backward()
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        average_gradients(parameters)
        if gradient_clip:
            nn.utils.clip_grad_norm_(parameters, gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
