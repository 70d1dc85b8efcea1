"""Notebook 10: adversaries and their rivals as settings, a control whose answer is known, and what a probe uses.

All of them are trained by `timam.objective`; what differs are settings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timam import gap
from timam.config import Config, override
from timam.evaluation import DIRECTIONS, Embeddings, evaluate
from timam.job import Job
from timam.models.discriminator import ModalityDiscriminator
from timam.objective import TERMS, Embedded, train_discriminator
from timam.run import Run
from timam_lab import notebook
from timam_lab.gaps import split_gap
from timam_lab.measures import measure
from timam_lab.studies import Experiment, grid, run_grid
from timam_lab.wordings import worded

# The game as the paper's text leaves it: raw embeddings, one slow discriminator step with momentum, smoothed labels.
# "SGD" and "AdamW" are the discriminator's optimizer; the paper's is SGD. The encoders keep the preset's, AdamW in
# `quick`; the paper's are SGD for pictures and Adam for texts.
UNREGULARISED = f"adversarial_form=alternating {notebook.UNREGULARISED}"
REGULARISED = (
    "adversarial_form=alternating adversarial_input=unit gradient_penalty=10 label_smoothing=0 "
    "discriminator_steps=4 discriminator_lr=5e-3 discriminator_momentum=0"
)
ALONE = f"{UNREGULARISED} adversarial_weight=0"  # the discriminator learns and nobody plays against it
ARMS = {  # what can be done about the modality gap in training
    "no adversary": ALONE,
    "paper's game, SGD": f"{UNREGULARISED} discriminator_optimizer=sgd",
    "paper's game, AdamW": f"{UNREGULARISED} discriminator_optimizer=adamw",
    "regularised game": REGULARISED,
    "identity-conditional game": f"{REGULARISED} discriminator_conditional=true",
    "MMD": f"{ALONE} discrepancy=mmd discrepancy_weight=10",
    "CORAL": f"{ALONE} discrepancy=coral discrepancy_weight=10",
    "CMPM, no adversary": ALONE,
    "CMPM, regularised game": REGULARISED,
}
ARMS = {
    name: f"{settings} matching={'cmpm' if name.startswith('CMPM') else 'infonce temperature=0.07'}"
    for name, settings in ARMS.items()
}
# One setting of each arm is chosen on validation, among as many values for each. The others have none of their own.
GRID = {
    "paper's game, SGD": ("discriminator_lr", ("2e-4", "2e-3", "2e-2")),
    "paper's game, AdamW": ("discriminator_lr", ("2e-5", "2e-4", "2e-3")),
    "regularised game": ("adversarial_weight", ("0.3", "1", "3")),
    "identity-conditional game": ("adversarial_weight", ("0.3", "1", "3")),
    "MMD": ("discrepancy_weight", ("1", "10", "100")),
    "CORAL": ("discrepancy_weight", ("1", "10", "100")),
    "CMPM, regularised game": ("adversarial_weight", ("0.3", "1", "3")),
}
SCORE = "text_to_image_mAP"  # that chooses; steadier than rank-1
REPHRASED = "rephrased_embeddings.safetensors"  # in a run's folder


def trials(base: Config, arms: Sequence[str], seed: int) -> dict[str, list[Experiment]]:
    """The values of `GRID` for each arm, one seed; an arm without a setting of its own is one experiment."""
    made = {}
    for arm in arms:
        setting, values = GRID.get(arm, ("adversarial_weight", ("0",)))
        made[arm] = grid(base, {f"{setting}={v}": f"{ARMS[arm]} {setting}={v}" for v in values}, [seed])
    return made


def chosen(tried: Mapping[str, Sequence[Experiment]], runs: Path | str) -> tuple[dict[str, str], pd.DataFrame]:
    """Each arm's settings with the value of the highest `SCORE` on validation, and the table of all that were tried.

    Returns:
        {arm: settings}, for `timam_lab.studies.grid`; and one row a trial, as `validation`: arm, value, chosen (bool).
    """
    settings, tables = {}, []
    for arm, experiments in tried.items():
        table = validation(experiments, runs).rename(columns={"variant": "value"})
        best = int(table[SCORE].argmax())
        settings[arm] = f"{ARMS[arm]} {table['value'][best]}"
        table.insert(0, "arm", arm)
        table.insert(2, "chosen", table.index == best)
        tables.append(table)
    return settings, pd.concat(tables, ignore_index=True)


def train(
    base: Config, runs: Path | str, arms: Sequence[str], seeds: Sequence[int], workers: int = 1, trial: str = ""
) -> tuple[list[Experiment], pd.DataFrame]:
    """Chooses each arm's setting with the first seed, then trains all arms with all seeds; finished runs are re-used.

    Args:
        trial: more overrides for the runs that choose. Without them, the chosen ones are the first seed's of the arms.

    Returns:
        The experiments, one for each arm and seed, and the table of `chosen`.
    """
    tried = trials(override(base, trial.split()), arms, seeds[0])
    run_grid([e for experiments in tried.values() for e in experiments], runs, workers, then=rephrased)
    settings, table = chosen(tried, runs)
    experiments = grid(base, settings, seeds)
    run_grid(experiments, runs, workers, then=rephrased)
    return experiments, table


def measured(experiments: Sequence[Experiment], runs: Path | str) -> pd.DataFrame:
    """`timam_lab.measures.measure` of each run's test split: a row for each run and correction after training."""
    tables = []
    for experiment in experiments:
        run = experiment.run(runs)
        table = measure(run.test_embeddings(), run.val_embeddings("best"), rephrased(run))
        table.insert(0, "variant", experiment.variant)
        tables.append(table.assign(seed=experiment.config.train.seed, seconds=run.metrics()["seconds"]))
    return pd.concat(tables, ignore_index=True)


def rephrased(run: Run) -> Embeddings | None:
    """The test split with every mention in words that no training caption has; None for other than rendered people.

    The sentences are embedded once, while the run's model is there, and kept as RUN/rephrased_embeddings.safetensors.
    """
    path, data = run.folder / REPHRASED, run.config().data
    if path.exists():
        return Embeddings.load(path)
    if not (Path(data.root) / "attributes.json").exists():
        return None
    embeddings = worded(run, run.best_model(), unseen_words=1.0)
    embeddings.save(path)
    return embeddings


def validation(experiments: Sequence[Experiment], runs: Path | str) -> pd.DataFrame:
    """Retrieval and gap on the validation split at the best epoch, one row per run: variant, seed, the measures."""
    rows = []
    for experiment in experiments:
        run = experiment.run(runs)
        embeddings = run.val_embeddings("best")
        results = evaluate(embeddings)
        retrieval = {f"{d}_{k}": v for d in DIRECTIONS for k, v in results[d].items()}
        rows.append({"variant": experiment.variant, "seed": experiment.config.train.seed,
                     "seconds": run.metrics()["seconds"], **retrieval,
                     **split_gap(embeddings, nonlinear=True)})  # fmt: skip
    return pd.DataFrame(rows)


def shift_control(config: Config, images: Tensor, identity_labels: Tensor, seed: int, steps: int = 500) -> list[float]:
    """A game with a known solution: two modalities that are halves of one cloud, and encoders that only shift them.

    The image embeddings of a trained model are split by identity into two halves. One half is moved by one standard
    deviation of the cloud in a random direction. The only parameters of the encoders are two shifts, their only loss is
    the adversarial one. At the solution the halves coincide.

    Args:
        config: gives the game.
        images: (N, D) embeddings; identity_labels: (N,).

    Returns:
        The distance of the two means after each step, as a share of the first.
    """
    torch.manual_seed(seed)
    cloud = F.normalize(images, dim=1) * 16
    width, first = cloud.shape[1], identity_labels % 2 == 0
    offset = F.normalize(torch.randn(width), dim=0) * cloud.var(0).sum().sqrt()
    halves = cloud[first] + offset, cloud[~first]
    shifts = nn.Parameter(torch.zeros(2, width))
    mover = torch.optim.AdamW([shifts], lr=0.03, weight_decay=0.0)  # the cloud has a radius of 16
    model = SimpleNamespace(discriminator=ModalityDiscriminator(width, config.model.discriminator_hidden))
    optimizer = _discriminator_optimizer(model.discriminator, config)
    learner: Any = SimpleNamespace(model=model, optimizers={"discriminator": optimizer})
    adversarial = next(term for term in TERMS if term.name == "adversarial")
    game: Any = model  # train_discriminator and the adversarial term use its discriminator only
    job, distances = Job("no"), []
    for _ in range(steps):
        moved = [half[torch.randint(len(half), (32,))] + shift for half, shift in zip(halves, shifts, strict=True)]
        labels = torch.zeros(32, dtype=torch.long)
        batch = Embedded(moved[0], moved[1], labels, game, config.loss, torch.ones(()))
        train_discriminator(batch, learner, config, job)
        job.step(config.loss.adversarial_weight * adversarial.compute(batch), [mover], 0.0)
        apart = halves[0].mean(0) + shifts[0] - halves[1].mean(0) - shifts[1]
        distances.append(float(apart.detach().norm()))
    return [distance / distances[0] for distance in distances]


def _discriminator_optimizer(discriminator: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer that the settings name, without weight decay."""
    lr, momentum = config.train.discriminator_lr, config.train.discriminator_momentum
    if config.train.discriminator_optimizer == "sgd":
        return torch.optim.SGD(discriminator.parameters(), lr=lr, momentum=momentum)
    return torch.optim.AdamW(discriminator.parameters(), lr=lr, betas=(momentum, 0.999), weight_decay=0.0)


def what_a_probe_uses(embeddings: Embeddings, parts: Sequence[int] = (5, 10, 20, 50, 100)) -> pd.DataFrame:
    """Where the modalities differ: a fresh linear probe on the widest and on the narrowest directions alone.

    Returns:
        One row per number of principal components of the centred modalities: the share of the variance in the first
        ones, the share of the centroids' squared distance, and a probe's accuracy on those and on as many of the last.
    """
    images, texts = (F.normalize(e, dim=1).double().numpy() for e in (embeddings.images, embeddings.texts))
    apart = images.mean(0) - texts.mean(0)
    centred = np.concatenate([images - images.mean(0), texts - texts.mean(0)])
    widths, directions = np.linalg.eigh(centred.T @ centred)
    widths, directions = widths[::-1], directions[:, ::-1]
    share = (apart @ directions) ** 2 / (apart**2).sum()
    labels = embeddings.image_labels.numpy(), embeddings.text_labels.numpy()
    rows = []
    for k in parts:
        first, last = (probe_accuracy(images @ d, texts @ d, *labels) for d in (directions[:, :k], directions[:, -k:]))
        rows.append({"directions": k, "variance in the first": widths[:k].sum() / widths.sum(),
                     "distance in the first": share[:k].sum(), "probe on the first": first,
                     "probe on the last": last})  # fmt: skip
    return pd.DataFrame(rows)


def probe_accuracy(images: np.ndarray, texts: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray) -> float:
    """`timam.gap.modality_gap`'s "probe_accuracy" of embeddings as they are, not scaled to unit length."""
    both, is_image = np.concatenate([images, texts]), np.repeat([True, False], [len(images), len(texts)])
    right = gap.probe_hits(both, is_image, np.concatenate([image_labels, text_labels]), gap.LINEAR_PROBE)
    return float((right[is_image].mean() + right[~is_image].mean()) / 2)
