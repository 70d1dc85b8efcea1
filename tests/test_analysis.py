"""Intervals by coverage, the gap on known distributions, warnings of made-up epochs."""

import numpy as np
import pytest

from timam.collapse import training_warnings
from timam.gap import modality_gap
from timam.metrics import bootstrap_interval


def clustered(generator: np.random.Generator, identities: int = 40, per_identity: int = 6):
    """Results whose mean is 0, with as much variance between identities as within: not independent."""
    sizes = generator.integers(1, 2 * per_identity, identities)
    identity = np.repeat(np.arange(identities), sizes)
    return generator.normal(size=identities)[identity] + generator.normal(size=len(identity)), identity


def coverage(repetitions: int, confidence: float, single_queries: bool = False) -> float:
    generator = np.random.default_rng(0)
    hits = 0
    for repetition in range(repetitions):
        values, identity = clustered(generator)
        groups = np.arange(len(values)) if single_queries else identity
        low, high = bootstrap_interval(values, groups, confidence, resamples=200, seed=repetition)
        hits += low <= 0 <= high
    return hits / repetitions


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_interval_covers_as_often_as_it_says(confidence):
    # 200 repetitions: three standard errors are 0.11 at 0.5 and 0.05 at 0.95; a percentile interval of 40 identities
    # is itself a few percent short.
    slack = 3 * np.sqrt(confidence * (1 - confidence) / 200) + 0.04
    assert coverage(200, confidence) == pytest.approx(confidence, abs=slack)


def test_resampling_single_queries_would_cover_too_seldom():
    assert coverage(100, 0.95, single_queries=True) < 0.8


def test_interval_of_clustered_results_is_wider():
    values, identity = clustered(np.random.default_rng(1))
    low, high = bootstrap_interval(values, identity)
    single_low, single_high = bootstrap_interval(values, np.arange(len(values)))
    assert high - low > 1.5 * (single_high - single_low)


def test_interval_is_of_the_mean_over_queries():
    # Identity 0 has one query of value 1, identity 1 three of value 0. Resamples: (0,0): 1, (0,1) and (1,0): 1/4,
    # (1,1): 0, so the middle half, from the quartiles, is [0.25 or less, 0.25 or more]; a mean of identities' means
    # would give 0.5.
    values, identity = np.array([1.0, 0, 0, 0]), np.array([7, 3, 3, 3])
    assert bootstrap_interval(values, identity, confidence=0.3) == pytest.approx((0.25, 0.25))
    assert bootstrap_interval(values, identity, confidence=0.95) == pytest.approx((0.0, 1.0))


def test_interval_contains_the_mean_and_repeats():
    values, identity = clustered(np.random.default_rng(2))
    low, high = bootstrap_interval(values, identity, seed=3)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values, identity, seed=3)
    assert (low, high) != bootstrap_interval(values, identity, seed=4)


def test_constant_results_give_a_point():
    assert bootstrap_interval(np.ones(6), np.arange(6)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "identities", "message"),
    [(np.ones(3), np.ones(2), r"\(3,\).*\(2,\)"), (np.ones(3), np.zeros(3), "one identity")],
)
def test_interval_of_wrong_input(values, identities, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, identities)


# -- modality gap ----------------------------------------------------------------------------------------------------


def two_modalities(shift: float, count: int = 300, dim: int = 8, identities: int = 60, seed: int = 0):
    """Images and texts around a common direction, `shift` standard deviations apart on one axis."""
    generator = np.random.default_rng(seed)
    images, texts = generator.normal(size=(2, count, dim))
    images[:, 0] += 20  # far from the origin, so that unit length hardly changes the spread
    texts[:, 0] += 20
    images[:, 1] += shift
    labels = np.arange(count) % identities
    return images, texts, labels, labels


def test_same_distribution_has_no_gap():
    gap = modality_gap(*two_modalities(shift=0.0))
    # 600 samples: the standard error of an accuracy of 0.5 is 0.02. Unit spread over 20: the means are
    # sqrt(8 x 2 / 300) / 20 = 0.012 apart.
    assert gap["probe_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert gap["centroid_distance"] < 0.02


def test_shifted_distribution_is_told_apart():
    gap = modality_gap(*two_modalities(shift=6.0))
    assert gap["probe_accuracy"] > 0.98  # 3 standard deviations from the middle on either side: 0.9987
    assert gap["centroid_distance"] == pytest.approx(6 / 20, abs=0.03)


def test_probe_accuracy_of_three_standard_deviations():
    # The best rule cuts in the middle, 1.5 standard deviations from either mean: 0.933.
    assert modality_gap(*two_modalities(shift=3.0))["probe_accuracy"] == pytest.approx(0.933, abs=0.04)


def test_centroid_distance_by_hand():
    # Directions at 0 and 60 degrees for images, 180 and 120 for texts, of any length: means (3/4, s) and (-3/4, s).
    angles = np.deg2rad([0.0, 60.0, 180.0, 120.0])
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lengths = np.array([1.0, 7.0, 0.2, 3.0])[:, None]
    rows = (lengths * unit).repeat(3, axis=0)
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert modality_gap(rows[:6], rows[6:], labels, labels)["centroid_distance"] == pytest.approx(1.5, rel=1e-12)


def memorised_identities(seed: int) -> float:
    """The probe's accuracy where each identity has its own place and only one modality, drawn by lot."""
    generator = np.random.default_rng(seed)
    places = generator.normal(size=(60, 80))  # more dimensions than identities: any labelling of them is linear
    labels = np.repeat(np.arange(60), 5)
    rows = places[labels] + 0.01 * generator.normal(size=(300, 80))
    order = generator.permutation(len(rows))  # in order of identity, even folds without groups would part them
    rows, labels = rows[order], labels[order]
    image = generator.permutation(60)[labels] < 30
    return modality_gap(rows[image], rows[~image], labels[image], labels[~image])["probe_accuracy"]


def test_probe_that_memorises_identities_gets_no_credit():
    # Modality is a function of the identity and says nothing about unseen ones: without groups the accuracy is 1.0.
    # The standard error is that of 8 x 60 coin tosses, 0.023.
    assert np.mean([memorised_identities(seed) for seed in range(8)]) == pytest.approx(0.5, abs=0.09)


def test_unequal_numbers_of_images_and_texts_do_not_raise_the_accuracy():
    images, texts, labels, _ = two_modalities(shift=0.0)
    few = slice(0, 60)
    assert modality_gap(images[few], texts, labels[few], labels)["probe_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_spread_alone_is_seen_by_the_kernel_probe_only():
    # Same mean, but pictures spread along the first three axes and captions along the others: no plane parts them.
    images, texts = np.random.default_rng(0).normal(size=(2, 400, 6))
    images[:, 3:] *= 0.2
    texts[:, :3] *= 0.2
    labels = np.arange(400) % 80
    gap = modality_gap(images, texts, labels, labels, nonlinear=True)
    assert gap["probe_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert gap["nonlinear_probe_accuracy"] > 0.9
    assert gap["centroid_distance"] < 0.1


def test_mmd_and_uniformity_by_brute_force():
    images, texts, labels, _ = two_modalities(shift=6.0, count=40, identities=10)
    found = modality_gap(images, texts, labels, labels)
    x, y = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (images, texts))

    def mean_kernel(a, b, same):
        values = [np.exp(-2 * ((a[i] - b[j]) ** 2).sum()) for i in range(40) for j in range(40) if not same or i != j]
        return np.mean(values)

    xx, yy, xy = mean_kernel(x, x, True), mean_kernel(y, y, True), mean_kernel(x, y, False)
    assert found["mmd_squared"] == pytest.approx(xx + yy - 2 * xy, rel=1e-9)
    assert found["image_uniformity"] == pytest.approx(np.log(xx), rel=1e-9)
    assert found["text_uniformity"] == pytest.approx(np.log(yy), rel=1e-9)
    pairs = [((x[i] - y[j]) ** 2).sum() for i in range(40) for j in range(40) if labels[i] == labels[j]]
    assert found["alignment"] == pytest.approx(np.mean(pairs), rel=1e-9)


def test_mmd_of_one_distribution_is_zero_on_average():
    # Unbiased: the biased form, diagonal included, is about 2 / 300 too high.
    values = [modality_gap(*two_modalities(0.0, seed=s), neighbours=1)["mmd_squared"] for s in range(12)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert np.min(values) < 0


def test_orthogonal_embeddings_are_uniform_and_coinciding_ones_aligned():
    basis, labels = np.eye(12), np.arange(12)
    found = modality_gap(3 * basis, basis, labels, labels, neighbours=1)
    assert found["image_uniformity"] == found["text_uniformity"] == pytest.approx(-4)  # |x - y|^2 = 2 for every pair
    assert found["alignment"] == pytest.approx(0)
    assert found["cross_modal_neighbours"] == pytest.approx(23 / 12)  # the nearest is always of the other modality
    assert modality_gap(basis, -basis, labels, labels)["alignment"] == pytest.approx(4)


def test_cross_modal_neighbours_of_mixed_and_of_parted_modalities():
    assert modality_gap(*two_modalities(0.0))["cross_modal_neighbours"] == pytest.approx(1, abs=0.05)
    assert modality_gap(*two_modalities(40.0))["cross_modal_neighbours"] == 0
    images, texts, labels, _ = two_modalities(0.0)
    few = modality_gap(images[:60], texts, labels[:60], labels)  # a share of 1/6 is what mixing gives the texts
    assert few["cross_modal_neighbours"] == pytest.approx(1, abs=0.12)


def test_intervals_of_the_gap_contain_it_and_widen_with_fewer_identities():
    images, texts, labels, _ = two_modalities(shift=2.0)
    many = modality_gap(images, texts, labels, labels, resamples=200)
    few = modality_gap(images[labels < 10], texts[labels < 10], labels[labels < 10], labels[labels < 10], resamples=200)
    measures = ("centroid_distance", "probe_accuracy", "mmd_squared", "cross_modal_neighbours", "alignment",
                "image_uniformity", "text_uniformity")  # fmt: skip
    for name in measures:
        assert many[f"{name}_low"] <= many[name] <= many[f"{name}_high"]
        assert few[f"{name}_high"] - few[f"{name}_low"] > 1.3 * (many[f"{name}_high"] - many[f"{name}_low"])


def test_intervals_of_uniformity_do_not_count_copies_of_a_person_as_pairs():
    # Persons far apart, each with near-identical pictures: weights of c^2 on those pairs would shift the interval up.
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 40
    rows = generator.normal(size=(40, 30))[labels] + 0.05 * generator.normal(size=(2, 240, 30))
    found = modality_gap(*rows, labels, labels, resamples=300)
    for name in ("image_uniformity", "text_uniformity"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low < found[name] < high
        assert abs((low + high) / 2 - found[name]) < 0.25 * (high - low)


def test_large_splits_are_measured_on_whole_identities():
    images, texts, labels, _ = two_modalities(shift=6.0)
    found = modality_gap(images, texts, labels, labels, limit=100)
    assert found["probe_accuracy"] > 0.95
    assert found["centroid_distance"] == pytest.approx(6 / 20, abs=0.05)
    assert found != modality_gap(images, texts, labels, labels)


def test_alignment_needs_an_identity_of_both_modalities():
    found = modality_gap(np.eye(4), np.eye(4), np.array([0, 0, 1, 1]), np.array([2, 2, 3, 3]), neighbours=1)
    assert np.isnan(found["alignment"])
    assert np.isfinite(found["mmd_squared"])


def test_each_modality_counts_half_in_the_accuracy():
    # 40 images at 0 degrees; of 400 texts one half there too, the other at 90 degrees. The balanced rule takes the
    # first place for images: right for all images and half the texts, 0.75; plain accuracy would be 0.55.
    angles = np.repeat([0.0, 0.0, 90.0], [40, 200, 200]) + np.random.default_rng(0).normal(size=440)
    rows = np.stack([np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))], axis=1)
    gap = modality_gap(rows[:40], rows[40:], np.arange(40) % 10, np.arange(400) % 10)
    assert gap["probe_accuracy"] == pytest.approx(0.75, abs=0.08)


def test_gap_needs_two_identities():
    rows = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="2"):
        modality_gap(rows, rows, np.zeros(4), np.zeros(4))


# -- what has collapsed -----------------------------------------------------------------------------------------

# An epoch of the quick preset as it was measured: reports/quick/figures/02_curves.csv, epoch 5; norms assumed.
HEALTHY = {
    "adversarial": 1.48, "discriminator_accuracy": 0.456, "val_image_uniformity": -2.88, "val_text_uniformity": -2.89,
    "val_image_norm": 20.0, "val_text_norm": 10.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"val_image_uniformity": -0.01}, ["all image embeddings are nearly alike"]),
        ({"val_text_uniformity": 0.0}, ["all text embeddings are nearly alike"]),
        ({"val_text_uniformity": -0.0625}, []),  # as a tiny model with random weights begins
        ({"val_image_norm": 300.0}, ["image embeddings have exploded"]),
        ({"val_text_norm": 1e9}, ["text embeddings have exploded"]),
        ({"discriminator_accuracy": 1.0}, ["the discriminator tells every embedding"]),
        ({"discriminator_accuracy": 0.0}, ["the discriminator is wrong on every embedding"]),
        ({"discriminator_accuracy": 0.042}, []),
        ({"discriminator_accuracy": 1.0, "adversarial": 0.0}, []),  # it only watches
        (
            {"val_image_uniformity": 0.0, "val_image_norm": 1e3, "discriminator_accuracy": 0.0},
            ["all image", "image embeddings have exploded", "the discriminator is wrong"],
        ),
        ({"val_image_uniformity": float("nan"), "val_text_uniformity": float("nan")}, []),
    ],
)
def test_warnings_of_a_row(change, expected):
    found = training_warnings({**HEALTHY, **change})
    assert len(found) == len(expected)
    for warning, beginning in zip(found, expected, strict=True):
        assert warning.startswith(beginning)
        assert "What usually helps: " in warning


def test_alike_embeddings_are_those_with_a_mean_cosine_above_099():
    """The threshold on the uniformity is what its reason says."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(64)
    for cosine, warned in ((0.98, False), (0.995, True)):
        noise = rng.standard_normal((200, 64)) * np.linalg.norm(direction) / 8 * np.sqrt(1 / cosine - 1)
        vectors = direction + noise
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert (unit @ unit.T)[~np.eye(200, dtype=bool)].mean() == pytest.approx(cosine, abs=2e-3)
        measured = modality_gap(vectors, rng.standard_normal((200, 64)), np.arange(200) % 9, np.arange(200) % 9)
        row = {f"val_{name}": value for name, value in measured.items()}
        assert bool(training_warnings(row)) == warned
