"""Losses against slow references written from the papers' equations, their gradients, bounds and symmetries."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from timam import losses
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
EPSILON = 1e-8

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


# -- slow references: float64, one loop for each index of the equations ----------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def slow_matching(v, t, y, logit, row) -> float:
    """Of both directions the mean of row(log p_i, q_i): p_ij = softmax_j(logit(i, j)), q_ij = Y_ij / sum_k Y_ik."""
    total = 0.0
    for source, target in ((v, t), (t, v)):
        for i in range(len(y)):
            log_p = log_softmax([logit(source[i], target[j]) for j in range(len(y))])
            positive = np.array([float(y[j] == y[i]) for j in range(len(y))])
            total += row(log_p, positive / positive.sum()) / len(y)
    return total


def divergence(log_p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    """Zhang and Lu, equation 4: sum_j p_j log(p_j / (q_j + epsilon))."""
    return math.fsum(np.exp(log_p) * (log_p - np.log(q + epsilon)))


def slow_cmpm(v, t, y, epsilon: float = EPSILON) -> float:
    return slow_matching(v, t, y, lambda a, b: a @ b / np.linalg.norm(b), partial(divergence, epsilon=epsilon))


def slow_sdm(v, t, y, temperature: float = 0.02, epsilon: float = EPSILON) -> float:
    return slow_matching(v, t, y, lambda a, b: cosine(a, b) / temperature, partial(divergence, epsilon=epsilon))


def slow_infonce(v, t, y, temperature: float) -> float:
    return slow_matching(v, t, y, lambda a, b: cosine(a, b) / temperature, lambda log_p, q: -q @ log_p)


def slow_triplet(v, t, y, margin: float = 0.2) -> float:
    total = 0.0
    for source, target in ((v, t), (t, v)):
        for i in range(len(y)):
            others = [cosine(source[i], target[j]) for j in range(len(y)) if y[j] != y[i]]
            total += max(0.0, margin + max(others) - cosine(source[i], target[i])) / len(y) if others else 0.0
    return total


def slow_norm_softmax(rows, weights, bias, labels) -> float:
    """Zhang and Lu, equation 7: mean of -log softmax(W x / ||W_c|| + b)[label]."""
    log_p = [log_softmax([w @ x / np.linalg.norm(w) + b for w, b in zip(weights, bias, strict=True)]) for x in rows]
    return -np.mean([row[label] for row, label in zip(log_p, labels, strict=True)])


def slow_cross_entropy(logits: torch.Tensor, target: float) -> float:
    """Mean of -target log D - (1 - target) log(1 - D), with log D = -log(1 + exp(-logit))."""
    return np.mean(
        [target * math.log1p(math.exp(-x)) + (1 - target) * math.log1p(math.exp(x)) for x in logits.tolist()]
    )


# -- matching --------------------------------------------------------------------------------------------------------

MATCHING = {
    "cmpm": (cmpm_loss, slow_cmpm),
    "cmpm, epsilon": (partial(cmpm_loss, epsilon=1e-2), partial(slow_cmpm, epsilon=1e-2)),
    "sdm": (sdm_loss, slow_sdm),
    "sdm, warm": (partial(sdm_loss, temperature=0.5, epsilon=1e-2), partial(slow_sdm, temperature=0.5, epsilon=1e-2)),
    "infonce": (partial(infonce_loss, temperature=0.1), partial(slow_infonce, temperature=0.1)),
    "infonce, tensor": (partial(infonce_loss, temperature=torch.tensor(2.0)), partial(slow_infonce, temperature=2.0)),
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
    expected = slow(images.double().numpy(), texts.double().numpy(), labels.tolist())
    assert loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_targets_sum_to_one_in_rows_of_any_shape():
    # In a square batch, rows and columns have the same sums, which hides a division along the wrong axis.
    found = losses._targets(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.float64)
    expected = [[1, 0, 0, 0, 0, 0, 0], [0, 1 / 2, 1 / 2, 0, 0, 0, 0], [0, 0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4]]
    assert found.tolist() == expected


def test_cmpm_of_two_unit_vectors_by_hand():
    # Images (a, 0), (0, a), texts the axes, two identities; logits (a, 0) for images, (1, 0) for texts, and mirrored.
    # With epsilon = 0.5: q + eps = 1.5 on the diagonal, 0.5 off it.
    a = math.log(3.0)  # p = (3/4, 1/4)
    expected = 0.75 * math.log(0.75 / 1.5) + 0.25 * math.log(0.25 / 0.5)
    p = math.e / (math.e + 1)  # the text direction: logits 1 and 0
    expected += p * math.log(p / 1.5) + (1 - p) * math.log((1 - p) / 0.5)
    loss = cmpm_loss(a * torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), torch.arange(2), 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_infonce_and_triplet_by_hand():
    # Two pairs of orthogonal unit vectors: logits ln 3 and 0, p = 3/4 for the own pair, in both directions.
    axes, ids = torch.eye(2, dtype=torch.float64), torch.arange(2)
    assert infonce_loss(axes, 5 * axes, ids, 1 / math.log(3)).item() == pytest.approx(2 * math.log(4 / 3))
    # Cosine of the own pair 1, of the negative 0: nothing below a margin of 1, then 0.5 in each direction.
    assert triplet_loss(axes, axes, ids, margin=0.9).item() == 0
    assert triplet_loss(axes, axes, ids, margin=1.5).item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss", [cmpm_loss, sdm_loss])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]])
def test_perfect_match_is_zero(loss, labels):
    # Same identity: same direction, logit 60 or 1/0.02; other: orthogonal, logit 0. p is 1/k on each positive but for
    # e^-50. Targets divided by their L2 norm instead of their sum would give -ln k for k positives.
    rows = 60 * torch.eye(4, dtype=torch.float64)[labels]
    assert abs(loss(rows, rows, torch.tensor(labels)).item()) < 1e-6


def test_temperature_is_learned():
    images, texts, labels = embeddings(PATTERNS["pairs"])
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(infonce_loss, images, texts, labels), temperature)
    assert infonce_loss(images, texts, labels, temperature).requires_grad


# -- identification --------------------------------------------------------------------------------------------------


def classifier(classes: int = 6, dim: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(1.0, classes + 1, dtype=torch.float64)[:, None]
    weights = lengths * torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return weights.to(dtype), torch.randn(classes, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", ["one each", "pairs", "single pair"])
def test_norm_softmax_equals_the_equation(pattern, dtype):
    rows, _, labels = embeddings(PATTERNS[pattern], dtype=dtype)
    weights, bias = classifier(classes=9, dtype=dtype)  # of lengths 1 to 9
    expected = slow_norm_softmax(*(x.double().numpy() for x in (rows, weights, bias)), labels)
    loss = norm_softmax_loss(rows, weights, bias, labels)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    unit = weights / weights.norm(dim=1, keepdim=True)  # of unit length already: plain softmax is the same
    assert losses.softmax_loss(rows, unit, bias, labels).item() == pytest.approx(loss.item(), rel=TOLERANCE[dtype])
    assert losses.softmax_loss(rows, weights, bias, labels).item() != pytest.approx(loss.item(), rel=1e-3)


# -- adversarial -----------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([-0.7, 0.4, 1.1])  # B and B' may differ


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_adversarial_losses_equal_the_equations(dtype, smoothing):
    image, text = (x.to(dtype) for x in LOGITS)
    expected = slow_cross_entropy(image, 1 - smoothing) + slow_cross_entropy(text, 0.0)
    assert discriminator_loss(image, text, smoothing).item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    swapped = slow_cross_entropy(image, 0.0) + slow_cross_entropy(text, 1.0)
    assert encoder_adversarial_loss(image, text).item() == pytest.approx(swapped, rel=TOLERANCE[dtype])
    unsure = discriminator_loss(torch.zeros(3, dtype=dtype), torch.zeros(5, dtype=dtype), smoothing)
    assert unsure.item() == pytest.approx(2 * math.log(2))


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


@pytest.mark.parametrize("joint", [True, False], ids=["joint batch", "one modality at a time"])
def test_discriminator_separates_shifted_gaussians(joint):
    # With batch normalisation, one modality at a time has the same statistics as the other: the loss stays at 2 ln 2.
    torch.manual_seed(0)
    discriminator = ModalityDiscriminator(8, 16).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    for _ in range(60):  # unit spread, means 3 apart in every direction
        images, texts = torch.randn(128, 8) + 1.5, torch.randn(128, 8) - 1.5
        together = discriminator(torch.cat([images, texts])).split(128)
        loss = discriminator_loss(*(together if joint else (discriminator(images), discriminator(texts))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


# -- discrepancy -----------------------------------------------------------------------------------------------------


def slow_mmd(v, t) -> float:
    """Gretton et al., equation 5: means over all pairs within each set, and minus twice over the pairs across."""
    v, t = ([row / np.linalg.norm(row) for row in rows] for rows in (v, t))

    def mean(a, b) -> float:
        return np.mean([math.exp(-g * (x - y) @ (x - y)) for x in a for y in b for g in (0.5, 2, 8)])

    return mean(v, v) + mean(t, t) - 2 * mean(v, t)


def slow_coral(v, t) -> float:
    v, t = (np.stack([row / np.linalg.norm(row) for row in rows]) for rows in (v, t))
    return float(((np.cov(v.T, bias=True) - np.cov(t.T, bias=True)) ** 2).sum())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("fast", "slow"), [(mmd_loss, slow_mmd), (coral_loss, slow_coral)])
def test_discrepancies_equal_the_definitions(fast, slow, dtype):
    images, texts, _ = embeddings(PATTERNS["uneven, mixed"], dtype=dtype)
    for v, t in ((images, texts), (texts[:3], images), (images[:1], texts)):  # the sets may differ in size
        loss = fast(v, t)
        assert (loss.dtype, loss.shape) == (dtype, ())
        assert loss.item() == pytest.approx(slow(v.double().numpy(), t.double().numpy()), rel=10 * TOLERANCE[dtype])
        torch.testing.assert_close(fast(t, v), loss)
        assert fast(v, 3 * v.flip(0)).item() == pytest.approx(0, abs=TOLERANCE[dtype])  # one set in another order


def test_discrepancies_by_hand():
    # Images on one axis, texts on the other: squared distance 0 within, 2 across. No spread, so no covariance.
    axes = torch.eye(2, dtype=torch.float64)
    images, texts = axes[[0, 0]], axes[[1, 1, 1]]
    across = (math.exp(-1) + math.exp(-4) + math.exp(-16)) / 3
    assert mmd_loss(images, texts).item() == pytest.approx(2 - 2 * across)
    assert coral_loss(images, texts).item() == 0
    # x and -x: variance 1 along x, in images only. Its square is the greatest value.
    assert coral_loss(torch.stack([axes[0], -axes[0]]), texts).item() == pytest.approx(1)


# -- all of them -----------------------------------------------------------------------------------------------------

CALLS = {
    "cmpm": lambda v, t, weights, bias, labels: cmpm_loss(v, t, labels),
    "sdm": lambda v, t, weights, bias, labels: sdm_loss(v, t, labels),
    "infonce": lambda v, t, weights, bias, labels: infonce_loss(v, t, labels, 0.07),
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


def ids(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


zeros = torch.zeros
WRONG_BATCHES = [
    ((zeros(3, 4), zeros(2, 4), ids(3)), ["(3, 4)", "(2, 4)"]),
    ((zeros(3, 4), zeros(3, 5), ids(3)), ["(3, 4)", "(3, 5)"]),
    ((zeros(3, 4), zeros(3, 4), ids(2)), ["(3,)", "(2,)"]),
    ((zeros(3, 4), zeros(3, 4), zeros(3, 1)), ["(3,)", "(3, 1)"]),
    ((zeros(3), zeros(3), ids(3)), ["(B, D)", "(3,)"]),
    ((zeros(0, 4), zeros(0, 4), ids(0)), ["empty"]),
]
PAIR = zeros(3, 4), zeros(3, 4), ids(3)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        *((partial(loss, *batch), found) for loss in (cmpm_loss, triplet_loss) for batch, found in WRONG_BATCHES),
        (partial(sdm_loss, *PAIR, temperature=0.0), ["temperature = 0.0"]),
        (partial(infonce_loss, *PAIR, temperature=-1), ["temperature = -1"]),
        (partial(infonce_loss, *PAIR, temperature=zeros(3)), ["temperature (3,)"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 5), zeros(6), ids(3)), ["(6, 5)", "(3, 4)"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 4), zeros(5), ids(3)), ["(5,)", "(6, 4)"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 4), zeros(6), ids(2)), ["(3,)", "(2,)"]),
        (lambda: norm_softmax_loss(zeros(0, 4), zeros(6, 4), zeros(6), ids(0)), ["empty"]),
        (lambda: norm_softmax_loss(zeros(2, 4), zeros(6, 4), zeros(6), torch.tensor([0, 6])), ["0 to 5", "0 to 6"]),
        (lambda: norm_softmax_loss(zeros(2, 4), zeros(6, 4), zeros(6), torch.tensor([-1, 5])), ["0 to 5", "-1 to 5"]),
        (lambda: discriminator_loss(zeros(0), zeros(3)), ["empty"]),
        *((partial(discriminator_loss, *LOGITS, s), ["label_smoothing"]) for s in (-0.1, 0.5, float("nan"))),
        (lambda: encoder_adversarial_loss(zeros(3), zeros(0)), ["empty"]),
        (lambda: mmd_loss(zeros(3, 4), zeros(2, 5)), ["(3, 4)", "(2, 5)"]),
        (lambda: coral_loss(zeros(3, 4), zeros(0, 4)), ["empty"]),
        (lambda: coral_loss(zeros(3), zeros(3, 1)), ["(3,)"]),
    ],
)
def test_wrong_input_is_an_error_that_names_what_was_found(call, found):
    with pytest.raises(ValueError, match=r"expected|empty") as error:
        call()
    assert [text for text in found if text not in str(error.value)] == []
