"""Steps of our training loop beside a bare forward, backward and optimizer step of the same encoders.

    GOMP_SPINCOUNT=1000 python benchmarks/training.py --output reports/benchmarks/training.md

Both take turns in one process, at the shapes of a preset with random weights; ours reads pictures and captions from the
stores and does everything that a run does in an epoch, the bare step has normalised pictures and token ids (or word
states) of the same batches in memory. Works on a GPU where there is one.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # everything here is made on the spot
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import click
import torch
import transformers
from accelerate import Accelerator
from timam.checkpoints import Progress
from torch.profiler import ProfilerActivity, profile

from timam.config import PRESETS, Config, override
from timam.data import Split, load_dataset
from timam.data.augment import augment
from timam.data.batches import Batch, epoch_batches
from timam.images import normalize
from timam.interruption import Signals
from timam.losses import cmpm_loss, norm_softmax_loss
from timam.models import TIMAM
from timam.models.text_encoder import word_tokenizer
from timam.provenance import provenance
from timam.stores import WordStates, open_pixels, open_word_states
from timam.training import _mixed_precision, _text_inputs, _train_epoch, build_optimizers
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians

IDENTITIES = 11_003  # of CUHK-PEDES' training split: the identity classifier's rows


@dataclass
class Setting:
    """A model of a preset's shape with its data, ready to step."""

    config: Config
    model: TIMAM
    split: Split
    pixels: Any
    words: WordStates | None
    optimizers: dict[str, Any]
    accelerator: Accelerator
    steps: int

    def ours(self) -> None:
        """An epoch of `steps` steps, as `timam.training.fit` does it."""
        _train_epoch(self.model, self.split, self.pixels, self.words, self.optimizers, {}, self.config, Progress(),
                     self.accelerator, self.steps, False, Signals())  # fmt: skip

    def batches(self) -> list[Batch]:
        """Those of `ours`."""
        found = epoch_batches(self.split, self.pixels, self.config.data, self.config.train.seed, 1)
        return [batch for _, batch in zip(range(self.steps), found, strict=False)]

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        text = _text_inputs(self.model, self.split, batch, self.words, self.accelerator.device)
        return {"images": normalize(batch.pixels.to(self.accelerator.device)), **text}

    def bare(self, inputs: list[dict[str, torch.Tensor]]) -> None:
        """The same encoders' forward, backward and optimizer steps, on tensors in memory."""
        self.model.train()
        for step in inputs:
            with self.accelerator.autocast():
                images, texts = self.model(**step)
            (images.float().square().mean() + texts.float().square().mean()).backward()
            for name in ("image", "text"):
                self.optimizers[name].step()
                self.optimizers[name].zero_grad(set_to_none=True)


def prepare(preset: str, frozen: bool, batch_size: int, steps: int, work: Path, settings: list[str]) -> Setting:
    """A preset's architecture with random weights (BERT-base for MiniLM too where `settings` say so), on rendered data.

    Args:
        frozen: the stage with the frozen language model and its stored outputs, else the one that trains everything.
        settings: as `timam train --set` has them.
    """
    config = override(PRESETS[preset], [f"data.batch_size={batch_size}", "train.schedule=plateau", *settings])
    if preset in ("paper", "modern"):  # no hub here: the same shapes, random weights
        config = override(config, [f"model.language_model={work / 'bert'}", "model.backbone_weights=none"])
    data = work / f"{config.model.image_height}x{config.model.image_width}"
    if not data.exists():
        size = min(512, config.model.image_height), min(512, config.model.image_width)
        people = max(4, -(-batch_size * steps // 2))
        spec = PedestrianSpec(train_identities=people, val_identities=1, test_identities=1, height=size[0],
                              width=size[1])  # fmt: skip
        render_pedestrians(data, spec, progress=False)
    split = load_dataset("cuhk-pedes", str(data)).split("train")
    if not (work / "bert").exists():
        torch.manual_seed(0)
        transformers.BertModel(transformers.BertConfig()).save_pretrained(work / "bert")
        word_tokenizer(split.captions).save_pretrained(work / "bert")
    accelerator = Accelerator(mixed_precision=_mixed_precision(config.train.mixed_precision))
    torch.manual_seed(0)
    model = TIMAM.pretrained(config.model, IDENTITIES, split.captions).to(accelerator.device)
    optimizers = build_optimizers(model, config.train)
    model.text_encoder.freeze(frozen)
    pixels = open_pixels(split.image_paths, config.model.image_height, config.model.image_width, progress=False)
    words = open_word_states(model, split.captions, progress=False) if frozen else None
    prepared = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    return Setting(config, model, split, pixels, words, prepared, accelerator, steps)


def cost(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads: a shared machine disturbs the latter less."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, processor = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - processor


def turns(rounds: int, device: torch.device, **contenders: Callable[[], Any]) -> dict[str, list[tuple[float, float]]]:
    """The `cost` of each contender in each round, taking turns after a first time that does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            taken = cost(work, device)
            if number:
                found[name].append(taken)
    return found


def costs(rounds: int, device: torch.device, **contenders: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """The medians of `turns`."""
    found = turns(rounds, device, **contenders)
    return {name: (median(t[0] for t in v), median(t[1] for t in v)) for name, v in found.items()}


def overhead(bare: list[tuple[float, float]], ours: list[tuple[float, float]], clock: int) -> str:
    """Ours beyond the bare step of the same round, in percent: median over the rounds, and quartiles.

    Neighbours in time share the machine's mood, which changes by more than the few percent that are looked for.
    """
    low, middle, high = quantiles([100 * (o[clock] / b[clock] - 1) for b, o in zip(bare, ours, strict=True)], n=4)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def set_fused(optimizers: dict[str, Any], fused: bool) -> None:
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["fused"] = fused


def parts(setting: Setting) -> dict[str, Callable[[], Any]]:
    """What ours does beyond the bare step, piece by piece, for one batch."""
    batch, data, device = setting.batches()[0], setting.config.data, setting.accelerator.device
    images, labels = normalize(batch.pixels.to(device)), batch.identity_labels.to(device)
    dim = setting.config.model.embedding_dim
    embeddings = [torch.randn(len(labels), dim, device=device, requires_grad=True) for _ in range(2)]
    weights, bias = setting.model.class_weights, setting.model.class_bias

    def losses() -> None:
        identification = [norm_softmax_loss(e, weights[0], bias[0], labels) for e in embeddings]
        (cmpm_loss(*embeddings, labels) + sum(identification)).backward()
        setting.model.zero_grad(set_to_none=True)

    def discriminator() -> None:  # its own step and the encoders' loss through it
        for _ in range(2):
            sum(setting.model.discriminator(e).square().mean() for e in embeddings).backward()
        setting.optimizers["discriminator"].step()
        setting.optimizers["discriminator"].zero_grad(set_to_none=True)

    return {
        "reading the pictures": lambda: torch.from_numpy(setting.pixels[: len(labels)].copy()),
        "normalising them": lambda: normalize(batch.pixels.to(device)),
        "augmentation": lambda: augment(images, data),
        "captions": partial(_text_inputs, setting.model, setting.split, batch, setting.words, device),
        "matching and identification": losses,
        "discriminator": discriminator,
    }


def profiled(setting: Setting, rows: int = 18) -> str:
    """torch.profiler's table of one epoch of ours."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    setting.steps = min(setting.steps, 2)
    with profile(activities=kinds) as found:
        setting.ours()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return found.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=45)


def measure(setting: Setting, rounds: int, trials: bool) -> tuple[list[str], list[str]]:
    """Rows of the table of overheads, and of what was tried."""
    device, steps = setting.accelerator.device, setting.steps
    inputs = [setting.inputs(batch) for batch in setting.batches()]
    stage = "frozen" if setting.words else "whole"
    name = f"{setting.config.preset}, {stage} | {setting.config.data.batch_size}"
    found = turns(rounds, device, bare=partial(setting.bare, inputs), ours=setting.ours)
    bare, ours = (median(t[0] for t in found[who]) / steps for who in ("bare", "ours"))
    pieces = costs(5, device, **parts(setting))
    beyond = ", ".join(f"{what} {1000 * wall:.1f}" for what, (wall, _) in pieces.items())
    beyond_bare = " | ".join(overhead(found["bare"], found["ours"], clock) for clock in (0, 1))
    overheads = [f"| {name} | {bare:.3f} | {ours:.3f} | {beyond_bare} | {beyond} |"]
    kept = tried(setting, inputs[:1], rounds) if trials else {}
    return overheads, [f"| {what} | {name} | {wall:.2f} | {cpu:.2f} |" for what, (wall, cpu) in kept.items()]


def tried(setting: Setting, inputs: list[dict[str, torch.Tensor]], rounds: int) -> dict[str, tuple[float, float]]:
    """How many times as fast each switch makes what it is for, by the clock and by processor time: without / with."""
    device, model = setting.accelerator.device, setting.model
    encoder, images = model.image_encoder, inputs[0]["images"]

    def fused(value: bool) -> None:
        set_fused(setting.optimizers, value)
        setting.bare(inputs)

    def twice() -> None:  # another pass for the discriminator, instead of the encoders' own, detached
        with torch.no_grad(), setting.accelerator.autocast():
            model(**inputs[0])
        setting.bare(inputs)

    def step(encoder: torch.nn.Module, images: torch.Tensor, low: bool = False) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            loss = encoder(images).float().square().mean()
        loss.backward()
        encoder.zero_grad(set_to_none=True)

    def ratios(without: Callable[[], Any], with_: Callable[[], Any]) -> tuple[float, float]:
        found = costs(rounds, device, without=without, with_=with_)
        return found["without"][0] / found["with_"][0], found["without"][1] / found["with_"][1]

    plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    ours = partial(step, encoder, images)
    results = {
        "fused optimizers: a bare step": ratios(partial(fused, False), partial(fused, True)),
        "one encoder pass for both players: a bare step": ratios(twice, partial(setting.bare, inputs)),
        "channels_last: the image encoder": ratios(partial(step, plain, images.contiguous()), ours),
        "bf16: the image encoder": ratios(ours, partial(step, encoder, images, True)),
    }
    compiled = copy.deepcopy(encoder)
    compiled.compile(dynamic=False)
    started = time.perf_counter()
    step(compiled, images)
    waited = time.perf_counter() - started
    results[f"torch.compile ({waited:.0f} s to compile): the image encoder"] = ratios(
        ours, partial(step, compiled, images)
    )
    torch._dynamo.reset()
    return results


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--settings", default="", help="As timam train --set, separated by spaces; for all presets.")
@click.option("--batch", default=8, help="Pictures a step for paper and modern.")
@click.option("--steps", default=3)
@click.option("--rounds", default=3)
@click.option("--trials", is_flag=True, help="What each switch brings, instead of profiles; many more steps.")
def main(output: Path, settings: str, batch: int, steps: int, rounds: int, trials: bool) -> None:
    """Writes the tables to OUTPUT, and the profiles beside it."""
    overheads, tried = [], []
    with tempfile.TemporaryDirectory(prefix="timam-benchmark-") as folder:
        os.environ["TIMAM_CACHE"] = f"{folder}/cache"
        for preset in ("quick", "paper", "modern"):
            for frozen in (True, False):
                size = 32 if preset == "quick" else batch
                setting = prepare(preset, frozen, size, steps, Path(folder) / preset, settings.split())
                more, switches = measure(setting, rounds, trials)
                overheads, tried = overheads + more, tried + switches
                print(*more, *switches, sep="\n", flush=True)
                stage = "frozen" if frozen else "whole"
                if preset != "modern" and not trials:
                    table = profiled(setting)
                    output.with_name(f"training_profile_{preset}_{stage}.txt").write_text(table)
    made = provenance(setting.accelerator.device)
    command = " ".join(["python", "benchmarks/training.py", *sys.argv[1:]])
    lines = ["# Training", "", f"`{command}` at commit {made['commit']}, {made['device']}, {made['threads']} threads, "
             f"torch {made['torch']}. Medians of {rounds} rounds of {steps} steps in which the contenders take "
             "turns in one process; overheads are of the pairs, with quartiles.", "",
             "| preset, stage | batch | bare step, s | ours, s | overhead | of processor time | beyond, alone (ms) |",
             "|---|---|---|---|---|---|---|", *overheads, ""]  # fmt: skip
    if trials:
        lines += ["| tried: what it is for | preset, stage | batch | times as fast | by processor time |",
                  "|---|---|---|---|---|", *tried, ""]  # fmt: skip
    output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
