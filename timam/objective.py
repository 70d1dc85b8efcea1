"""What a training step minimises: the loss terms, each declared once in `TERMS`, and the step itself.

Two players take turns in a step. The discriminator learns to tell image from text embeddings; the encoders minimise the
weighted sum of `TERMS`, one of which is to fool the discriminator.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from timam import losses
from timam.config import Config, LossConfig
from timam.job import Job, gather
from timam.learner import Learner
from timam.models import TIMAM
from timam.models.joint import IMAGE, TEXT

# CLIP's bound: logits of at most 100. Beyond it the loss follows single pairs.
_LOWEST_LOG_TEMPERATURE = math.log(0.01)


@dataclass(frozen=True)
class Embedded:
    """The batch of all processes in the joint space: what a loss term is computed from."""

    images: Tensor  # (B, D) float32, not unit length
    texts: Tensor  # (B, D)
    identity_labels: Tensor  # (B,) int64
    model: TIMAM  # for the identity classifier and the discriminator
    config: LossConfig
    temperature: Tensor  # scalar, learned; only InfoNCE uses it


@dataclass(frozen=True)
class Term:
    """One term of the encoders' loss."""

    name: str  # its column in history.csv
    weight: str  # the setting of `LossConfig` that multiplies it
    label: str  # its name in figures
    compute: Callable[[Embedded], Tensor]  # a scalar in nats


def _matching(batch: Embedded) -> Tensor:
    """The matching loss that `loss.matching` names."""
    pairs, config = (batch.images, batch.texts, batch.identity_labels), batch.config
    if config.matching == "sdm":
        return losses.sdm_loss(*pairs, config.temperature, config.matching_epsilon)
    if config.matching == "infonce":
        return losses.infonce_loss(*pairs, batch.temperature)
    if config.matching == "triplet":
        return losses.triplet_loss(*pairs, config.margin)
    return losses.cmpm_loss(*pairs, config.matching_epsilon)


def _identification(modality: int, batch: Embedded) -> Tensor:
    model, embeddings = batch.model, batch.images if modality == IMAGE else batch.texts
    classifier = model.class_weights[modality], model.class_bias[modality]
    unit_rows = model.model_config.normalized_classifier
    return losses.norm_softmax_loss(embeddings, *classifier, batch.identity_labels, unit_rows)


def _adversarial(batch: Embedded) -> Tensor:
    """The encoders' side of the game; 0 without the work where its weight is 0."""
    if not batch.config.adversarial_weight:
        return batch.images.new_zeros(())
    discriminator, known = batch.model.discriminator, identity_directions(batch)
    discriminator.requires_grad_(False)  # this loss trains the encoders only
    images, texts = (discriminator(discriminator_input(e, batch.config), known) for e in (batch.images, batch.texts))
    discriminator.requires_grad_(True)
    if batch.config.adversarial_form == "gradient_reversal":
        return -losses.discriminator_loss(images, texts, batch.config.label_smoothing)
    return losses.encoder_adversarial_loss(images, texts)


def _discrepancy(batch: Embedded) -> Tensor:
    """The distance of the modalities that `loss.discrepancy` names; 0 without the work where its weight is 0."""
    if not batch.config.discrepancy_weight:
        return batch.images.new_zeros(())
    return {"mmd": losses.mmd_loss, "coral": losses.coral_loss}[batch.config.discrepancy](batch.images, batch.texts)


TERMS = (
    Term("matching", "matching_weight", "matching", _matching),
    Term("identification_image", "identification_weight", "identification, images", partial(_identification, IMAGE)),
    Term("identification_text", "identification_weight", "identification, texts", partial(_identification, TEXT)),
    Term("discrepancy", "discrepancy_weight", "discrepancy of the modalities", _discrepancy),
    Term("adversarial", "adversarial_weight", "adversarial, encoders", _adversarial),
)


def discriminator_input(embeddings: Tensor, config: LossConfig) -> Tensor:
    """Embeddings (B, D) as they are, or all of length sqrt(D): cosine similarity ignores the length, too."""
    if config.adversarial_input == "raw":
        return embeddings
    return F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5


def identity_directions(batch: Embedded) -> Tensor | None:
    """For a conditional discriminator each pair's row of the identity classifier, of length sqrt(D) and detached.

    Where each modality has a classifier, their mean: a row of one modality would give away the answer.
    """
    if batch.model.discriminator.condition is None:
        return None
    rows = batch.model.class_weights.detach()[:, batch.identity_labels].mean(dim=0)
    return F.normalize(rows, dim=1) * rows.shape[1] ** 0.5


def train_discriminator(batch: Embedded, learner: Learner, config: Config, job: Job) -> dict[str, Tensor]:
    """The discriminator's steps. Its loss and accuracy before the last of them are returned.

    The embeddings are detached, because this loss must not train the encoders. The discriminator is trained even where
    the adversarial weight is 0: its accuracy then shows how far apart the modalities are.
    """
    loss_config, directions = config.loss, identity_directions(batch)
    known = None if directions is None else torch.cat([directions, directions])
    both = torch.cat([discriminator_input(e.detach(), loss_config) for e in (batch.images, batch.texts)])
    for _ in range(config.train.discriminator_steps):
        both = both.detach().requires_grad_(loss_config.gradient_penalty > 0)
        logits = learner.model.discriminator(both, known)
        image_logits, text_logits = logits.split(len(batch.images))
        accuracy = ((image_logits > 0).float().mean() + (text_logits <= 0).float().mean()) / 2
        loss = losses.discriminator_loss(image_logits, text_logits, loss_config.label_smoothing)
        weight = loss_config.gradient_penalty
        penalty = weight / 2 * losses.gradient_penalty(logits, both) if weight else 0.0
        job.step(loss + penalty, [learner.optimizers["discriminator"]], config.train.gradient_clip)
    return {"discriminator": loss, "discriminator_accuracy": accuracy}


def train_step(
    learner: Learner, inputs: dict[str, Tensor], identity_labels: Tensor, config: Config, job: Job
) -> dict[str, Tensor]:
    """The discriminator's steps, then one of the encoders, from a single forward pass of the encoders.

    `inputs` are the arguments of `TIMAM.forward` for the B pairs of this process; identity_labels (B,) int64. Returns
    detached scalars on the device: "total", the weighted sum; each term unweighted; discriminator's loss and accuracy.
    """
    with job.accelerator.autocast():
        encoded = learner.model(**inputs)
    images, texts = (gather(losses.full_precision(embeddings)) for embeddings in encoded)
    labels, temperature = gather(identity_labels), learner.log_temperature.exp()
    batch = Embedded(images, texts, labels, learner.model, config.loss, temperature)
    game = train_discriminator(batch, learner, config, job)
    terms = {term.name: term.compute(batch) for term in TERMS}
    weights = dict.fromkeys(term.weight for term in TERMS)
    parts = [getattr(config.loss, w) * sum(terms[t.name] for t in TERMS if t.weight == w) for w in weights]
    total = sum(parts[1:], parts[0])
    job.step(total, [learner.optimizers["image"], learner.optimizers["text"]], config.train.gradient_clip)
    with torch.no_grad():  # the parameter itself: a clamp inside the loss would have no gradient to come back by
        learner.log_temperature.clamp_(min=_LOWEST_LOG_TEMPERATURE)
    return {name: value.detach() for name, value in {"total": total, **terms, **game}.items()}
