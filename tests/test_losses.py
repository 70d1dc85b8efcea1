"""Losses against references made of SciPy, scikit-learn and torch from the papers' equations; gradients and bounds."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_expit, log_softmax, rel_entr, softmax
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.preprocessing import normalize

from timam.losses import (
    cmpm_loss,
    coral_loss,
    discriminator_loss,
    encoder_adversarial_loss,
    infonce_loss,
    mmd_loss,
    norm_softmax_loss,
    sdm_loss,
    triplet_loss,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative

# Identity labels of a batch; the comment says how many positives the rows have.
PATTERNS = {
    "one each": [0, 1, 2, 3, 4, 5],  # 1
    "pairs": [3, 3, 7, 7, 1, 1],  # 2
    "uneven, mixed": [5, 2, 9, 5, 2, 5, 2, 7, 9, 2],  # 3, 4, 2, 1
    "one identity": [4, 4, 4, 4],  # every pair
    "single pair": [8],
}


# -- references in float64 -------------------------------------------------------------------------------------------


def divergence(logits: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    """Zhang and Lu, equation 4: the mean over i of sum_j p_ij log(p_ij / (q_ij + epsilon))."""
    return rel_entr(softmax(logits, axis=1), q + epsilon).sum(axis=1).mean()


def targets(y: np.ndarray) -> np.ndarray:
    """q_ij = Y_ij / sum_k Y_ik."""
    return normalize((y[:, None] == y).astype(float), norm="l1")


def slow_cmpm(v, t, y, epsilon: float = 1e-8) -> float:
    return sum(divergence(a @ normalize(b).T, targets(y), epsilon) for a, b in ((v, t), (t, v)))


def slow_sdm(v, t, y, temperature: float = 0.02, epsilon: float = 1e-8) -> float:
    cosines = cosine_similarity(v, t)
    return sum(divergence(logits / temperature, targets(y), epsilon) for logits in (cosines, cosines.T))


def slow_infonce(v, t, y, temperature: float) -> float:
    logits = cosine_similarity(v, t) / temperature
    return -sum((targets(y) * log_softmax(part, axis=1)).sum() for part in (logits, logits.T)) / len(y)


def slow_triplet(v, t, y, margin: float = 0.2) -> float:
    cosines = cosine_similarity(v, t)
    hardest = np.where(y[:, None] == y, -np.inf, cosines)
    own = np.diag(cosines)
    return sum(np.maximum(0, margin + hardest.max(axis=axis) - own).mean() for axis in (0, 1))


def slow_mmd(v, t) -> float:
    """Gretton et al., equation 5: means over all pairs within each set, and minus twice over the pairs across."""
    v, t = normalize(v), normalize(t)
    kernels = [[rbf_kernel(*pair, gamma=g).mean() for g in (0.5, 2, 8)] for pair in ((v, v), (t, t), (v, t))]
    return np.mean(kernels, axis=1) @ [1, 1, -2]


def slow_coral(v, t) -> float:
    v, t = (np.cov(normalize(rows).T, bias=True) for rows in (v, t))
    return ((v - t) ** 2).sum()


def slow_norm_softmax(rows, weights, bias, y, unit_rows: bool = True) -> float:
    """Zhang and Lu, equation 7: softmax of W x / |W_c| + b; or without the division."""
    logits = rows @ (normalize(weights) if unit_rows else weights).T + bias
    return -log_softmax(logits, axis=1)[np.arange(len(y)), y].mean()


def entropy(logits: np.ndarray, target: float) -> float:
    return -(target * log_expit(logits) + (1 - target) * log_expit(-logits)).mean()


def slow_discriminator(image, text, label_smoothing: float = 0.0) -> float:
    return entropy(image, 1 - label_smoothing) + entropy(text, 0.0)


def slow_encoders(image, text) -> float:
    return entropy(image, 0.0) + entropy(text, 1.0)


# The loss, its reference, what both take (a key of `inputs_of`), and their options.
LOSSES = {
    "cmpm": (cmpm_loss, slow_cmpm, "pairs", {}),
    "cmpm, epsilon": (cmpm_loss, slow_cmpm, "pairs", {"epsilon": 1e-2}),
    "sdm": (sdm_loss, slow_sdm, "pairs", {}),
    "sdm, warm": (sdm_loss, slow_sdm, "pairs", {"temperature": 0.5, "epsilon": 1e-2}),
    "infonce": (infonce_loss, slow_infonce, "pairs with a temperature", {}),
    "triplet": (triplet_loss, slow_triplet, "pairs", {}),
    "triplet, wide": (triplet_loss, slow_triplet, "pairs", {"margin": 0.7}),
    "norm-softmax": (norm_softmax_loss, slow_norm_softmax, "classified", {}),
    "softmax": (norm_softmax_loss, slow_norm_softmax, "classified", {"unit_rows": False}),
    "discriminator": (discriminator_loss, slow_discriminator, "logits", {}),
    "discriminator, smooth": (discriminator_loss, slow_discriminator, "logits", {"label_smoothing": 0.3}),
    "encoders": (encoder_adversarial_loss, slow_encoders, "logits", {}),
    "mmd": (mmd_loss, slow_mmd, "sets", {}),
    "coral": (coral_loss, slow_coral, "sets", {}),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def inputs_of(name: str, labels: list[int], dtype: torch.dtype = torch.float64, length: float | None = None):
    """The inputs of a loss for a batch of these identities; with a length, embeddings and classifier rows have it."""
    generator = torch.Generator().manual_seed(0)
    numbers = 3 * torch.randn(2 * len(labels) + 11, 10, generator=generator, dtype=torch.float64)
    images, texts, weights, (bias,) = numbers.split([len(labels), len(labels), 10, 1])
    weights = weights * torch.arange(1.0, 11.0, dtype=torch.float64)[:, None]  # rows of many lengths
    if length is not None:
        images, texts, weights = (length * F.normalize(rows, dim=1) for rows in (images, texts, weights))
    images, texts, weights, bias = (x.to(dtype) for x in (images, texts, weights, bias))
    identities = torch.tensor(labels)
    return {
        "pairs": (images, texts, identities),
        "pairs with a temperature": (images, texts, identities, bias[0].abs()),
        "classified": (images, weights, bias, identities),
        "logits": (images[:, 0], texts[:3, 0]),  # B and B' may differ
        "sets": (images, texts[:3]),
    }[LOSSES[name][2]]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", PATTERNS)
@every_loss
def test_loss_equals_its_equation(name, pattern, dtype):
    fast, slow, kind, options = LOSSES[name]
    inputs = inputs_of(name, PATTERNS[pattern], dtype)
    loss = fast(*inputs, **options)
    assert (loss.dtype, loss.shape) == (dtype, ())
    # Cosines are divided by the temperature, and a discrepancy is a difference of larger numbers.
    tolerance = TOLERANCE[dtype] * (10 if name in ("sdm", "mmd", "coral") else 1)
    # Absolute below 1, as the terms of a matching loss's sum are of that size.
    absolute = tolerance if kind.startswith("pairs") else 0
    exact = (x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs)
    assert loss.item() == pytest.approx(slow(*(x.numpy() for x in exact), **options), rel=tolerance, abs=absolute)


def differentiable(inputs) -> list[torch.Tensor]:
    return [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]


@every_loss
def test_gradients(name):
    loss, _, _, options = LOSSES[name]
    inputs = differentiable(inputs_of(name, [0, 1, 1, 2, 2, 2], length=1.0))
    assert torch.autograd.gradcheck(lambda *x: loss(*x, **options), inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_low_precision_is_computed_in_float32(name, dtype, autocast):
    loss, _, _, options = LOSSES[name]
    inputs = inputs_of(name, PATTERNS["uneven, mixed"], dtype)
    exact = loss(*(x.float() if x.is_floating_point() else x for x in inputs), **options)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = loss(*inputs, **options)
    assert found.dtype == torch.float32
    assert found.item() == exact.item()


@every_loss
@pytest.mark.parametrize(
    ("dtype", "length"),  # the gradient of a cosine is 1 / length: that of shorter rows exceeds float16
    [*itertools.product([torch.float32], [0.0, 1e-4, 1e4]), *itertools.product([torch.float16], [0.0, 1e-3, 1e4])],
)
@pytest.mark.parametrize("labels", [[0, 1, 1, 2, 2, 2], [3, 3, 3], [0]])
def test_extreme_inputs_give_finite_values_and_gradients(name, dtype, length, labels):
    loss, _, _, options = LOSSES[name]
    inputs = differentiable(inputs_of(name, labels, dtype, length))
    found = loss(*inputs, **options)
    found.backward()
    assert torch.isfinite(found)
    assert all(x.grad is None or torch.isfinite(x.grad.float()).all() for x in inputs)


zeros, tensor = torch.zeros, torch.tensor


@pytest.mark.parametrize(
    ("loss", "inputs", "found"),
    [
        (cmpm_loss, (zeros(3, 4), zeros(2, 4), tensor([0, 0, 0])), ["(3, 4)", "(2, 4)"]),
        (cmpm_loss, (zeros(3, 4), zeros(3, 4), tensor([0, 0])), ["(3,)", "(2,)"]),
        (cmpm_loss, (zeros(3), zeros(3), tensor([0, 0, 0])), ["(B, D)", "(3,)"]),
        (cmpm_loss, (zeros(0, 4), zeros(0, 4), zeros(0)), ["empty"]),
        (sdm_loss, (zeros(1, 4), zeros(1, 4), tensor([0]), 0.0), ["temperature = 0.0"]),
        (infonce_loss, (zeros(1, 4), zeros(1, 4), tensor([0]), zeros(3)), ["temperature (3,)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 5), zeros(6), tensor([0, 0])), ["(6, 5)", "(2, 4)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(5), tensor([0, 0])), ["(5,)", "(6, 4)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(6), tensor([0, 6]).cpu()), ["0 to 5", "0 to 6"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(6), tensor([-1, 5]).cpu()), ["0 to 5", "-1 to 5"]),
        (encoder_adversarial_loss, (zeros(3), zeros(0)), ["empty"]),
        *((discriminator_loss, (zeros(3), zeros(2), s), ["label_smoothing"]) for s in (-0.1, 0.5, float("nan"))),
        (mmd_loss, (zeros(3, 4), zeros(2, 5)), ["(3, 4)", "(2, 5)"]),
        (coral_loss, (zeros(3, 4), zeros(0, 4)), ["empty"]),
        (coral_loss, (zeros(3), zeros(3, 1)), ["(3,)"]),
    ],
)
def test_wrong_input_is_an_error_that_names_what_was_found(loss, inputs, found):
    with pytest.raises(ValueError, match=r"expected|empty") as error:
        loss(*inputs)
    assert [text for text in found if text not in str(error.value)] == []
