"""How time and memory of a training step and of the metrics grow, each beside a floor and the peers' way (notebook 08).

The floor of a time is the floating-point operations, as torch.utils.flop_counter counts them, at the rate of a large
matrix product measured in the same run, or for what only moves data the bytes at the measured memory bandwidth.
"""

from __future__ import annotations

import math
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.multiprocessing as multiprocessing
import torchvision
import transformers
from accelerate import Accelerator
from evaluation import test_set, usual, usual_product
from timam.distributed import synchronize_batch_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from timam.config import Config, override
from timam.metrics import two_way_metrics
from timam.models import TIMAM
from timam.models.text_encoder import word_tokenizer
from timam.training import _mixed_precision, build_optimizers, train_step

VARIANTS = ("frozen, stored", "frozen, read again", "whole")  # the second is the peers' way of the first


def _convolution_backward(gradient: list[int], image: list[int], weight: list[int], *others: Any, **_: Any) -> int:
    """Two operations a weight and output, for each gradient that is asked for (of the picture, of the weight)."""
    return 2 * math.prod(gradient) * math.prod(weight[1:]) * sum(others[7][:2])


# torch's counter takes the backward pass of a convolution in groups for that of a dense one: 65 times the forward pass
# of a depthwise one with 64 channels.
CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, rounds: int = 3, best: bool = False) -> float:
    """The median of `rounds`, or the best of them, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found[1:]) if best else median(found[1:])


def peak_memory(work: Callable[[], Any], device: torch.device) -> float:
    """Bytes of tensors that the work holds at its peak, what was there before not counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        work()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """The most bytes that the storages made inside occupied at one time."""

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
                    self._hold(storage)
        self.peak = max(self.peak, self.now)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def machine(device: torch.device, size: int = 2048) -> dict[str, float]:
    """Operations a second of a large matrix product, in the training's precision, and bytes a second of a copy.

    The best of several rounds, as a floor must be: others may use the machine at the same time.
    """
    dtype = torch.bfloat16 if _mixed_precision("auto") == "bf16" and device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(1 << 26, device=device)
    target = torch.empty_like(source)
    product = seconds(lambda: a @ b, device, 9, best=True)
    copy = seconds(lambda: target.copy_(source), device, 9, best=True)
    return {"flops": 2 * size**3 / product, "bytes": 2 * 4 * source.numel() / copy}


def build(config: Config, identities: int, device: torch.device) -> TIMAM:
    """The config's architecture with random weights: the times are those of any weights, and no hub is asked."""
    torch.manual_seed(0)
    backbone = torchvision.models.get_model(config.model.backbone, weights=None)
    language_model = transformers.BertModel(language_shape(config.model.language_model), add_pooling_layer=False)
    return TIMAM(config.model, identities, word_tokenizer(["a man a woman"]), backbone, language_model).to(device)


def language_shape(name: str) -> transformers.BertConfig:
    """BERT-base, or MiniLM's shape for MiniLM."""
    if "MiniLM" in name:
        return transformers.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    return transformers.BertConfig()


def step_costs(config: Config, identities: int, tokens: int, device: torch.device, peak: dict[str, float],
               rounds: int = 3) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row a variant: seconds, floor and peak memory of `timam.training.train_step`.

    Args:
        config: gives batch and picture size.
        identities: rows of the classifier.
        tokens: word pieces of every caption.
        peak: of `machine`.
    """
    model, batch = build(config, identities, device), config.data.batch_size
    accelerator = Accelerator(mixed_precision=_mixed_precision(config.train.mixed_precision))
    optimizers = build_optimizers(model, config.train)
    for variant in VARIANTS:
        step = stepper(model, variant, config, identities, tokens, optimizers, accelerator, device)
        step()  # optimizers have their state afterwards
        with FlopCounterMode(display=False, custom_mapping=CORRECTED) as counted:
            step()
        # torch's counter knows no LSTM: two directions, four gates, forward and twice that backward.
        hidden, width = model.text_encoder.lstm.hidden_size, model.text_encoder.lstm.input_size
        flops = counted.get_total_flops() + 3 * 2 * 2 * 4 * hidden * (hidden + width) * batch * tokens
        yield {"variant": variant, "seconds": seconds(step, device, rounds), "flops": flops,
               "floor_seconds": flops / peak["flops"], "memory": peak_memory(step, device)}  # fmt: skip


def stepper(model: TIMAM, variant: str, config: Config, identities: int, tokens: int, optimizers: dict[str, Any],
            accelerator: Accelerator, device: torch.device) -> Callable[[], Any]:  # fmt: skip
    """`train_step` on drawn inputs of the config's sizes."""
    batch, m = config.data.batch_size, config.model
    images = torch.randn(batch, 3, m.image_height, m.image_width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % identities
    mask = torch.ones(batch, tokens, dtype=torch.long, device=device)
    words = torch.randn(batch, tokens, model.text_encoder.lstm.input_size, device=device)
    model.text_encoder.freeze(variant != "whole")
    model.train()
    side = {"word_states": words} if variant == "frozen, stored" else {"token_ids": mask}
    text = {**side, "attention_mask": mask, "lengths": torch.full((batch,), tokens)}
    return partial(train_step, model, images, text, labels, optimizers, config.loss, accelerator)


def process_growth(config: Config, identities: int, tokens: int, counts: list[int], rounds: int = 3) -> pd.DataFrame:
    """Several processes share the config's batch, each with a GPU, or without any with one core.

    Returns:
        A row a number of processes and variant; the floor is the time of the first number, shared out.
    """
    rows = []
    for count in counts:
        with multiprocessing.get_context("spawn").Manager() as manager, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            found = manager.dict()
            multiprocessing.spawn(_process, (count, port, config, identities, tokens, rounds, found), nprocs=count)
            rows += [{"axis": "processes", "level": count, "variant": v, "seconds": s} for v, s in found.items()]
    frame = pd.DataFrame(rows)
    first = frame[frame["level"] == counts[0]].set_index("variant")["seconds"]
    frame["floor_seconds"] = frame["variant"].map(first) * counts[0] / frame["level"]
    frame["ratio"] = frame["seconds"] / frame["floor_seconds"]
    return frame


def _process(rank: int, count: int, port: int, config: Config, identities: int, tokens: int, rounds: int,
             found: Any) -> None:  # fmt: skip
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": str(port),
                       "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["OMP_NUM_THREADS"] = "1"  # Accelerate sets what several processes have
        torch.set_num_threads(1)
    config = override(config, [f"batch_size={config.data.batch_size // count}"])
    accelerator = Accelerator(mixed_precision=_mixed_precision(config.train.mixed_precision), cpu=not cuda)
    model = build(config, identities, accelerator.device)
    synchronize_batch_norm(model)
    optimizers = build_optimizers(model, config.train)
    for variant in ("frozen, stored", "whole"):
        step = stepper(model, variant, config, identities, tokens, optimizers, accelerator, accelerator.device)
        taken = seconds(step, accelerator.device, rounds)
        if rank == 0:
            found[variant] = taken
    if count > 1:
        torch.distributed.destroy_process_group()


def training_growth(config: Config, axes: dict[str, list[int]], base: dict[str, int], device: torch.device,
                    peak: dict[str, float], rounds: int = 3) -> pd.DataFrame:  # fmt: skip
    """One thing varied at a time, the others as in `base`.

    Args:
        axes: levels of batch, height (the width keeps the preset's ratio), tokens and identities.
    """
    ratio = config.model.image_width / config.model.image_height
    rows, known = [], {}
    for axis, levels in axes.items():
        for level in levels:
            chosen = {**base, axis: level}
            key = tuple(chosen.values())
            if key not in known:
                sized = override(config, [f"batch_size={chosen['batch']}", f"image_height={chosen['height']}",
                                          f"image_width={round(chosen['height'] * ratio)}",
                                          f"max_tokens={chosen['tokens']}"])  # fmt: skip
                known[key] = list(
                    step_costs(sized, chosen["identities"], chosen["tokens"], device, peak, rounds=rounds)
                )
            rows += [{"axis": axis, "level": level, **found} for found in known[key]]
    frame = pd.DataFrame(rows)
    frame["ratio"] = frame["seconds"] / frame["floor_seconds"]
    return frame


def metric_growth(galleries: list[int], width: int, device: torch.device, peak: dict[str, float]) -> pd.DataFrame:
    """Metrics of both directions, with two captions a picture and three pictures an identity: ours, and the peers'."""
    rows = []
    for size in galleries:
        images, texts, image_ids, text_ids = (t.to(device) for t in test_set(size, 2 * size, max(1, size // 3), width))

        def ours(sides: tuple[torch.Tensor, ...] = (images, texts, image_ids, text_ids)) -> None:
            two_way_metrics(*sides)

        def theirs(sides: tuple[torch.Tensor, ...] = (images, texts, image_ids, text_ids)) -> None:
            similarity = usual_product(sides[1], sides[0])
            usual(similarity, sides[3], sides[2], True)
            usual(similarity.T, sides[2], sides[3], True)

        for variant, work in (("ours", ours), ("the peers' way", theirs)):
            flops = 2 * len(images) * len(texts) * width
            rows.append({"axis": "gallery", "level": size, "variant": variant, "memory": peak_memory(work, device),
                         "seconds": seconds(work, device, 1 if variant != "ours" else 3),
                         "floor_seconds": flops / peak["flops"]})  # fmt: skip
    frame = pd.DataFrame(rows)
    frame["ratio"] = frame["seconds"] / frame["floor_seconds"]
    return frame
