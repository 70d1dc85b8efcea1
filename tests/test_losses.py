"""Losses against slow references written from the papers' equations, their gradients, bounds and symmetries."""

import itertools
import math

import pytest
import torch
from torch import nn

from timam import losses
from timam.losses import (
    cmpm_loss,
    discriminator_loss,
    encoder_adversarial_loss,
    gradient_penalty,
    norm_softmax_loss,
)
from timam.models import ModalityDiscriminator

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative
EPSILON = 1e-8

# Identity labels of a batch; the comment says how many positives the rows have.
PATTERNS = {
    "one each": [0, 1, 2, 3, 4, 5],  # 1
    "pairs": [3, 3, 7, 7, 1, 1],  # 2
    "uneven": [0, 1, 1, 2, 2, 2, 3, 3, 3, 3],  # 1 to 4
    "uneven, mixed": [5, 2, 9, 5, 2, 5, 2, 7, 9, 2],  # 3, 4, 2, 1
    "one identity": [4, 4, 4, 4],  # every pair
    "single pair": [8],
}


def embeddings(labels: list[int], dim: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * 3
    texts = torch.randn(len(labels), dim, generator=generator, dtype=torch.float64) * 3
    return images.to(dtype), texts.to(dtype), torch.tensor(labels)


# -- slow references: Python floats, one loop for each index of the equations ----------------------------------------


def slow_norm(row: list[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in row))


def slow_dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def slow_log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    log_total = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - log_total for x in logits]


def slow_direction(source: list[list[float]], target: list[list[float]], labels: list[int], epsilon: float) -> float:
    """Zhang and Lu, equations 1 to 4: mean_i sum_j p_ij log(p_ij / (q_ij + epsilon))."""
    rows = []
    for i in range(len(source)):
        logits = [slow_dot(source[i], target[j]) / slow_norm(target[j]) for j in range(len(target))]
        log_p = slow_log_softmax(logits)
        positives = sum(labels[k] == labels[i] for k in range(len(labels)))
        terms = []
        for j in range(len(target)):
            q = (1 / positives) if labels[j] == labels[i] else 0.0
            terms.append(math.exp(log_p[j]) * (log_p[j] - math.log(q + epsilon)))
        rows.append(math.fsum(terms))
    return math.fsum(rows) / len(rows)


def slow_cmpm(images: torch.Tensor, texts: torch.Tensor, labels: torch.Tensor, epsilon: float = EPSILON) -> float:
    v, t, y = images.double().tolist(), texts.double().tolist(), labels.tolist()
    return slow_direction(v, t, y, epsilon) + slow_direction(t, v, y, epsilon)


def slow_norm_softmax(rows: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> float:
    """Equation 7: mean of -log softmax(W x / ||W_c|| + b)[label]."""
    total = []
    for x, label in zip(rows.double().tolist(), labels.tolist(), strict=True):
        logits = [
            slow_dot(w, x) / slow_norm(w) + b
            for w, b in zip(weights.double().tolist(), bias.double().tolist(), strict=True)
        ]
        total.append(-slow_log_softmax(logits)[label])
    return math.fsum(total) / len(total)


def slow_cross_entropy(logits: torch.Tensor, target: float) -> float:
    """Mean of -target log D - (1 - target) log(1 - D), with log D = -log(1 + exp(-logit))."""
    terms = [
        target * math.log1p(math.exp(-x)) + (1 - target) * math.log1p(math.exp(x)) for x in logits.double().tolist()
    ]
    return math.fsum(terms) / len(terms)


# -- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_cmpm_equals_the_equations(pattern, dtype, epsilon):
    images, texts, labels = embeddings(PATTERNS[pattern], dtype=dtype)
    loss = cmpm_loss(images, texts, labels, epsilon=epsilon)
    assert loss.dtype == dtype
    assert loss.shape == ()
    tolerance = TOLERANCE[dtype]  # absolute below 1: the terms of the sum are of that size
    assert loss.item() == pytest.approx(slow_cmpm(images, texts, labels, epsilon), rel=tolerance, abs=tolerance)


def test_rows_of_the_target_sum_to_one_whatever_the_columns_do():
    # Of one batch, rows and columns of Y have the same sums, which hides a division along the wrong axis. Here three
    # sources meet five targets, with 1, 2 and 4 positives; all of length 0, so that p = 1/5 and
    # the loss is the mean over rows of -ln 5 - (k ln(1/k + eps) + (5 - k) ln eps) / 5.
    same = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]], dtype=torch.float64)
    found = losses._projection_matching(torch.zeros(3, 2).double(), torch.ones(5, 2).double(), same, 0.1)
    rows = [-math.log(5) - (k * math.log(1 / k + 0.1) + (5 - k) * math.log(0.1)) / 5 for k in (1, 2, 4)]
    assert found.item() == pytest.approx(math.fsum(rows) / 3, rel=1e-12)


def test_cmpm_of_two_unit_vectors_by_hand():
    # Images (a, 0), (0, a), texts the axes, two identities: row i of both directions has the logits (a, 0) and (0, a)
    # for images, (1, 0) and (0, 1) for texts. With epsilon = 0.5: q + eps = 1.5 on the diagonal, 0.5 off it.
    a = math.log(3.0)  # p = (3/4, 1/4)
    expected = 0.75 * math.log(0.75 / 1.5) + 0.25 * math.log(0.25 / 0.5)
    p = math.e / (math.e + 1)  # the text direction: logits 1 and 0
    expected += p * math.log(p / 1.5) + (1 - p) * math.log((1 - p) / 0.5)
    loss = cmpm_loss(a * torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), torch.arange(2), 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("positives", [1, 2, 4])
def test_perfect_match_is_zero(positives):
    # Same identity: same direction, logit 60; other: orthogonal, logit 0. p is then 1/k on each positive up to e^-60.
    # Targets divided by their L2 norm instead of their sum would give -ln k: 0, -0.693, -1.386 over both directions.
    labels = torch.arange(4).repeat_interleave(positives)
    rows = 60 * torch.eye(4, dtype=torch.float64)[labels]
    assert abs(cmpm_loss(rows, rows, labels).item()) < 1e-6


def test_perfect_match_is_zero_with_uneven_positives():
    labels = torch.tensor(PATTERNS["uneven"])
    rows = 60 * torch.eye(4, dtype=torch.float64)[labels]
    assert abs(cmpm_loss(rows, rows, labels).item()) < 1e-6


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cmpm_is_bounded_below(pattern):
    labels = PATTERNS[pattern]
    bound = -2 * math.log(1 + len(labels) * EPSILON)  # Gibbs' inequality: q + epsilon sums to 1 + B epsilon
    for seed, scale in itertools.product(range(10), (1e-3, 1.0, 30.0)):
        images, texts, identity_labels = embeddings(labels, seed=seed)
        assert cmpm_loss(scale * images, scale * texts, identity_labels).item() >= bound - 1e-12


def test_swapping_the_modalities_changes_nothing():
    images, texts, labels = embeddings(PATTERNS["uneven, mixed"])
    assert cmpm_loss(images, texts, labels).item() == pytest.approx(cmpm_loss(texts, images, labels).item(), rel=1e-12)


def test_only_the_target_is_normalised():
    images, texts, labels = embeddings(PATTERNS["uneven"])
    assert cmpm_loss(2 * images, texts, labels).item() != pytest.approx(cmpm_loss(images, texts, labels).item(), 1e-3)


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
    weights, bias = classifier(classes=9, dtype=dtype)
    loss = norm_softmax_loss(rows, weights, bias, labels)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(slow_norm_softmax(rows, weights, bias, labels), rel=TOLERANCE[dtype])


def test_norm_softmax_ignores_the_length_of_the_weights_only():
    rows, _, labels = embeddings(PATTERNS["one each"])
    weights, bias = classifier()
    loss = norm_softmax_loss(rows, weights, bias, labels)
    lengths = torch.tensor([0.01, 0.5, 1.0, 2.0, 30.0, 1e4], dtype=torch.float64)[:, None]
    torch.testing.assert_close(norm_softmax_loss(rows, lengths * weights, bias, labels), loss, rtol=1e-12, atol=0)
    assert norm_softmax_loss(2 * rows, weights, bias, labels).item() != pytest.approx(loss.item(), rel=1e-3)


def test_bias_enters_the_logits():
    # Embeddings of zero leave the bias alone: -log softmax((ln 3, 0, 0))[0] = -ln(3/5).
    bias = torch.tensor([math.log(3.0), 0.0, 0.0], dtype=torch.float64)
    loss = norm_softmax_loss(torch.zeros(2, 4).double(), torch.ones(3, 4).double(), bias, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(-math.log(3 / 5), rel=1e-12)


# -- adversarial -----------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.0]), torch.tensor([-0.7, 0.4, 1.1])  # B and B' may differ


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_discriminator_loss_equals_the_equation(dtype, smoothing):
    image, text = (x.to(dtype) for x in LOGITS)
    expected = slow_cross_entropy(image, 1 - smoothing) + slow_cross_entropy(text, 0.0)
    assert discriminator_loss(image, text, smoothing).item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_discriminator_that_cannot_tell_costs_two_ln_two(smoothing):
    assert discriminator_loss(torch.zeros(3), torch.zeros(5), smoothing).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("smoothing", [0.1, 0.25])
def test_label_smoothing_is_one_sided(smoothing):
    # Images: the minimum is at the logit whose sigmoid is 1 - smoothing, and its value is that target's entropy.
    best = torch.tensor([math.log((1 - smoothing) / smoothing)], dtype=torch.float64, requires_grad=True)
    text = torch.tensor([-40.0], dtype=torch.float64, requires_grad=True)
    loss = discriminator_loss(best, text, smoothing)
    loss.backward()
    assert abs(best.grad.item()) < 1e-12
    assert loss.item() == pytest.approx(
        -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing), rel=1e-12
    )
    # Texts: the target is 0, so the loss still falls at any logit.
    assert text.grad.item() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_discriminator_loss_is_bounded_below(smoothing):
    # A target above 1 would fall without bound in the logit of an image.
    for image, text in itertools.product((-1e4, -30.0, 0.0, 30.0, 1e4), repeat=2):
        assert discriminator_loss(torch.tensor([image]), torch.tensor([text]), smoothing).item() >= 0
    far = discriminator_loss(torch.tensor([1e4]), torch.tensor([-1e4]), smoothing).item()
    assert far == pytest.approx(smoothing * 1e4, rel=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, float("nan")])
def test_label_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        discriminator_loss(*LOGITS, label_smoothing=smoothing)


def test_encoders_want_the_opposite_labels():
    image, text = (x.double() for x in LOGITS)
    flipped = discriminator_loss(text, image)  # the discriminator's loss if texts were the images
    torch.testing.assert_close(encoder_adversarial_loss(image, text), flipped, rtol=1e-14, atol=0)
    assert encoder_adversarial_loss(image, text).item() == pytest.approx(
        slow_cross_entropy(image, 0.0) + slow_cross_entropy(text, 1.0), rel=1e-12
    )


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


@pytest.mark.parametrize("form", ["flipped labels", "gradient reversal"])
def test_the_penalty_lets_a_game_of_shifts_settle(form):
    """Two points on a line and a linear discriminator (Mescheder et al., ICML 2018, section 2): where the points can
    meet, they go round each other for ever; with the penalty they meet. The known answer is a distance of 0."""

    def distance_after(weight: float, steps: int = 3000, rate: float = 0.02) -> float:
        apart = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        slope = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        for _ in range(steps):
            image = (apart / 2).detach().reshape(1, 1).requires_grad_()
            text = (-apart / 2).detach().reshape(1, 1).requires_grad_()
            logits = [(side * slope).squeeze(1) for side in (image, text)]
            loss = discriminator_loss(*logits)
            penalty = gradient_penalty(logits[0], image) + gradient_penalty(logits[1], text)
            loss = loss + weight / 2 * penalty
            (down,) = torch.autograd.grad(loss, slope)
            slope = (slope - rate * down).detach().requires_grad_()
            logits = [apart / 2 * slope.detach(), -apart / 2 * slope.detach()]
            encoders = encoder_adversarial_loss(*logits) if form == "flipped labels" else -discriminator_loss(*logits)
            (away,) = torch.autograd.grad(encoders, apart)
            apart = (apart - rate * away).detach().requires_grad_()
        return math.hypot(apart.item(), slope.item())  # 0 where they have met and nothing pulls any more

    assert distance_after(1.0) < 1e-3
    assert distance_after(0.0) > 0.3


def gaussians(seed: int, count: int = 128, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Two modalities of unit spread whose means are 3 apart in every direction."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, dim, generator=generator)
    return both[0] + 1.5, both[1] - 1.5


def trained_discriminator(joint: bool, steps: int = 60) -> ModalityDiscriminator:
    torch.manual_seed(0)
    discriminator = ModalityDiscriminator(8, 16).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    for step in range(steps):
        images, texts = gaussians(step)
        if joint:
            image_logits, text_logits = discriminator(torch.cat([images, texts])).split(len(images))
        else:
            image_logits, text_logits = discriminator(images), discriminator(texts)
        optimizer.zero_grad()
        discriminator_loss(image_logits, text_logits).backward()
        optimizer.step()
    return discriminator


@pytest.mark.parametrize("joint", [True, False], ids=["joint batch", "one modality at a time"])
def test_discriminator_separates_shifted_gaussians(joint):
    # With batch normalisation, one modality at a time has the same statistics as the other: the loss stays at 2 ln 2.
    discriminator = trained_discriminator(joint)
    images, texts = gaussians(1000)
    assert discriminator_loss(discriminator(images), discriminator(texts)).item() < 0.05


def test_encoder_step_makes_the_discriminator_worse():
    discriminator = trained_discriminator(joint=True).requires_grad_(False)
    images, texts = gaussians(1001)
    encoder = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    for layer in encoder:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05)

    def accuracy() -> float:
        right = (discriminator(encoder[0](images)) > 0).sum() + (discriminator(encoder[1](texts)) < 0).sum()
        return right.item() / (len(images) + len(texts))

    before = accuracy()
    for _ in range(20):
        optimizer.zero_grad()
        encoder_adversarial_loss(discriminator(encoder[0](images)), discriminator(encoder[1](texts))).backward()
        optimizer.step()
    assert before > 0.99
    assert accuracy() < 0.6


# -- all of them -----------------------------------------------------------------------------------------------------


def cmpm_call(images, texts, weights, bias, labels):
    return cmpm_loss(images, texts, labels)


def norm_softmax_call(images, texts, weights, bias, labels):
    return norm_softmax_loss(images, weights, bias, labels)


def discriminator_call(images, texts, weights, bias, labels):
    return discriminator_loss(images[:, 0], texts[:, 0], 0.1)


def encoder_call(images, texts, weights, bias, labels):
    return encoder_adversarial_loss(images[:, 0], texts[:, 0])


CALLS = [cmpm_call, norm_softmax_call, discriminator_call, encoder_call]
every_loss = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)


@every_loss
def test_gradients(call):
    images, texts, labels = embeddings([0, 1, 1, 2, 2, 2], dim=3)
    weights, bias = classifier(dim=3)
    inputs = [x.requires_grad_() for x in (images / 3, texts / 3, weights, bias)]
    assert torch.autograd.gradcheck(lambda *x: call(*x, labels), inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_low_precision_is_computed_in_float32(call, dtype, autocast):
    images, texts, labels = embeddings(PATTERNS["uneven"], dtype=dtype)
    inputs = (4 * images, 4 * texts, *classifier(dtype=dtype))
    exact = call(*(x.float() for x in inputs), labels)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = call(*inputs, labels)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert loss.item() == exact.item()


@every_loss
def test_autocast_does_not_lower_float32(call):
    images, texts, labels = embeddings(PATTERNS["uneven"], dtype=torch.float32)
    inputs = (images, texts, *classifier(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = call(*inputs, labels)
    assert loss.item() == call(*inputs, labels).item()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_extreme_inputs_give_finite_values_and_gradients(call, dtype, size):
    images, texts, labels = embeddings(PATTERNS["uneven"], dtype=torch.float64)
    weights, bias = classifier()
    unit = [size * x / x.norm(dim=-1, keepdim=True) for x in (images, texts, weights)]
    inputs = [x.to(dtype).requires_grad_() for x in (*unit, bias)]
    loss = call(*inputs, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is None or torch.isfinite(x.grad.float()).all() for x in inputs)


@every_loss
def test_order_of_the_batch_is_irrelevant(call):
    images, texts, labels = embeddings([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    weights, bias = classifier()
    shuffled = call(images[order], texts[order], weights, bias, labels[order])
    torch.testing.assert_close(shuffled, call(images, texts, weights, bias, labels), rtol=1e-12, atol=1e-14)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


def ids(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: cmpm_loss(zeros(3, 4), zeros(2, 4), ids(3)), ["(3, 4)", "(2, 4)"]),
        (lambda: cmpm_loss(zeros(3, 4), zeros(3, 5), ids(3)), ["(3, 4)", "(3, 5)"]),
        (lambda: cmpm_loss(zeros(3, 4), zeros(3, 4), ids(2)), ["(3,)", "(2,)"]),
        (lambda: cmpm_loss(zeros(3, 4), zeros(3, 4), zeros(3, 1)), ["(3,)", "(3, 1)"]),
        (lambda: cmpm_loss(zeros(3), zeros(3), ids(3)), ["(B, D)", "(3,)"]),
        (lambda: cmpm_loss(zeros(0, 4), zeros(0, 4), ids(0)), ["empty"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 5), zeros(6), ids(3)), ["(6, 5)", "(3, 4)"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 4), zeros(5), ids(3)), ["(5,)", "(6,)"]),
        (lambda: norm_softmax_loss(zeros(3, 4), zeros(6, 4), zeros(6), ids(2)), ["(3,)", "(2,)"]),
        (lambda: norm_softmax_loss(zeros(0, 4), zeros(6, 4), zeros(6), ids(0)), ["empty"]),
        (lambda: norm_softmax_loss(zeros(2, 4), zeros(6, 4), zeros(6), torch.tensor([0, 6])), ["0 to 5", "0 to 6"]),
        (lambda: norm_softmax_loss(zeros(2, 4), zeros(6, 4), zeros(6), torch.tensor([-1, 5])), ["0 to 5", "-1 to 5"]),
        (lambda: discriminator_loss(zeros(0), zeros(3)), ["empty"]),
        (lambda: encoder_adversarial_loss(zeros(3), zeros(0)), ["empty"]),
    ],
)  # fmt: skip
def test_wrong_input_is_an_error_that_names_what_was_found(call, found):
    with pytest.raises(ValueError, match=r"expected|empty") as error:
        call()
    assert [text for text in found if text not in str(error.value)] == []
