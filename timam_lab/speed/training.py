"""Steps of our training loop compared with a bare forward, backward and optimizer step of the same encoders.

    GOMP_SPINCOUNT=1000 python -m timam_lab.speed.training --output reports/benchmarks/training.md

Both take turns in one process, at the shapes of a preset with random weights. Ours reads pictures and captions from the
stores and does everything that a run does in an epoch. The bare step has normalised pictures and token ids (or word
states) of the same batches in memory. Uses a GPU where there is one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import click
import pandas as pd
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from timam.config import PRESETS, Config, override
from timam.data import load_dataset
from timam.data.augment import augment
from timam.data.batches import Batch, epoch_batches
from timam.images import normalize
from timam.job import Job
from timam.learner import Learner
from timam.losses import cmpm_loss, norm_softmax_loss
from timam.run import Run
from timam.stores import StoredSplit, open_pixels, open_word_states
from timam.training import _Data, _Training, text_inputs
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import DEVICE, cost, medians, random_model, report, scratch, table, turns

IDENTITIES = 11_003  # of CUHK-PEDES' training split: the identity classifier's rows


@dataclass
class Setting:
    """A model of a preset's shape with its data, ready to step."""

    config: Config
    learner: Learner
    train: StoredSplit
    job: Job
    steps: int

    def ours(self) -> None:
        """An epoch of `steps` steps, as `timam.training.fit` does it."""
        training = _Training(self.config, Run(Path("unused")), self.job, show=False)
        training._train_epoch(self.learner, cast(_Data, self))

    def batches(self) -> list[Batch]:
        """Those of `ours`."""
        drawn = epoch_batches(self.train.split, self.train.pixels, self.config.data, self.config.train.seed, 1)
        return [batch for _, batch in zip(range(self.steps), drawn, strict=False)]

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        text = text_inputs(self.learner.model, self.train, batch)
        return {"images": normalize(batch.pixels.to(DEVICE)), **text}

    def bare(self, inputs: list[dict[str, Tensor]]) -> None:
        """The same encoders' forward, backward and optimizer steps, on tensors in memory."""
        self.learner.model.train()
        for step in inputs:
            with self.job.autocast():
                images, texts = self.learner.model(**step)
            (images.float().square().mean() + texts.float().square().mean()).backward()
            for name in ("image", "text"):
                self.learner.optimizers[name].step()
                self.learner.optimizers[name].zero_grad(set_to_none=True)


def prepare(preset: str, frozen: bool, batch_size: int, steps: int, work: Path, settings: list[str]) -> Setting:
    """A preset's architecture with random weights, on rendered data.

    Args:
        frozen: the stage with the frozen language model and its stored outputs, else the one that trains everything.
        work: a folder for the data.
        settings: as `timam train --set` has them.
    """
    fixed = [f"data.batch_size={batch_size}", f"train.max_steps={steps}", "train.schedule=plateau"]
    config = override(PRESETS[preset], [*fixed, *settings])
    height, width = config.model.image_height, config.model.image_width
    if not (work / "reid_raw.json").exists():
        people = max(4, -(-batch_size * steps // 2))
        spec = PedestrianSpec(train_identities=people, val_identities=1, test_identities=1,
                              height=min(512, height), width=min(512, width))  # fmt: skip
        render_pedestrians(work, spec, progress=False)
    split = load_dataset("cuhk-pedes", str(work)).split("train")
    job = Job(config.train.mixed_precision)
    model = random_model(config.model, IDENTITIES, split.captions, job.device)
    model.text_encoder.freeze(frozen)
    words = open_word_states(model, split.captions, progress=False) if frozen else None
    train = StoredSplit(split, open_pixels(split.image_paths, height, width, progress=False), words)
    return Setting(config, Learner.build(model, config, steps), train, job, steps)


def parts(setting: Setting) -> dict[str, Callable[[], Any]]:
    """What ours does in addition to the bare step, piece by piece, for one batch."""
    batch, model, optimizers = setting.batches()[0], setting.learner.model, setting.learner.optimizers
    images, labels = normalize(batch.pixels.to(DEVICE)), batch.identity_labels.to(DEVICE)
    dim = setting.config.model.embedding_dim
    embeddings = [torch.randn(len(labels), dim, device=DEVICE, requires_grad=True) for _ in range(2)]

    def losses() -> None:
        weights, bias = model.class_weights, model.class_bias
        identification = [norm_softmax_loss(e, weights[0], bias[0], labels) for e in embeddings]
        (cmpm_loss(embeddings[0], embeddings[1], labels) + sum(identification)).backward()
        model.zero_grad(set_to_none=True)

    def discriminator() -> None:  # its own step and the encoders' loss through it
        for _ in range(2):
            torch.stack([model.discriminator(e).square().mean() for e in embeddings]).sum().backward()
        optimizers["discriminator"].step()
        optimizers["discriminator"].zero_grad(set_to_none=True)

    return {
        "reading the pictures": lambda: torch.from_numpy(setting.train.pixels[: len(labels)].copy()),
        "normalising them": lambda: normalize(batch.pixels.to(DEVICE)),
        "augmentation": lambda: augment(images, setting.config.data),
        "captions": partial(text_inputs, model, setting.train, batch),
        "matching and identification": losses,
        "discriminator": discriminator,
    }


def overhead(taken: pd.DataFrame, clock: str) -> str:
    """Ours beyond the bare step of the same round, in percent: median over the rounds, and quartiles.

    The load of a shared machine changes by more than the few percent that are looked for; rounds next to each other in
    time see about the same load.
    """
    low, middle, high = (100 * (taken[clock, "ours"] / taken[clock, "bare"] - 1)).quantile([0.25, 0.5, 0.75])
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def overhead_row(setting: Setting, inputs: list[dict[str, Tensor]], rounds: int) -> list[str]:
    taken = turns(rounds, {"bare": partial(setting.bare, inputs), "ours": setting.ours})
    times = [f"{taken['seconds', who].median() / setting.steps:.3f}" for who in ("bare", "ours")]
    pieces = ", ".join(f"{what} {1000 * wall:.1f}" for what, wall in medians(5, parts(setting)).items())
    return [*times, overhead(taken, "seconds"), overhead(taken, "processor"), pieces]


def profiled(setting: Setting, rows: int = 18) -> str:
    """torch.profiler's table of one epoch of ours."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
    with profile(activities=kinds) as recorded:
        setting.ours()
    by = f"self_{DEVICE.type}_time_total"
    return recorded.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=45)


def switches(setting: Setting, inputs: dict[str, Tensor]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What each switch is for -> the work without it and with it."""
    model, bare = setting.learner.model, partial(setting.bare, [inputs])
    encoder, images = model.image_encoder, inputs["images"]

    def fused(value: bool) -> None:
        for optimizer in setting.learner.optimizers.values():
            for group in optimizer.param_groups:
                group["fused"] = value
        bare()

    def twice() -> None:  # another pass for the discriminator, instead of the encoders' own, detached
        with torch.no_grad(), setting.job.autocast():
            model(**inputs)
        bare()

    def step(encoder: nn.Module, images: Tensor, low: bool = False) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=low):
            loss = encoder(images).float().square().mean()
        loss.backward()
        encoder.zero_grad(set_to_none=True)

    plain, compiled = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format), copy.deepcopy(encoder)
    compiled.compile(dynamic=False)
    waited, _ = cost(partial(step, compiled, images))
    ours = partial(step, encoder, images)
    return {
        "fused optimizers: a bare step": (partial(fused, False), partial(fused, True)),
        "one encoder pass for both players: a bare step": (twice, bare),
        "channels_last: the image encoder": (partial(step, plain, images.contiguous()), ours),
        "bf16: the image encoder": (ours, partial(step, encoder, images, True)),
        f"torch.compile ({waited:.0f} s to compile): the image encoder": (ours, partial(step, compiled, images)),
    }


def switch_rows(setting: Setting, inputs: dict[str, Tensor], name: str, rounds: int) -> list[list[str]]:
    """How many times as fast each switch makes what it is for, by the clock and by processor time."""
    rows = []
    for what, (without, switched) in switches(setting, inputs).items():
        taken = turns(rounds, {"without": without, "switched": switched}).median()
        times = [taken[clock, "without"] / taken[clock, "switched"] for clock in ("seconds", "processor")]
        rows.append([what, name, *(f"{value:.2f}" for value in times)])
    torch._dynamo.reset()
    return rows


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--settings", default="", help="As timam train --set, separated by spaces; for all presets.")
@click.option("--batch", default=8, help="Pictures per step for paper and modern.")
@click.option("--steps", default=3)
@click.option("--rounds", default=3)
@click.option("--trials", is_flag=True, help="Also what each switch brings, and no profiles; many more steps.")
def main(output: Path, settings: str, batch: int, steps: int, rounds: int, trials: bool) -> None:
    """Writes the tables to OUTPUT, and the profiles next to it."""
    overheads, tried = [], []
    with scratch() as work:
        for preset in ("quick", "paper", "modern"):
            for stage in ("frozen", "whole"):
                size = 32 if preset == "quick" else batch
                setting = prepare(preset, stage == "frozen", size, steps, work / preset, settings.split())
                inputs, name = [setting.inputs(b) for b in setting.batches()], f"{preset}, {stage}"
                overheads.append([name, size, *overhead_row(setting, inputs, rounds)])
                if trials:
                    tried += switch_rows(setting, inputs[0], name, rounds)
                elif preset != "modern":
                    output.with_name(f"training_profile_{preset}_{stage}.txt").write_text(profiled(setting))
                print(*overheads[-1], *tried[-5:], sep="\n", flush=True)
    header = ["preset, stage", "batch", "bare step, s", "ours, s", "overhead", "of processor time", "parts alone (ms)"]
    tables = [table(header, overheads)]
    if trials:
        tables.append(table(["switch: what it is for", "preset, stage", "times as fast", "by processor time"], tried))
    intro = f"Medians of {rounds} rounds of {steps} steps; overheads are of the pairs, with quartiles."
    report(output, __file__, "Training", intro, *tables)


if __name__ == "__main__":
    main()
