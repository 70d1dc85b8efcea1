"""Warnings about training that has collapsed, from a row of history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def training_warnings(row: Mapping[str, Any], gradient_penalty: float = 0.0) -> list[str]:
    """What has collapsed in an epoch, in words and with what usually helps; empty where nothing has.

    Args:
        row: of RUN/history.csv; measures that it lacks are passed over.
        gradient_penalty: `loss.gradient_penalty` of the run. A discriminator whose slope is penalised may be always
            right and still tell the encoders which way to go: it is then not named.

    The thresholds [ours]:
        uniformity above -0.04: it is about -4 (1 - c) for a mean cosine c near 1, so c > 0.99, and all that tells one
            sample from another is in the last hundredth. Pretrained encoders are below from the first epoch on (the
            quick preset at 0.79 and 0.96); a network with random weights begins there.
        norm above 256: the matching loss's logits are cosines times the norm, so cosines 0.02 apart are 5 nats apart,
            where a softmax keeps less than 1 % for the lower one, and with it of the gradient; and bfloat16, which has
            8 bits, is off by up to half a nat.
        discriminator accuracy above 0.98 or below 0.02 over an epoch, where it is played against: 1 in 50 is about
            one embedding of each modality in a batch of 64. A discriminator that only watches may be as good as it can.
    """
    found = []
    for side in ("image", "text"):
        if row.get(f"val_{side}_uniformity", -1.0) > -0.04:
            found.append(
                f"all {side} embeddings are nearly alike (val_{side}_uniformity above -0.04): their encoder has "
                "collapsed, or hardly begun to learn. What usually helps: more steps, a lower "
                f"train.{side}_lr, a longer train.warmup_epochs, a smaller loss.adversarial_weight"
            )
        if row.get(f"val_{side}_norm", 0.0) > 256:
            found.append(
                f"{side} embeddings have exploded (val_{side}_norm above 256): the matching loss sees only its nearest "
                f"pairs. What usually helps: a lower train.{side}_lr, train.gradient_clip, a larger train.weight_decay"
            )
    if row.get("adversarial"):
        if row["discriminator_accuracy"] > 0.98 and not gradient_penalty:
            found.append(
                "the discriminator tells every embedding (accuracy above 0.98): the encoders learn little from it. "
                "What usually helps: loss.gradient_penalty, a lower train.discriminator_lr, more loss.label_smoothing"
            )
        if row["discriminator_accuracy"] < 0.02:
            found.append(
                "the discriminator is wrong on every embedding (accuracy below 0.02): the encoders have swapped sides, "
                "which fools it and closes no gap. What usually helps: a higher train.discriminator_lr, a smaller "
                "loss.adversarial_weight"
            )
    return found
