"""Notebook 10: adversarial games as settings, a control whose answer is known, and what a probe uses.

A game is played by `timam.objective`; what differs between games are settings alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timam import gap
from timam.config import Config
from timam.evaluation import DIRECTIONS, Embeddings, evaluate
from timam.evaluation import gap as measure_gap
from timam.job import Job
from timam.models.discriminator import ModalityDiscriminator
from timam.objective import TERMS, Embedded, train_discriminator
from timam_lab import notebook
from timam_lab.studies import Experiment

UNREGULARISED = f"adversarial_form=alternating {notebook.UNREGULARISED}"
REGULARISED = (
    "adversarial_form=alternating adversarial_input=unit gradient_penalty=10 label_smoothing=0 "
    "discriminator_steps=4 discriminator_lr=5e-3 discriminator_momentum=0"
)
FAST = f"{UNREGULARISED} adversarial_input=unit discriminator_lr=2e-3"  # the discriminator learns ten times as fast
FORMS = {
    "no adversary": f"{UNREGULARISED} adversarial_weight=0",
    "unregularised game": UNREGULARISED,
    "regularised game": REGULARISED,
    # Unregularised, one setting changed
    "unregularised, reversal": f"{UNREGULARISED} adversarial_form=gradient_reversal",
    "unregularised, unit length": f"{UNREGULARISED} adversarial_input=unit",
    "unregularised, weight 0.1": f"{UNREGULARISED} adversarial_weight=0.1",
    # A faster discriminator
    "fast discriminator": FAST,
    "fast, no momentum": f"{FAST} discriminator_momentum=0",
    "fast, reversal": f"{FAST} adversarial_form=gradient_reversal",
    "fast, penalty 1": f"{FAST} gradient_penalty=1",
    "fast, penalty 10": f"{FAST} gradient_penalty=10",
    # Regularised, one setting changed
    "regularised, reversal": f"{REGULARISED} adversarial_form=gradient_reversal",
    "regularised, penalty 1": f"{REGULARISED} gradient_penalty=1",
    "regularised, 1 step": f"{REGULARISED} discriminator_steps=1",
    "regularised, raw": f"{REGULARISED} adversarial_input=raw",
    "regularised, weight 0.3": f"{REGULARISED} adversarial_weight=0.3",
    "regularised, weight 3": f"{REGULARISED} adversarial_weight=3",
}


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
                     **measure_gap(embeddings, nonlinear=True)})  # fmt: skip
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
    betas, lr = (config.train.discriminator_momentum, 0.999), config.train.discriminator_lr
    optimizer = torch.optim.AdamW(model.discriminator.parameters(), lr=lr, betas=betas, weight_decay=0.0)
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
    right = gap.probe_hits(both, is_image, np.concatenate([image_labels, text_labels]), gap.linear_probe())
    return float((right[is_image].mean() + right[~is_image].mean()) / 2)
