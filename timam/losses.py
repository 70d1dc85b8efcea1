"""The losses of TIMAM (Sarafianos et al., ICCV 2019) as stateless functions of tensors.

| function                     | symbol | source                                                              |
|------------------------------|--------|---------------------------------------------------------------------|
| `cmpm_loss`                  | L_M    | cross-modal projection matching: Zhang & Lu, ECCV 2018, eqs. 1 to 5 |
| `norm_softmax_loss`          | L_I    | norm-softmax: the same paper, eq. 7                                 |
| `softmax_loss`               | L_I    | the alternative: plain softmax, for the ablation                    |
| `discriminator_loss`         | L_D    | GAN, the discriminator's side: Goodfellow et al., NIPS 2014, eq. 1  |
| `encoder_adversarial_loss`   | L_D    | GAN, the encoders' side, non-saturating (the same, section 3)       |
| `gradient_penalty`           |        | steadies the game: Mescheder et al., ICML 2018, eq. 9; ours to use  |

Conventions: all logarithms are natural; losses are means over the batch; inputs of lower precision are
computed in float32 (in float16, 1e-8 is 0 and its logarithm -inf), float64 stays float64. The discriminator's
logit is positive for "image" (1) and negative for "text" (0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """float32 for anything below it; autocast does not touch float32 element-wise operations."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_embeddings(name: str, embeddings: Tensor, identity_labels: Tensor) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"{name}: expected shape (B, D), found {tuple(embeddings.shape)}")
    if len(embeddings) == 0:
        raise ValueError(f"{name}: the batch is empty")
    if identity_labels.shape != (len(embeddings),):
        raise ValueError(
            f"identity_labels: expected shape ({len(embeddings)},) to match {name} {tuple(embeddings.shape)}, "
            f"found {tuple(identity_labels.shape)}"
        )


def _projection_matching(source: Tensor, target: Tensor, same_identity: Tensor, epsilon: float) -> Tensor:
    """One direction of CMPM: source (B, D) projected onto the unit-length target (B, D)."""
    logits = source @ F.normalize(target, dim=1).T  # (B, B): row i holds phi(V_i) . norm(phi(T_j))
    log_p = F.log_softmax(logits, dim=1)
    # Rows of q sum to 1: dividing by the L2 norm, as several ports do, makes a perfect match score below 0.
    q = same_identity / same_identity.sum(dim=1, keepdim=True)
    return (log_p.exp() * (log_p - torch.log(q + epsilon))).sum(dim=1).mean()


def cmpm_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, identity_labels: Tensor, epsilon: float = 1e-8
) -> Tensor:
    """Cross-modal projection matching loss L_M = L_M(V) + L_M(T), both directions summed.

    p_ij = softmax_j(phi(V_i) . norm(phi(T_j))), q_ij = Y_ij / sum_k Y_ik with Y_ij = 1 where i and j share an
    identity, L_M(V) = mean_i sum_j p_ij log(p_ij / (q_ij + epsilon)); L_M(T) with the roles exchanged.

    Args:
        image_embeddings: (B, D) floating point, not normalised; row i is paired with row i of the text.
        text_embeddings: (B, D) floating point, not normalised.
        identity_labels: (B,) integers; equal labels are positives.
        epsilon: keeps the logarithm finite where q is 0, in (0, 1).

    Returns:
        A scalar in nats, at least -2 log(1 + B epsilon), that is 0 up to rounding.

    Raises:
        ValueError: shapes that do not fit, or an empty batch.
    """
    if image_embeddings.shape != text_embeddings.shape:
        raise ValueError(
            f"image_embeddings {tuple(image_embeddings.shape)} and text_embeddings "
            f"{tuple(text_embeddings.shape)}: expected the same shape (B, D)"
        )
    _check_embeddings("image_embeddings", image_embeddings, identity_labels)
    with torch.autocast(image_embeddings.device.type, enabled=False):
        images, texts = full_precision(image_embeddings), full_precision(text_embeddings)
        same_identity = (identity_labels[:, None] == identity_labels[None, :]).to(images.dtype)  # (B, B)
        image_to_text = _projection_matching(images, texts, same_identity, epsilon)
        return image_to_text + _projection_matching(texts, images, same_identity, epsilon)


def norm_softmax_loss(embeddings: Tensor, class_weights: Tensor, bias: Tensor, identity_labels: Tensor) -> Tensor:
    """Identification loss L_I of one modality: cross-entropy whose class-weight rows have unit length.

    logits = embeddings . (W_c / ||W_c||) + b_c; L_I = mean over the batch of -log softmax(logits)[label].

    Args:
        embeddings: (B, D) floating point, of either modality, not normalised.
        class_weights: (C, D) floating point, a row for each training identity.
        bias: (C,) floating point.
        identity_labels: (B,) int64 in [0, C).

    Returns:
        A scalar in nats, at least 0. L_I of the paper is the sum over the two modalities.

    Raises:
        ValueError: shapes that do not fit, an empty batch, or a label outside [0, C).
    """
    return _identification(embeddings, class_weights, bias, identity_labels, unit_rows=True)


def softmax_loss(embeddings: Tensor, class_weights: Tensor, bias: Tensor, identity_labels: Tensor) -> Tensor:
    """As `norm_softmax_loss`, with the class-weight rows as they are: logits = embeddings . W_c + b_c.

    A classifier can then lower its loss by longer rows alone, which does nothing for the embeddings' angles.
    """
    return _identification(embeddings, class_weights, bias, identity_labels, unit_rows=False)


def _identification(
    embeddings: Tensor, class_weights: Tensor, bias: Tensor, identity_labels: Tensor, unit_rows: bool
) -> Tensor:
    _check_embeddings("embeddings", embeddings, identity_labels)
    if class_weights.ndim != 2 or class_weights.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"class_weights {tuple(class_weights.shape)}: expected (C, {embeddings.shape[1]}) to match "
            f"embeddings {tuple(embeddings.shape)}"
        )
    if bias.shape != (len(class_weights),):
        raise ValueError(f"bias {tuple(bias.shape)}: expected ({len(class_weights)},), one for each class")
    # On a GPU this would wait for the device at every step; there, cross_entropy's own assertion stops the run.
    if identity_labels.device.type == "cpu" and (
        int(identity_labels.min()) < 0 or int(identity_labels.max()) >= len(class_weights)
    ):
        found = f"{int(identity_labels.min())} to {int(identity_labels.max())}"
        raise ValueError(f"identity_labels: expected 0 to {len(class_weights) - 1}, found {found}")
    with torch.autocast(embeddings.device.type, enabled=False):
        weights = full_precision(class_weights)
        logits = F.linear(full_precision(embeddings), weights)
        if unit_rows:  # the logits are divided, not the rows: these are many times larger, as are their gradients
            logits = logits / torch.linalg.vector_norm(weights, dim=1).clamp_min(1e-12)
        return F.cross_entropy(logits + full_precision(bias), identity_labels)


def discriminator_loss(image_logits: Tensor, text_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The discriminator's side of L_D: -E_V[log D(phi(V))] - E_T[log(1 - D(phi(T)))].

    Args:
        image_logits: (B,) logits that image embeddings come from images.
        text_logits: (B',) the same of text embeddings.
        label_smoothing: one-sided (Salimans et al., NIPS 2016): the target for images is 1 - this; in [0, 0.5).

    Returns:
        A scalar in nats, at least 0; 2 ln 2 = 1.386 where the discriminator cannot tell.

    Raises:
        ValueError: an empty batch or smoothing out of range.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing = {label_smoothing}: expected at least 0, below 0.5")
    return _modality_cross_entropy(image_logits, 1.0 - label_smoothing) + _modality_cross_entropy(text_logits, 0.0)


def encoder_adversarial_loss(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """The encoders' side of L_D, against a discriminator that this step leaves as it is.

    The non-saturating form: each modality is to be taken for the other, -E_V[log(1 - D(phi(V)))]
    - E_T[log D(phi(T))]. The paper states the min-max game and not this choice; the other one is the game's own value,
    minus `discriminator_loss`, whose gradient is what a gradient reversal layer passes on (Ganin and Lempitsky, ICML
    2015). Where the discriminator is sure, this one pulls hardest and that one hardly.

    Args:
        image_logits: (B,) logits that image embeddings come from images.
        text_logits: (B',) the same of text embeddings.

    Returns:
        A scalar in nats, at least 0; falls as the discriminator errs more.
    """
    return _modality_cross_entropy(image_logits, 0.0) + _modality_cross_entropy(text_logits, 1.0)


def _modality_cross_entropy(logits: Tensor, target: float) -> Tensor:
    if logits.numel() == 0:
        raise ValueError("modality_logits: the batch is empty")
    with torch.autocast(logits.device.type, enabled=False):
        logits = full_precision(logits)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def gradient_penalty(modality_logits: Tensor, embeddings: Tensor) -> Tensor:
    """R1 penalty of the discriminator: mean over the batch of |d logit / d embedding|^2, differentiable once more.

    Without it the game goes round: the encoders push the modalities through each other and apart again, faster than
    the discriminator turns, and a mere shift between two equal clouds grows (notebook 10). A slope that is kept small
    damps this (Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018).
    Theirs penalises real data only; here no modality is the real one, so it is on both.

    Args:
        modality_logits: (B,) of the discriminator for
        embeddings: (B, D), which must require a gradient.

    Returns:
        A scalar, at least 0.
    """
    (slopes,) = torch.autograd.grad(modality_logits.sum(), embeddings, create_graph=True)
    return slopes.square().sum(dim=1).mean()
