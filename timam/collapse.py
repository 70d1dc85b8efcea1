"""Warnings about training that has collapsed or has learned nothing. The thresholds are ours."""

from collections.abc import Iterator, Mapping
from typing import Any

# With a mean cosine c near 1, uniformity is about -4 (1 - c). Above -0.04, c exceeds 0.99: what distinguishes samples
# is in the last hundredth. Pretrained encoders are below from the first epoch (quick: c of 0.79 and 0.96).
MAX_UNIFORMITY = -0.04
# The matching loss's logits are cosines times the norm. At 256, cosines 0.02 apart are 5 nats apart, so the softmax and
# its gradient leave less than 1 % for the lower one. bfloat16, with its 8 bits, is off by up to half a nat there.
MAX_NORM = 256
# 1 in 50 is about one embedding per modality in a batch of 64.
MAX_ACCURACY, MIN_ACCURACY = 0.98, 0.02


def training_warnings(row: Mapping[str, Any], gradient_penalty: float = 0.0) -> Iterator[str]:
    """What has collapsed in an epoch, a row of RUN/history.csv, and what usually helps; empty if nothing has.

    With `loss.gradient_penalty`, a discriminator that is always right still has a useful gradient: no warning.
    """
    for modality in ("image", "text"):
        if row.get(f"val_{modality}_uniformity", -1.0) > MAX_UNIFORMITY:
            yield (
                f"all {modality} embeddings are nearly alike (val_{modality}_uniformity above {MAX_UNIFORMITY}): their "
                "encoder has collapsed, or has learned very little so far. What usually helps: more steps, a lower "
                f"train.{modality}_lr, a longer train.warmup_epochs, a smaller loss.adversarial_weight"
            )
        if row.get(f"val_{modality}_norm", 0.0) > MAX_NORM:
            yield (
                f"{modality} embeddings have exploded (val_{modality}_norm above {MAX_NORM}): the matching loss only "
                f"sees the nearest pairs. What usually helps: a lower train.{modality}_lr, train.gradient_clip, a "
                "larger train.weight_decay"
            )
    accuracy = row["discriminator_accuracy"] if row.get("adversarial") else 0.5
    if accuracy > MAX_ACCURACY and not gradient_penalty:
        yield (
            f"the discriminator is always right (accuracy above {MAX_ACCURACY}): the encoders learn little from it. "
            "What usually helps: loss.gradient_penalty, a lower train.discriminator_lr, more loss.label_smoothing"
        )
    if accuracy < MIN_ACCURACY:
        yield (
            f"the discriminator is always wrong (accuracy below {MIN_ACCURACY}): the modalities have swapped places, "
            "which fools it and closes no gap. What usually helps: a higher train.discriminator_lr, a smaller "
            "loss.adversarial_weight"
        )


def chance_warnings(rank_1: float, chance: float) -> Iterator[str]:
    """Of a finished run: its rank-1 on validation, beside that of a random order. Empty from twice chance on."""
    text = f"rank-1 on validation is {rank_1:.1%} and chance {chance:.1%}: "
    if chance > 0.1:  # fewer than ten identities: one query moves rank-1 by several percent
        yield f"{text}too few identities to tell whether what was learned carries over to others"
    elif rank_1 < 2 * chance:
        helps = "more of them, more steps, --init with a model of other data; or the linear baseline of notebook 02"
        yield f"{text}what was learned does not carry over to other identities. What usually helps: {helps}"
