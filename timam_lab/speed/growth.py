"""How time and memory of a training step and of the metrics grow, each next to a floor and the usual way (notebook 08).

The floor of a time is the number of floating-point operations, as torch.utils.flop_counter counts them, at the rate of
a large matrix product measured in the same run.
"""

from __future__ import annotations

import math
import os
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from timam.config import Config, override
from timam.data.augment import augments
from timam.job import Job
from timam.learner import Learner
from timam.metrics import two_way_metrics
from timam.objective import train_step
from timam_lab.speed.metrics import embeddings, usual_two_way
from timam_lab.speed.timing import Work, medians, random_model, turns

VARIANTS = ("frozen, stored", "frozen, read again", "whole")  # the second is the usual way of the first


def _convolution_backward(gradient: list[int], image: list[int], weight: list[int], *others: Any, **_: Any) -> int:
    """Two operations per weight and output, for each gradient that is asked for (of the picture, of the weight)."""
    return 2 * math.prod(gradient) * math.prod(weight[1:]) * sum(others[7][:2])


# torch's counter takes the backward pass of a grouped convolution for that of a dense one: 65 times the forward pass of
# a depthwise one with 64 channels.
CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}


def peak_memory(work: Work, device: torch.device) -> float:
    """Bytes of tensors that the work holds at its peak, without those that existed before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """`peak`: the most bytes that the storages created inside occupied at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known | given:
                    self._count(storage._cdata, storage.nbytes())
                    weakref.finalize(storage, self._count, storage._cdata, -storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, key: int, size: int) -> None:
        """A storage has come (size > 0) or gone."""
        self.known ^= {key}
        self.now += size


def machine(device: torch.device, size: int = 2048) -> dict[str, float]:
    """Operations per second of a large matrix product, in the training's precision, and bytes per second of a copy.

    The best of several rounds, as other processes may use the machine at the same time.
    """
    low = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if low else torch.float32) for _ in range(2))
    source = torch.empty(1 << 26, device=device)
    target = torch.empty_like(source)
    best = turns(9, {"product": lambda: a @ b, "copy": lambda: target.copy_(source)})["seconds"].min()
    return {"flops": 2 * size**3 / float(best["product"]), "bytes": 8 * source.numel() / float(best["copy"])}


def _with_ratio(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(ratio=frame["seconds"] / frame["floor_seconds"])


# -- a training step --------------------------------------------------------------------------------------------------


def stepper(learner: Learner, variant: str, config: Config, identities: int, tokens: int, job: Job) -> partial[Any]:
    """`timam.objective.train_step` on random inputs of the config's sizes."""
    batch, m, encoder, device = config.data.batch_size, config.model, learner.model.text_encoder, learner.model.device
    images = torch.randn(batch, 3, m.image_height, m.image_width, device=device)
    learner.model.image_encoder.freeze_blocks(config.train.frozen_blocks)
    if config.train.frozen_blocks and not augments(config.data):  # their outputs are stored
        images = learner.model.image_encoder.block_outputs(images)
    mask = torch.ones(batch, tokens, dtype=torch.long, device=device)
    encoder.freeze(variant != "whole")
    learner.model.train()
    images = images.contiguous(memory_format=torch.channels_last)
    stored = variant == "frozen, stored"
    words = torch.randn(batch, tokens, encoder.input_width, device=device) if stored else mask
    inputs = {"images": images, "words": words, "attention_mask": mask, "lengths": torch.full((batch,), tokens)}
    labels = torch.arange(batch, device=device) % identities
    return partial(train_step, learner, inputs, labels, config, job)


def step_costs(
    config: Config,
    identities: int,
    tokens: int,
    device: torch.device,
    peak: dict[str, float],
    rounds: int = 3,
    variants: Sequence[str] = VARIANTS,
) -> Iterator[dict[str, Any]]:
    """A row per variant: seconds, floor and peak memory of `timam.objective.train_step`.

    Args:
        config: gives batch and picture size.
        identities: rows of the classifier.
        tokens: tokens of every caption.
        peak: of `machine`.
        variants: of `VARIANTS`.
    """
    job, model = Job(config.train.mixed_precision), random_model(config.model, identities, ["a man"], device)
    learner = Learner.build(model, config, 1)
    for variant in variants:
        step = stepper(learner, variant, config, identities, tokens, job)
        step()  # the optimizers have their state afterwards
        with FlopCounterMode(display=False, custom_mapping=CORRECTED) as counted:
            step()
        flops = counted.get_total_flops()
        if not model.text_encoder.pooled:
            # torch's counter does not know the LSTM: two directions, four gates, forward and twice that backward.
            hidden, width = model.text_encoder.lstm.hidden_size, model.text_encoder.lstm.input_size
            flops += 3 * 2 * 2 * 4 * hidden * (hidden + width) * config.data.batch_size * tokens
        times = medians(rounds, {"seconds": step})
        yield {"variant": variant, **times, "flops": flops, "floor_seconds": flops / peak["flops"],
               "memory": peak_memory(step, device)}  # fmt: skip


def training_growth(
    config: Config,
    axes: dict[str, list[int]],
    base: dict[str, int],
    device: torch.device,
    peak: dict[str, float],
    rounds: int = 3,
) -> pd.DataFrame:
    """One size varied at a time, the others as in `base`.

    Args:
        axes: levels of batch, height (the width keeps the preset's ratio), tokens and identities.
    """
    ratio = config.model.image_width / config.model.image_height
    rows, known = [], {}
    for axis, level in [(axis, level) for axis, levels in axes.items() for level in levels]:
        chosen = {**base, axis: level}
        key = tuple(chosen.values())
        if key not in known:
            batch, tokens, height = chosen["batch"], chosen["tokens"], chosen["height"]
            sizes = [f"batch_size={batch}", f"max_tokens={tokens}", f"image_height={height}"]
            sized = override(config, [*sizes, f"image_width={round(height * ratio)}"])
            known[key] = list(step_costs(sized, chosen["identities"], tokens, device, peak, rounds))
        rows += [{"axis": axis, "level": level, **costs} for costs in known[key]]
    return _with_ratio(rows)


def process_growth(config: Config, identities: int, tokens: int, counts: list[int], rounds: int = 3) -> pd.DataFrame:
    """Several processes share the config's batch, each with a GPU, or without any with one core.

    Returns:
        A row per number of processes and variant; the floor is the time of the first number, shared out.
    """
    rows: list[dict[str, Any]] = []
    for count in counts:
        part = override(config, [f"batch_size={config.data.batch_size // count}"])
        measured = launch(count, _process, part, identities, tokens, rounds)
        rows += [{"axis": "processes", "level": count, "variant": v, "seconds": s} for v, s in measured.items()]
    first = {row["variant"]: row["seconds"] * counts[0] for row in rows if row["level"] == counts[0]}
    return _with_ratio([{**row, "floor_seconds": first[row["variant"]] / row["level"]} for row in rows])


def launch(count: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in the first of `count` processes, which torch's launcher starts as `torchrun` would."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    one_machine = LaunchConfig(
        1, 1, count, run_id="speed", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", max_restarts=0
    )
    try:
        return elastic_launch(one_machine, work)(*arguments)[0]
    finally:
        for number, handler in handlers.items():  # the launcher leaves its own, which end a notebook with a traceback
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _process(config: Config, identities: int, tokens: int, rounds: int) -> dict[str, float]:
    """One of the processes of `process_growth`: seconds of each variant."""
    if not torch.cuda.is_available():
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    job = Job(config.train.mixed_precision)
    model = random_model(config.model, identities, ["a man"], job.device)
    job.share_weights(model)
    learner = Learner.build(model, config, 1)
    taken: dict[str, float] = {}
    for variant in ("frozen, stored", "whole"):
        taken |= medians(rounds, {variant: stepper(learner, variant, config, identities, tokens, job)})
    torch.distributed.destroy_process_group()
    return taken


# -- metrics ----------------------------------------------------------------------------------------------------------


def metric_growth(galleries: list[int], width: int, device: torch.device, peak: dict[str, float]) -> pd.DataFrame:
    """Metrics of both directions, ours and the usual way; two captions a picture, three pictures an identity."""
    rows = []
    for size in galleries:
        both = [tensor.to(device) for tensor in embeddings(size, 2 * size, max(1, size // 3), width)]
        ways: dict[str, tuple[Callable[..., Any], int]] = {"ours": (two_way_metrics, 3),
                                                           "the usual way": (usual_two_way, 1)}  # fmt: skip
        for variant, (compute, rounds) in ways.items():
            work = partial(compute, *both)
            rows.append({"axis": "gallery", "level": size, "variant": variant, "memory": peak_memory(work, device),
                         **medians(rounds, {"seconds": work}),
                         "floor_seconds": 2 * size * 2 * size * width / peak["flops"]})  # fmt: skip
    return _with_ratio(rows)
