"""The modality gap on known distributions and against scikit-learn; warnings of made-up epochs."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

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


def test_probe_balances_unequal_numbers_of_images_and_texts():
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
    assert list(found) == list(GAP_MEASURES)


def test_measures_equal_scikit_learns():
    images, texts, labels, _ = two_modalities(shift=6.0, count=40, identities=10)
    text_labels = labels[:23] * 2  # identities without an image, and of other numbers
    found = modality_gap(images, texts[:23], labels, text_labels)
    x, y = normalize(images), normalize(texts[:23])
    xx, yy, xy = (rbf_kernel(*pair, gamma=2) for pair in ((x, x), (y, y), (x, y)))
    xx, yy = ((k.sum() - len(k)) / (len(k) ** 2 - len(k)) for k in (xx, yy))  # a sample is no pair
    own = euclidean_distances(x, y, squared=True)[labels[:, None] == text_labels]
    # Shares of the other modality among the 10 nearest, over 23 / 62 for an image and 40 / 62 for a text.
    is_image = np.arange(63) < 40
    nearest = NearestNeighbors(n_neighbors=10).fit(np.concatenate([x, y])).kneighbors(return_distance=False)
    crossed = (is_image[nearest] != is_image[:, None]).mean(axis=1) / np.where(is_image, 23 / 62, 40 / 62)
    expected = {
        "centroid_distance": np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)),
        "mmd_squared": xx + yy - 2 * xy.mean(),
        "image_uniformity": np.log(xx),
        "text_uniformity": np.log(yy),
        "alignment": own.mean(),
        "cross_modal_neighbours": (crossed[:40].mean() + crossed[40:].mean()) / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert np.isnan(modality_gap(images, texts, labels, labels + 100)["alignment"])  # no identity of both modalities
    with pytest.raises(ValueError, match="expected at least 2"):
        modality_gap(images, texts, np.zeros(40), np.zeros(40))


def test_weights_of_one_give_the_measures_themselves():
    sides = two_modalities(shift=2.0)
    both, identities, is_image, drawn = gap.unit_sample(*sides, seed=0)
    weighted = gaps._weighted(both, both @ both.T, identities, is_image, {}, np.ones((1, len(drawn))))
    expected = modality_gap(*sides)
    for name, values in weighted.items():
        assert values.item() == pytest.approx(expected[name], rel=1e-9), name


def test_intervals_contain_the_measure_and_widen_with_fewer_identities():
    sides = two_modalities(shift=2.0)
    few_sides = (side[np.arange(300) % 60 < 10] for side in sides)
    many, few = (gaps.modality_gap(*each, resamples=200) for each in (sides, few_sides))
    for name in set(GAP_MEASURES) - {"nonlinear_probe_accuracy"}:
        assert many[f"{name}_low"] <= many[name] <= many[f"{name}_high"]
        assert few[f"{name}_high"] - few[f"{name}_low"] > 1.3 * (many[f"{name}_high"] - many[f"{name}_low"])


def test_interval_of_the_distance_is_about_the_populations():
    """Chance alone moves the means of 300 samples apart in 200 dimensions, and of resampled ones further."""
    for shift in (0.0, 2.0):
        true = shift / 600**0.5  # rows are about (400 + 200)^0.5 long before they are scaled to unit length
        found = gaps.modality_gap(*two_modalities(shift, dim=200), resamples=200)
        assert found["centroid_distance_low"] <= true <= found["centroid_distance_high"]
        assert found["centroid_distance"] > true


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
    drawn = np.random.default_rng(2).permutation(60)[:20]  # 20 identities of 5 images
    kept = np.isin(labels, drawn)
    part = modality_gap(images[kept], texts[kept], labels[kept], labels[kept])
    monkeypatch.setattr(gap, "_LIMIT", 100)
    assert modality_gap(images, texts, labels, labels, seed=2) == pytest.approx(part, rel=1e-12)


@pytest.mark.parametrize("standardise", [False, True])
def test_centring_equals_scikit_learns(standardise):
    generator = np.random.default_rng(0)
    fitted_on = generator.normal(size=(2, 500, 4)) * [1, 2, 4, 8] + [[[0, 0, 0, 5]], [[3, 0, 0, 0]]]
    sides = generator.normal(size=(2, 9, 4))
    for found, rows, other in zip(center_modalities(*sides, fitted_on, standardise), sides, fitted_on, strict=True):
        scaler = StandardScaler(with_std=standardise).fit(normalize(other))
        np.testing.assert_allclose(found, normalize(scaler.transform(normalize(rows))), rtol=1e-9)
    same = np.ones((4, 4), np.float32)
    for centred in center_modalities(same, same, (same, same), standardise):  # finite, and of the same dtype
        assert centred.dtype == np.float32
        np.testing.assert_array_equal(centred, 0)


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
        ({"val_image_uniformity": -0.01, "val_text_uniformity": 0.0}, 0, ["all image emb", "all text emb"]),
        ({"val_text_uniformity": -0.0625}, 0, []),  # as a tiny model with random weights begins
        (ALWAYS_RIGHT, 0, ["the discriminator is always right"]),
        (ALWAYS_RIGHT, 1, []),  # the penalty keeps its gradient useful
        (ALWAYS_RIGHT | {"adversarial": 0.0}, 0, []),  # it only watches
        ({"val_image_norm": 1e3} | ALWAYS_WRONG, 1, ["image embeddings have", "the discriminator is always wrong"]),
        ({"val_image_uniformity": float("nan"), "val_text_uniformity": float("nan")}, 0, []),
    ],
)
def test_warnings_of_a_row(change, penalty, expected):
    found = list(training_warnings({**HEALTHY, **change}, gradient_penalty=penalty))
    assert len(found) == len(expected)
    for warning, beginning in zip(found, expected, strict=True):
        assert warning.startswith(beginning)
        assert "What usually helps: " in warning
