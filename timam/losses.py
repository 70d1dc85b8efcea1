"""The losses as stateless functions of tensors: those of TIMAM (Sarafianos et al., ICCV 2019) and alternatives.

Conventions:

- All return a scalar in nats, a mean over the batch, and raise ValueError for shapes that do not fit or an empty batch.
- Inputs below float32 are computed in float32, because 1e-8 is 0 in float16; float64 stays float64.
- Matching losses take image_embeddings and text_embeddings, (B, D) floating point of any norm, where row i of one is
  paired with row i of the other, and identity_labels, (B,) integers, where equal labels are positives. They are the sum
  of both directions. q_ij is 1 / (number of positives of i) for the positives j of i, else 0.
- Discrepancies take image_embeddings (B, D) and text_embeddings (B', D) of any norm, and compare their directions.
- Adversarial losses take discriminator logits of images (B,) and texts (B',): above 0 for "image" (1), else "text" (0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Converts anything below float32 to float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _no_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)


def _check_embeddings(name: str, embeddings: Tensor, identity_labels: Tensor) -> None:
    shape, labels_shape = tuple(embeddings.shape), tuple(identity_labels.shape)
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(f"{name} {shape}: expected (B, D) and not empty")
    if labels_shape != shape[:1]:
        raise ValueError(f"identity_labels {labels_shape}: expected {shape[:1]} to match {name} {shape}")


# -- matching ------------------------------------------------------------------------------------------------------


def cmpm_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, identity_labels: Tensor, epsilon: float = 1e-8
) -> Tensor:
    """Cross-modal projection matching loss L_M = L_M(V) + L_M(T) (Zhang and Lu, ECCV 2018, eqs. 1 to 5).

    L_M(V) = mean_i sum_j p_ij log(p_ij / (q_ij + epsilon)) with p_ij = softmax_j(phi(V_i) . norm(phi(T_j))); L_M(T)
    with the roles exchanged. At least -2 log(1 + B epsilon), which is 0 up to rounding. `epsilon`, in (0, 1), keeps the
    logarithm finite where q is 0.
    """
    images, texts, targets = _checked_batch(image_embeddings, text_embeddings, identity_labels)
    with _no_autocast(images):
        image_to_text = _divergence(images @ F.normalize(texts, dim=1).T, targets, epsilon)
        return image_to_text + _divergence(texts @ F.normalize(images, dim=1).T, targets, epsilon)


def sdm_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    identity_labels: Tensor,
    temperature: float = 0.02,
    epsilon: float = 1e-8,
) -> Tensor:
    """Similarity distribution matching (Jiang and Ye, IRRA, CVPR 2023); temperature above 0, by default IRRA's.

    As `cmpm_loss` with p_ij = softmax_j(cosine_ij / temperature).
    """
    images, texts, targets = _checked_batch(image_embeddings, text_embeddings, identity_labels)
    with _no_autocast(images):
        logits = _cosines(images, texts, temperature)
        return _divergence(logits, targets, epsilon) + _divergence(logits.T, targets, epsilon)


def infonce_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, identity_labels: Tensor, temperature: float | Tensor
) -> Tensor:
    """Contrastive loss with identities: -mean_i sum_j q_ij log softmax_j(cosine_ij / temperature).

    With one pair per identity it is twice CLIP's loss (Radford et al., ICML 2021), which has the directions' mean;
    several positives are ours. The temperature is above 0; a scalar tensor that requires a gradient is learned.
    """
    images, texts, targets = _checked_batch(image_embeddings, text_embeddings, identity_labels)
    with _no_autocast(images):
        logits = _cosines(images, texts, temperature)
        return F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)


def triplet_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, identity_labels: Tensor, margin: float = 0.2
) -> Tensor:
    """Mean over anchors of max(0, margin + cosine to the hardest negative - cosine to the own pair).

    From VSE++ (Faghri et al., BMVC 2018). The hardest negative is the most similar embedding of the other modality and
    of another identity. An anchor without one counts 0.
    """
    images, texts, targets = _checked_batch(image_embeddings, text_embeddings, identity_labels)
    with _no_autocast(images):
        cosines = _cosines(images, texts)
        negatives = cosines.masked_fill(targets > 0, float("-inf"))
        hardest = torch.stack([negatives.amax(dim=1), negatives.amax(dim=0)])  # (2, B): of each image, of each text
        return F.relu(margin + hardest - cosines.diagonal()).mean(dim=1).sum()


def _checked_batch(images: Tensor, texts: Tensor, identity_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both embeddings (B, D) in full precision and the targets q (B, B)."""
    if images.shape != texts.shape:
        shapes = tuple(images.shape), tuple(texts.shape)
        raise ValueError("image_embeddings {} and text_embeddings {}: expected the same shape".format(*shapes))
    _check_embeddings("image_embeddings", images, identity_labels)
    images, texts = full_precision(images), full_precision(texts)
    same_identity = (identity_labels[:, None] == identity_labels).to(images.dtype)
    # Rows sum to 1. Several ports divide by the row's L2 norm instead: a perfect match then scores below 0.
    return images, texts, same_identity / same_identity.sum(dim=1, keepdim=True)


def _divergence(logits: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """Mean over rows of the Kullback-Leibler divergence of softmax(logits) from targets + epsilon."""
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - torch.log(targets + epsilon))).sum(dim=1).mean()


def _cosines(images: Tensor, texts: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Cosine similarities (B, B), divided by the temperature."""
    if isinstance(temperature, Tensor):  # its value is not read: on a GPU that would wait for the device at every step
        if temperature.numel() != 1:
            raise ValueError(f"temperature {tuple(temperature.shape)}: expected a scalar")
        temperature = full_precision(temperature)
    elif not temperature > 0:
        raise ValueError(f"temperature = {temperature}: expected above 0")
    return F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / temperature


# -- identification ------------------------------------------------------------------------------------------------


def norm_softmax_loss(
    embeddings: Tensor, class_weights: Tensor, bias: Tensor, identity_labels: Tensor, unit_rows: bool = True
) -> Tensor:
    """Identification loss of one modality: cross-entropy of logits = embeddings . (W_c / ||W_c||) + b_c.

    Norm-softmax (Zhang and Lu, ECCV 2018, eq. 7). The paper's L_I is the sum over the two modalities. Embeddings (B,
    D), not normalised; class_weights (C, D), a row for each training identity; bias (C,); labels in [0, C): on the CPU,
    another one raises ValueError. Without `unit_rows` it is plain softmax, for the ablation: longer rows then lower the
    loss without better embeddings.
    """
    _check_embeddings("embeddings", embeddings, identity_labels)
    if class_weights.shape[1:] != embeddings.shape[1:] or bias.shape != class_weights.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (embeddings, class_weights, bias)]
        raise ValueError("embeddings {}, class_weights {}, bias {}: expected (B, D), (C, D), (C,)".format(*shapes))
    if identity_labels.device.type == "cpu":  # on a GPU this would wait for the device; cross_entropy asserts it there
        low, high = (int(end) for end in identity_labels.aminmax())
        if low < 0 or high >= len(class_weights):
            raise ValueError(f"identity_labels: expected 0 to {len(class_weights) - 1}, found {low} to {high}")
    with _no_autocast(embeddings):
        weights = full_precision(class_weights)
        logits = F.linear(full_precision(embeddings), weights)
        if unit_rows:  # dividing the (B, C) logits is cheaper than dividing the (C, D) rows and storing their gradient
            logits = logits / torch.linalg.vector_norm(weights, dim=1).clamp_min(1e-12)
        return F.cross_entropy(logits + full_precision(bias), identity_labels)


# -- adversarial ---------------------------------------------------------------------------------------------------


def discriminator_loss(image_logits: Tensor, text_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """L_D for the discriminator: -E_V[log D(phi(V))] - E_T[log(1 - D(phi(T)))]; 2 ln 2 where it cannot tell.

    Goodfellow et al., NIPS 2014, eq. 1. The images' target is 1 - label_smoothing, above 0.5 (Salimans et al., 2016).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing = {label_smoothing}: expected at least 0, below 0.5")
    return _modality_cross_entropy(image_logits, 1.0 - label_smoothing) + _modality_cross_entropy(text_logits, 0.0)


def encoder_adversarial_loss(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """L_D for the encoders, non-saturating: -E_V[log(1 - D(phi(V)))] - E_T[log D(phi(T))].

    Goodfellow et al., section 3. The paper states the min-max game and not which form the encoders minimise. The
    alternative is minus `discriminator_loss`, by gradient reversal (Ganin and Lempitsky, ICML 2015). Where the
    discriminator is confident, the form here has its largest gradient and gradient reversal has almost none.
    """
    return _modality_cross_entropy(image_logits, 0.0) + _modality_cross_entropy(text_logits, 1.0)


def _modality_cross_entropy(logits: Tensor, target: float) -> Tensor:
    if logits.numel() == 0:
        raise ValueError("modality_logits: the batch is empty")
    with _no_autocast(logits):
        logits = full_precision(logits)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def gradient_penalty(modality_logits: Tensor, embeddings: Tensor) -> Tensor:
    """R1 penalty of the discriminator: mean over the batch of |d logit / d embedding|^2, itself differentiable.

    Without it the game does not converge: the encoders push the modalities through each other and apart again faster
    than the discriminator follows. A small slope of the discriminator damps this. Mescheder et al. (ICML 2018, eq. 9)
    penalise real data only; here neither modality is the real one, so both are. The logits (B,) are those of
    `embeddings` (B, D), which must require a gradient.
    """
    (slopes,) = torch.autograd.grad(modality_logits.sum(), embeddings, create_graph=True)
    return slopes.square().sum(dim=1).mean()


# -- discrepancy -----------------------------------------------------------------------------------------------------


def mmd_loss(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the modalities, with the biased estimator: at least 0, and 0 for equal sets.

    Gretton et al., JMLR 2012, eq. 5. The kernel is the mean of exp(-g |x - y|^2) over g = 1/2, 2, 8, at unit length.
    Unit vectors have squared distances of 0 to 4, most of them near 2, so fixed bandwidths suit every batch.
    """
    images, texts = _checked_directions(image_embeddings, text_embeddings)
    with _no_autocast(images):
        both = torch.cat([images, texts])
        squared = (2 - 2 * both @ both.T).clamp_min(0)
        kernel = torch.stack([torch.exp(-g * squared) for g in (0.5, 2.0, 8.0)]).mean(dim=0)
        signs = torch.cat([torch.full_like(e[:, 0], s / len(e)) for e, s in ((images, 1), (texts, -1))])
        return signs @ kernel @ signs  # mean within images and within texts, minus twice the mean across


def coral_loss(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """|C_V - C_T|_F^2 of the modalities' covariances (D, D) at unit length, in [0, 1]; means are not compared.

    CORAL's authors (Sun and Saenko, ECCV workshops 2016, eq. 1) divide by 4 D^2, for coordinates, not lengths, near 1.
    """
    images, texts = _checked_directions(image_embeddings, text_embeddings)
    with _no_autocast(images):
        return (torch.cov(images.T, correction=0) - torch.cov(texts.T, correction=0)).square().sum()


def _checked_directions(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both embeddings at unit length, in full precision."""
    shapes = tuple(images.shape), tuple(texts.shape)
    if any(len(shape) != 2 or shape[0] == 0 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError("image_embeddings {}, text_embeddings {}: expected (B, D), (B', D), not empty".format(*shapes))
    return F.normalize(full_precision(images), dim=1), F.normalize(full_precision(texts), dim=1)
