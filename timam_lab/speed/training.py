"""Steps of our training loop compared with a bare forward, backward and optimizer step of the same encoders.

    GOMP_SPINCOUNT=1000 python -m timam_lab.speed.training --output reports/benchmarks/training.md

Both take turns in one process, at the shapes of a preset with random weights. Ours reads pictures and captions from the
stores and does everything that a run does in an epoch. The bare step has the same batches in memory, as the
encoders take them. Uses a GPU where there is one.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import click
import pandas as pd
from torch import Tensor

from timam.config import PRESETS, Config, override
from timam.data import load_dataset
from timam.data.augment import augments
from timam.data.batches import epoch_batches
from timam.job import Job
from timam.learner import Learner
from timam.run import Run
from timam.stores import StoredSplit, open_block_outputs, open_pixels, open_word_states
from timam.training import _Data, _Training
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.timing import random_model, report, scratch, turns

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
        self.training()._train_epoch(self.learner, cast(_Data, self))

    def training(self) -> _Training:
        return _Training(self.config, Run(Path("unused")), self.job, show=False, made={})

    def inputs(self) -> list[dict[str, Tensor]]:
        """The encoders' inputs of the batches of `ours`, on the device."""
        pictures = self.train.pixels if self.train.blocks is None else self.train.blocks
        drawn = epoch_batches(self.train.split, pictures, self.config.data, self.config.train.seed, 1)
        training, model = self.training(), self.learner.model
        batches = itertools.islice(drawn, self.steps)
        return [training._inputs(self.train, *training._load(model, self.train, batch)) for batch in batches]

    def bare(self, inputs: list[dict[str, Tensor]]) -> None:
        """The same encoders' forward, backward and optimizer steps, on tensors in memory."""
        self.learner.model.train()
        for step in inputs:
            with self.job.accelerator.autocast():
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
    model.image_encoder.freeze_blocks(config.train.frozen_blocks)
    if config.train.frozen_blocks and not augments(config.data):
        train.blocks = open_block_outputs(model, train.pixels, progress=False)
    return Setting(config, Learner.build(model, config, steps), train, job, steps)


def overhead(taken: pd.DataFrame, clock: str) -> str:
    """Ours beyond the bare step of the same round, in percent: median over the rounds, and quartiles.

    The load of a shared machine changes by more than the few percent that are looked for; rounds next to each other in
    time see about the same load.
    """
    low, middle, high = (100 * (taken[clock, "ours"] / taken[clock, "bare"] - 1)).quantile([0.25, 0.5, 0.75])
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def overhead_row(setting: Setting, rounds: int) -> dict[str, str]:
    taken = turns(rounds, {"bare": partial(setting.bare, setting.inputs()), "ours": setting.ours})
    bare, ours = (f"{taken['seconds', who].median() / setting.steps:.3f}" for who in ("bare", "ours"))
    return {"bare step, s": bare, "ours, s": ours, "overhead": overhead(taken, "seconds"),
            "of processor time": overhead(taken, "processor")}  # fmt: skip


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--settings", default="", help="As timam train --set, separated by spaces; for all presets.")
@click.option("--batch", default=8, help="Pictures per step for paper and modern.")
@click.option("--steps", default=3)
@click.option("--rounds", default=3)
def main(output: Path, settings: str, batch: int, steps: int, rounds: int) -> None:
    """Writes the table to OUTPUT."""
    rows = []
    with scratch() as work:
        for preset in ("quick", "paper", "modern"):
            for stage in ("frozen", "whole"):
                size = 32 if preset == "quick" else batch
                setting = prepare(preset, stage == "frozen", size, steps, work / preset, settings.split())
                rows.append(
                    {"preset, stage": f"{preset}, {stage}", "batch": str(size), **overhead_row(setting, rounds)}
                )
    intro = f"Medians of {rounds} rounds of {steps} steps; overheads are of the pairs, with quartiles."
    report(output, __file__, "Training", intro, rows)


if __name__ == "__main__":
    main()
