"""Losses against references made of SciPy, scikit-learn and torch from the papers' equations; gradients and bounds."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from sklearn.preprocessing import normalize
from torch import nn

from timam.losses import (
    cmpm_loss,
    coral_loss,
    discriminator_loss,
    encoder_adversarial_loss,
    gradient_penalty,
    infonce_loss,
    mmd_loss,
    norm_softmax_loss,
    sdm_loss,
    triplet_loss,
)
from timam.models import ModalityDiscriminator

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative

# Identity labels of a batch; the comment says how many positives the rows have.
PATTERNS = {
    "one each": [0, 1, 2, 3, 4, 5],  # 1
    "pairs": [3, 3, 7, 7, 1, 1],  # 2
    "uneven, mixed": [5, 2, 9, 5, 2, 5, 2, 7, 9, 2],  # 3, 4, 2, 1
    "one identity": [4, 4, 4, 4],  # every pair
    "single pair": [8],
}


def embeddings(labels: list[int], dim: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images, texts = 3 * torch.randn(2, len(labels), dim, generator=generator, dtype=torch.float64)
    return images.to(dtype), texts.to(dtype), torch.tensor(labels)


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


# -- matching --------------------------------------------------------------------------------------------------------

MATCHING = {
    "cmpm": (cmpm_loss, slow_cmpm),
    "cmpm, epsilon": (partial(cmpm_loss, epsilon=1e-2), partial(slow_cmpm, epsilon=1e-2)),
    "sdm": (sdm_loss, slow_sdm),
    "sdm, warm": (partial(sdm_loss, temperature=0.5, epsilon=1e-2), partial(slow_sdm, temperature=0.5, epsilon=1e-2)),
    "infonce": (partial(infonce_loss, temperature=0.1), partial(slow_infonce, temperature=0.1)),
    "triplet": (triplet_loss, slow_triplet),
    "triplet, wide": (partial(triplet_loss, margin=0.7), partial(slow_triplet, margin=0.7)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", MATCHING)
def test_matching_equals_the_equations(name, pattern, dtype):
    fast, slow = MATCHING[name]
    images, texts, labels = embeddings(PATTERNS[pattern], dtype=dtype)
    loss = fast(images, texts, labels)
    assert loss.dtype == dtype
    assert loss.shape == ()
    # Absolute below 1, as the terms of the sum are of that size; cosines are divided by the temperature.
    tolerance = TOLERANCE[dtype] * (10 if name == "sdm" else 1)
    expected = slow(*(x.cpu().numpy() for x in (images.double(), texts.double(), labels)))
    assert loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("loss", [cmpm_loss, sdm_loss])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]])
def test_perfect_match_is_zero(loss, labels):
    # Same identity: same direction, logit 60 or 1/0.02; other: orthogonal, logit 0. p is 1/k on each positive but for
    # e^-50. Targets divided by their L2 norm instead of their sum would give -ln k for k positives.
    rows = 60 * torch.eye(4, dtype=torch.float64)[labels]
    assert abs(loss(rows, rows, torch.tensor(labels)).item()) < 1e-6


def classifier(classes: int = 6, dim: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(1.0, classes + 1, dtype=torch.float64)[:, None]
    weights = lengths * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return weights.to(dtype), torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", ["one each", "pairs", "single pair"])
def test_identification_equals_the_equation(pattern, dtype):
    """Zhang and Lu, equation 7: softmax of W x / |W_c| + b, and without the division."""
    rows, _, labels = embeddings(PATTERNS[pattern], dtype=dtype)
    weights, bias = classifier(classes=9, dtype=dtype)  # of lengths 1 to 9
    for unit_rows, used in ((True, F.normalize(weights, dim=1)), (False, weights)):
        found = norm_softmax_loss(rows, weights, bias, labels, unit_rows)
        assert found.dtype == dtype
        expected = F.cross_entropy(rows.double() @ used.double().T + bias.double(), labels).item()
        assert found.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


# -- adversarial -----------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([-0.7, 0.4, 1.1])  # B and B' may differ


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_adversarial_losses_equal_the_equations(dtype, smoothing):
    image, text = (x.to(dtype) for x in LOGITS)

    def entropy(logits: torch.Tensor, target: float) -> float:
        p = logits.double().sigmoid()
        return F.binary_cross_entropy(p, torch.full_like(p, target)).item()

    expected = entropy(image, 1 - smoothing) + entropy(text, 0.0)
    assert discriminator_loss(image, text, smoothing).item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    swapped = entropy(image, 0.0) + entropy(text, 1.0)
    assert encoder_adversarial_loss(image, text).item() == pytest.approx(swapped, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_discriminator_loss_is_bounded_below(smoothing):
    # A target above 1 would fall without bound in the logit of an image; smoothed texts would not be best at -infinity.
    for image, text in itertools.product((-1e4, -30.0, 0.0, 30.0, 1e4), repeat=2):
        assert discriminator_loss(torch.tensor([image]), torch.tensor([text]), smoothing).item() >= 0
    far = discriminator_loss(torch.tensor([1e4]), torch.tensor([-1e4]), smoothing).item()
    assert far == pytest.approx(smoothing * 1e4, rel=1e-6)


def test_gradient_penalty_of_a_known_slope():
    # A linear discriminator has the slope w everywhere: the penalty is |w|^2, and its gradient 2 w.
    layer = nn.Linear(3, 1).double()
    embeddings = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(layer(embeddings).squeeze(1), embeddings)
    penalty.backward()
    torch.testing.assert_close(penalty, layer.weight.square().sum())
    torch.testing.assert_close(layer.weight.grad, 2 * layer.weight)
    # A quadratic one, |x|^2 / 2, has the slope x: the mean of |x|^2 over the batch, not their sum.
    quadratic = embeddings.square().sum(dim=1) / 2
    torch.testing.assert_close(gradient_penalty(quadratic, embeddings), embeddings.square().sum(dim=1).mean())


def test_discriminator_separates_shifted_gaussians():
    # One modality at a time: with batch normalisation both would have the same statistics, and a loss of 2 ln 2.
    torch.manual_seed(0)
    discriminator = ModalityDiscriminator(8, 16).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    for _ in range(60):  # unit spread, means 3 apart in every direction
        images, texts = torch.randn(128, 8) + 1.5, torch.randn(128, 8) - 1.5
        loss = discriminator_loss(discriminator(images), discriminator(texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("fast", "slow"), [(mmd_loss, slow_mmd), (coral_loss, slow_coral)])
def test_discrepancies_equal_the_definitions(fast, slow, dtype):
    images, texts, _ = embeddings(PATTERNS["uneven, mixed"], dtype=dtype)
    for v, t in ((images, texts), (texts[:3], images), (images[:1], texts)):  # the sets may differ in size
        loss = fast(v, t)
        assert (loss.dtype, loss.shape) == (dtype, ())
        expected = slow(*(x.cpu().double().numpy() for x in (v, t)))
        assert loss.item() == pytest.approx(expected, rel=10 * TOLERANCE[dtype])
        torch.testing.assert_close(fast(t, v), loss)
        assert fast(v, 3 * v.flip(0)).item() == pytest.approx(0, abs=TOLERANCE[dtype])  # one set in another order


# -- all of them -----------------------------------------------------------------------------------------------------

CALLS = {
    "cmpm": lambda v, t, weights, bias, labels: cmpm_loss(v, t, labels),
    "sdm": lambda v, t, weights, bias, labels: sdm_loss(v, t, labels),
    "infonce": lambda v, t, weights, bias, labels: infonce_loss(v, t, labels, bias[0].abs()),
    "triplet": lambda v, t, weights, bias, labels: triplet_loss(v, t, labels, 0.3),
    "norm-softmax": lambda v, t, weights, bias, labels: norm_softmax_loss(v, weights, bias, labels),
    "discriminator": lambda v, t, *_: discriminator_loss(v[:, 0], t[:, 0], 0.1),
    "encoders": lambda v, t, *_: encoder_adversarial_loss(v[:, 0], t[:, 0]),
    "mmd": lambda v, t, *_: mmd_loss(v, t),
    "coral": lambda v, t, *_: coral_loss(v, t),
}
every_loss = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_loss
def test_gradients(call):
    images, texts, labels = embeddings([0, 1, 1, 2, 2, 2], dim=3)
    weights, bias = classifier(dim=3)
    inputs = [x.requires_grad_() for x in (images / 3, texts / 3, weights, bias)]
    assert torch.autograd.gradcheck(lambda *x: call(*x, labels), inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_low_precision_is_computed_in_float32(call, dtype, autocast):
    images, texts, labels = embeddings(PATTERNS["uneven, mixed"], dtype=dtype)
    labels = labels % 6
    inputs = (4 * images, 4 * texts, *classifier(dtype=dtype))
    exact = call(*(x.float() for x in inputs), labels)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = call(*inputs, labels)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss.item() == exact.item()


@every_loss
@pytest.mark.parametrize(
    ("dtype", "size"),  # the gradient of a cosine is 1 / size: that of smaller rows exceeds float16
    [*itertools.product([torch.float32], [0.0, 1e-4, 1e4]), *itertools.product([torch.float16], [0.0, 1e-3, 1e4])],
)
@pytest.mark.parametrize("labels", [[0, 1, 1, 2, 2, 2], [3, 3, 3], [0]])
def test_extreme_inputs_give_finite_values_and_gradients(call, dtype, size, labels):
    images, texts, labels = embeddings(labels)
    weights, bias = classifier()
    unit = [size * x / x.norm(dim=-1, keepdim=True) for x in (images, texts, weights)]
    inputs = [x.to(dtype).requires_grad_() for x in (*unit, bias)]
    loss = call(*inputs, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is None or torch.isfinite(x.grad.float()).all() for x in inputs)


zeros = torch.zeros


def ids(*labels: int) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.int64)


@pytest.mark.parametrize(
    ("loss", "inputs", "found"),
    [
        (cmpm_loss, (zeros(3, 4), zeros(2, 4), ids(0, 0, 0)), ["(3, 4)", "(2, 4)"]),
        (triplet_loss, (zeros(3, 4), zeros(3, 5), ids(0, 0, 0)), ["(3, 4)", "(3, 5)"]),
        (cmpm_loss, (zeros(3, 4), zeros(3, 4), ids(0, 0)), ["(3,)", "(2,)"]),
        (cmpm_loss, (zeros(3, 4), zeros(3, 4), zeros(3, 1)), ["(3,)", "(3, 1)"]),
        (cmpm_loss, (zeros(3), zeros(3), ids(0, 0, 0)), ["(B, D)", "(3,)"]),
        (cmpm_loss, (zeros(0, 4), zeros(0, 4), ids()), ["empty"]),
        (sdm_loss, (zeros(1, 4), zeros(1, 4), ids(0), 0.0), ["temperature = 0.0"]),
        (infonce_loss, (zeros(1, 4), zeros(1, 4), ids(0), zeros(3)), ["temperature (3,)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 5), zeros(6), ids(0, 0)), ["(6, 5)", "(2, 4)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(5), ids(0, 0)), ["(5,)", "(6, 4)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(6), ids(0)), ["(2,)", "(1,)"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(6), ids(0, 6).cpu()), ["0 to 5", "0 to 6"]),
        (norm_softmax_loss, (zeros(2, 4), zeros(6, 4), zeros(6), ids(-1, 5).cpu()), ["0 to 5", "-1 to 5"]),
        (encoder_adversarial_loss, (zeros(3), zeros(0)), ["empty"]),
        *((discriminator_loss, (*LOGITS, s), ["label_smoothing"]) for s in (-0.1, 0.5, float("nan"))),
        (mmd_loss, (zeros(3, 4), zeros(2, 5)), ["(3, 4)", "(2, 5)"]),
        (coral_loss, (zeros(3, 4), zeros(0, 4)), ["empty"]),
        (coral_loss, (zeros(3), zeros(3, 1)), ["(3,)"]),
    ],
)
def test_wrong_input_is_an_error_that_names_what_was_found(loss, inputs, found):
    with pytest.raises(ValueError, match=r"expected|empty") as error:
        loss(*inputs)
    assert [text for text in found if text not in str(error.value)] == []
