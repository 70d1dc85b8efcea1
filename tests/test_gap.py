"""The modality gap on known distributions and against brute force; warnings of made-up epochs."""

import numpy as np
import pytest

from timam import gap
from timam.collapse import training_warnings
from timam.gap import modality_gap
from timam_lab import gaps
from timam_lab.centering import center_modalities
from timam_lab.gaps import GAP_MEASURES


def two_modalities(shift: float, count: int = 300, dim: int = 8, identities: int = 60, seed: int = 0):
    """Images and texts around a common direction, `shift` standard deviations apart on one axis."""
    generator = np.random.default_rng(seed)
    images, texts = generator.normal(size=(2, count, dim))
    images[:, 0] += 20  # far from the origin, so that unit length hardly changes the spread
    texts[:, 0] += 20
    images[:, 1] += shift
    labels = np.arange(count) % identities
    return images, texts, labels, labels


# -- centroids and probes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "accuracy"),
    [
        (0.0, 0.5),  # 600 samples: the standard error of an accuracy of 0.5 is 0.02
        (3.0, 0.933),  # the best rule cuts in the middle, 1.5 standard deviations from either mean
        (6.0, 0.9987),
    ],
)
def test_probe_and_centroids_of_shifted_distributions(shift, accuracy):
    found = modality_gap(*two_modalities(shift))
    assert found["probe_accuracy"] == pytest.approx(accuracy, abs=0.08 if shift == 0 else 0.04)
    # Unit spread over 20: without a shift the means are sqrt(8 x 2 / 300) / 20 = 0.012 apart.
    assert found["centroid_distance"] == pytest.approx(shift / 20, abs=0.03 if shift else 0.02)


def test_centroid_distance_by_hand():
    # Directions at 0 and 60 degrees for images, 180 and 120 for texts, of any length: means (3/4, s) and (-3/4, s).
    angles = np.deg2rad([0.0, 60.0, 180.0, 120.0])
    lengths = np.array([1.0, 7.0, 0.2, 3.0])[:, None]
    rows = (lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)).repeat(3, axis=0)
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert modality_gap(rows[:6], rows[6:], labels, labels)["centroid_distance"] == pytest.approx(1.5, rel=1e-12)
    with pytest.raises(ValueError, match="expected at least 2"):
        modality_gap(rows[:6], rows[6:], np.zeros(6), np.zeros(6))


def test_probe_that_memorises_identities_gets_no_credit():
    # Each identity has its own place and only one modality, drawn at random. Modality says nothing about unseen
    # identities: without groups the accuracy is 1.0. The standard error is that of 8 x 60 coin tosses, 0.023.
    found = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        labels = generator.permutation(np.repeat(np.arange(60), 5))  # in order, folds without groups would part them
        places = generator.normal(size=(60, 80))  # more dimensions than identities: any labelling of them is linear
        rows = places[labels] + 0.01 * generator.normal(size=(300, 80))
        image = generator.permutation(60)[labels] < 30
        found.append(modality_gap(rows[image], rows[~image], labels[image], labels[~image])["probe_accuracy"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.09)


def test_unequal_numbers_of_images_and_texts_are_balanced():
    images, texts, labels, _ = two_modalities(shift=0.0)
    few = modality_gap(images[:60], texts, labels[:60], labels)
    assert few["cross_modal_neighbours"] == pytest.approx(1, abs=0.12)  # mixing gives the texts a share of 1/6
    # 40 images at 0 degrees; of 400 texts one half there too, the other at 90 degrees. The balanced rule takes the
    # first place for images: right for all images and half the texts, 0.75; plain accuracy would be 0.55.
    angles = np.repeat([0.0, 0.0, 90.0], [40, 200, 200]) + np.random.default_rng(0).normal(size=440)
    rows = np.stack([np.cos(np.deg2rad(angles)), np.sin(np.deg2rad(angles))], axis=1)
    found = modality_gap(rows[:40], rows[40:], np.arange(40) % 10, np.arange(400) % 10)
    assert found["probe_accuracy"] == pytest.approx(0.75, abs=0.08)


def test_only_the_kernel_probe_detects_a_difference_in_spread():
    # Same mean, but images spread along the first three axes and texts along the others: no plane separates them.
    images, texts = np.random.default_rng(0).normal(size=(2, 400, 6))
    images[:, 3:] *= 0.2
    texts[:, :3] *= 0.2
    labels = np.arange(400) % 80
    found = gaps.modality_gap(images, texts, labels, labels, nonlinear=True)
    assert found["probe_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert found["nonlinear_probe_accuracy"] > 0.9
    assert found["centroid_distance"] < 0.1
    assert list(found) == [name for name in GAP_MEASURES if name in found]
    assert set(found) == set(GAP_MEASURES)


# -- pairs of samples ------------------------------------------------------------------------------------------------


def test_pair_measures_equal_brute_force():
    images, texts, labels, _ = two_modalities(shift=6.0, count=40, identities=10)
    text_labels = labels[:23] * 2  # identities without an image, and of other numbers
    found = modality_gap(images, texts[:23], labels, text_labels)
    x, y = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (images, texts[:23]))

    def mean_kernel(a, b):
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if a is not b or i != j]
        return np.mean([np.exp(-2 * ((p - q) ** 2).sum()) for p, q in pairs])

    xx, yy, xy = mean_kernel(x, x), mean_kernel(y, y), mean_kernel(x, y)
    own = [((x[i] - y[j]) ** 2).sum() for i, j in np.argwhere(labels[:, None] == text_labels)]
    assert found["mmd_squared"] == pytest.approx(xx + yy - 2 * xy, rel=1e-9)
    assert found["image_uniformity"] == pytest.approx(np.log(xx), rel=1e-9)
    assert found["text_uniformity"] == pytest.approx(np.log(yy), rel=1e-9)
    assert found["alignment"] == pytest.approx(np.mean(own), rel=1e-9)
    found = modality_gap(images, texts, labels, labels + 100)
    assert np.isnan(found["alignment"])  # no identity of both modalities
    assert np.isfinite(found["mmd_squared"])


def test_orthogonal_embeddings_are_uniform_and_coinciding_ones_aligned(monkeypatch):
    monkeypatch.setattr(gap, "_NEIGHBOURS", 1)
    basis, labels = np.eye(12), np.arange(12)
    found = modality_gap(3 * basis, basis, labels, labels)
    assert found["image_uniformity"] == found["text_uniformity"] == pytest.approx(-4)  # |x - y|^2 = 2 for every pair
    assert found["alignment"] == pytest.approx(0)
    assert found["cross_modal_neighbours"] == pytest.approx(23 / 12)  # the nearest is always of the other modality
    assert modality_gap(basis, -basis, labels, labels)["alignment"] == pytest.approx(4)


def test_cross_modal_neighbours_of_mixed_and_of_separate_modalities():
    assert modality_gap(*two_modalities(0.0))["cross_modal_neighbours"] == pytest.approx(1, abs=0.05)
    assert modality_gap(*two_modalities(40.0))["cross_modal_neighbours"] == 0


# -- intervals and limits --------------------------------------------------------------------------------------------


def test_weights_of_one_give_the_measures_themselves():
    sides = two_modalities(shift=2.0)
    both, identities, is_image, drawn = gap.unit_sample(*sides, seed=0)
    found = gaps._weighted(both, both @ both.T, identities, is_image, {}, np.ones((1, len(drawn))))
    expected = modality_gap(*sides)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: expected[name] for name in found}, rel=1e-9
    )


def test_intervals_contain_the_measure_and_widen_with_fewer_identities():
    images, texts, labels, _ = two_modalities(shift=2.0)
    many = gaps.modality_gap(images, texts, labels, labels, resamples=200)
    few = gaps.modality_gap(
        images[labels < 10], texts[labels < 10], labels[labels < 10], labels[labels < 10], resamples=200
    )
    for name in set(GAP_MEASURES) - {"nonlinear_probe_accuracy"}:
        assert many[f"{name}_low"] <= many[name] <= many[f"{name}_high"]
        assert few[f"{name}_high"] - few[f"{name}_low"] > 1.3 * (many[f"{name}_high"] - many[f"{name}_low"])


def test_intervals_of_uniformity_do_not_count_copies_of_a_person_as_pairs():
    # Persons far apart, each with near-identical images: weights of w^2 on those pairs would shift the interval up.
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 40
    rows = generator.normal(size=(40, 30))[labels] + 0.05 * generator.normal(size=(2, 240, 30))
    found = gaps.modality_gap(*rows, labels, labels, resamples=300)
    for name in ("image_uniformity", "text_uniformity"):
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        assert low < found[name] < high
        assert abs((low + high) / 2 - found[name]) < 0.25 * (high - low)


def test_large_splits_are_measured_on_whole_identities(monkeypatch):
    images, texts, labels, _ = two_modalities(shift=6.0)
    everything = modality_gap(images, texts, labels, labels)
    monkeypatch.setattr(gap, "_LIMIT", 100)
    found = modality_gap(images, texts, labels, labels, seed=2)
    assert found["probe_accuracy"] > 0.95
    assert found["centroid_distance"] == pytest.approx(6 / 20, abs=0.05)
    assert found != everything
    drawn = np.random.default_rng(2).permutation(60)[:20]  # 20 identities of 5 images
    kept = np.isin(labels, drawn)
    monkeypatch.undo()
    part = modality_gap(images[kept], texts[kept], labels[kept], labels[kept])
    assert found == pytest.approx(part, rel=1e-12)


# -- centring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [False, True])
def test_centring_by_hand(standardise):
    # Unit vectors at 0 and 90 degrees: mean (1/2, 1/2), deviations (1/2, 1/2), whatever the lengths.
    fitted_on, rows = np.array([[3.0, 0], [0, 0.1]]), np.array([[5.0, 0], [6.0, 8.0]])
    # (1, 0) becomes (1/2, -1/2); (0.6, 0.8) becomes (0.1, 0.3). Equal deviations change no direction.
    expected = np.array([[1, -1], [1, 3]]) / np.sqrt([[2], [10]])
    for centred in center_modalities(rows, rows, (fitted_on, fitted_on), standardise):
        np.testing.assert_allclose(centred, expected, rtol=1e-12)


def test_standardising_equals_the_spread_of_the_coordinates():
    rows = np.random.default_rng(0).normal(size=(500, 4)) * [1, 2, 4, 8] + [0, 0, 0, 5]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (unit - unit.mean(axis=0)) / unit.std(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    images, texts = center_modalities(rows, 3 * rows, (rows, 3 * rows), standardise=True)
    np.testing.assert_allclose(images, expected, rtol=1e-12)
    np.testing.assert_allclose(texts, expected, rtol=1e-12)
    same = np.ones((4, 4), np.float32)
    for centred in center_modalities(same, same, (same, same), standardise=True):  # finite, and of the same dtype
        assert centred.dtype == np.float32
        np.testing.assert_array_equal(centred, 0)


def test_centring_removes_a_shift_from_other_samples():
    images, texts, labels, _ = two_modalities(shift=6.0, seed=0)
    val_images, val_texts, *_ = two_modalities(shift=6.0, seed=1)
    assert modality_gap(images, texts, labels, labels)["probe_accuracy"] > 0.95
    after = modality_gap(*center_modalities(images, texts, (val_images, val_texts)), labels, labels)
    assert after["probe_accuracy"] == pytest.approx(0.5, abs=0.1)
    # Isotropic directions: means of 300, less means of 300, for both modalities: sqrt(4 / 300) = 0.12, by chance.
    assert after["centroid_distance"] < 0.25
    assert after["cross_modal_neighbours"] > 0.8  # the shift also changed the spread along the common direction


# -- what has collapsed ----------------------------------------------------------------------------------------------

# An epoch of the quick preset as it was measured: reports/quick/figures/02_curves.csv, epoch 5; norms assumed.
HEALTHY = {
    "adversarial": 1.48, "discriminator_accuracy": 0.456, "val_image_uniformity": -2.88, "val_text_uniformity": -2.89,
    "val_image_norm": 20.0, "val_text_norm": 10.0,
}  # fmt: skip


ALWAYS_RIGHT, ALWAYS_WRONG = {"discriminator_accuracy": 1.0}, {"discriminator_accuracy": 0.0}


@pytest.mark.parametrize(
    ("change", "penalty", "expected"),
    [
        ({}, 0, []),
        ({"val_image_uniformity": -0.01}, 0, ["all image embeddings are nearly alike"]),
        ({"val_text_uniformity": 0.0}, 0, ["all text embeddings are nearly alike"]),
        ({"val_text_uniformity": -0.0625}, 0, []),  # as a tiny model with random weights begins
        ({"val_image_norm": 300.0}, 0, ["image embeddings have exploded"]),
        ({"val_text_norm": 1e9}, 0, ["text embeddings have exploded"]),
        (ALWAYS_RIGHT, 0, ["the discriminator is always right"]),
        (ALWAYS_RIGHT, 1, []),  # the penalty keeps its gradient useful
        (ALWAYS_RIGHT | {"adversarial": 0.0}, 0, []),  # it only watches
        ({"val_image_norm": 1e3} | ALWAYS_WRONG, 1, ["image embeddings have", "the discriminator is always wrong"]),
        ({"discriminator_accuracy": 0.042}, 0, []),
        ({"val_image_uniformity": float("nan"), "val_text_uniformity": float("nan")}, 0, []),
    ],
)  # fmt: skip
def test_warnings_of_a_row(change, penalty, expected):
    found = training_warnings({**HEALTHY, **change}, gradient_penalty=penalty)
    assert len(found) == len(expected)
    for warning, beginning in zip(found, expected, strict=True):
        assert warning.startswith(beginning)
        assert "What usually helps: " in warning
