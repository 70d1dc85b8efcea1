"""The processes of a training job: one process, or several that `accelerate launch` or `torchrun` started.

Each process embeds its part of a batch. `gather` then collects the embeddings of all processes, so that the losses and
the discriminator see the whole batch, on every process alike. Gradients flow back through `gather` and are averaged
before each optimizer step; BatchNorm computes its statistics over the whole batch. So P processes with B pictures each
take the same step as one with P x B, but for their own augmentation and dropout. For one process all does nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list, reduce
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
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process computes the loss of the whole batch, so the sum over the processes is P times too large.
        # `Job.step` divides by P. Parameters that come after the gathering (classifier, discriminator) already have the
        # full gradient on every process; their average is the same gradient.
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(processes())[dist.get_rank()]


def gather(rows: Tensor) -> Tensor:
    """Rows (B, ...) of this process -> rows (P B, ...) of all P processes, in their order, with gradients."""
    return rows if processes() == 1 else _Gather.apply(rows)


class _CPUSyncBatchNorm(nn.BatchNorm2d):
    """torch.nn.SyncBatchNorm works on GPUs only. Here each process normalises the whole batch and takes its part."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        parts = super().forward(gather(input)).chunk(processes())
        return parts[dist.get_rank()].clone()  # the next layer may work in place


class Job:
    """This process's place in the job: its device and precision, the signals it received, and the other processes.

    What is not here is done by its `accelerator`. The settings are `train.mixed_precision` and `train.tracker`;
    TensorBoard's files go to `folder`. The device is a CUDA GPU, else the CPU. RunError: the tracker is not installed.
    """

    def __init__(self, mixed_precision: str = "auto", tracker: str = "none", folder: Path | None = None) -> None:
        if tracker not in ("none", *map(str, get_available_trackers())):
            raise RunError(f"train.tracker = {tracker!r} is not installed: pip install {tracker}")
        if mixed_precision == "auto":  # CPUs use float32: without native bf16 they are many times slower
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            mixed_precision = "bf16" if has_bf16 else "no"
        self.signals = Signals()
        if processes() == 1:
            AcceleratorState._reset_state()  # a process may train one run after another, each with its own precision
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=None if tracker == "none" else tracker,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.device: torch.device = self.accelerator.device
        self.index: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process

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
            advice = "The last finished epoch is kept; start the same command again with --resume"
            raise RunError(f"process {self.index} of {self.count} cannot go on: {error}\n{advice}") from error
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def on_main(self, compute: Callable[[], Result]) -> Result:
        """The main process computes; every process gets the result."""
        return broadcast_object_list([compute() if self.is_main else None])[0]

    def interrupted(self) -> bool:
        """Whether a signal reached any process. All processes get the same answer, so they stop at the same step."""
        received = self.signals.number is not None
        return received if self.count == 1 else bool(gather(torch.tensor([float(received)], device=self.device)).any())

    def share_weights(self, model: nn.Module) -> None:
        """Gives every process the main process's weights, and BatchNorm the batch of all of them. State dicts stay."""
        broadcast(model.state_dict())  # equal seeds give equal weights on equal machines only
        if self.count > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        elif self.count > 1:
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.__class__ = _CPUSyncBatchNorm

    def step(self, loss: Tensor, optimizers: Sequence[Optimizer], gradient_clip: float) -> None:
        """Backward pass, then one step; `gradient_clip` limits the norm of all their gradients together, 0 does not."""
        loss.backward()
        parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")
        if gradient_clip:
            nn.utils.clip_grad_norm_(parameters, gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
