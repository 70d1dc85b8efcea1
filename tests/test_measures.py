"""timam_lab.measures against cases that can be checked by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from timam.evaluation import Embeddings
from timam_lab import measures


def at(image_degrees, text_degrees, image_labels, text_labels) -> Embeddings:
    """Points on the circle, of lengths that must not matter."""
    angles = [torch.deg2rad(torch.tensor(d, dtype=torch.float64)) for d in (image_degrees, text_degrees)]
    images, texts = (torch.stack([a.cos(), a.sin()], dim=1) * torch.arange(1, len(a) + 1)[:, None] for a in angles)
    return Embeddings(images, texts, torch.tensor(image_labels), torch.tensor(text_labels))


def test_mixed_gallery_by_hand():
    # Sentence of 0 at 0 degrees: nearest are its picture (10), the other sentence of 0 (-20), picture of 1 (90).
    # Sentence of 0 at -20: its fellow (0). Sentence of 1 at 80: picture of 1 (90). Sentence of 2 at 180: picture of 1.
    e = at([10.0, 90.0], [0.0, -20.0, 80.0, 180.0], [0, 1], [0, 0, 1, 2])
    found = measures.mixed_gallery(e, k=1)
    # Of the right identity and a picture: of the first and the third sentence.
    expected = {"mixed_rank_1": 3 / 4, "mixed_right_picture": 2 / 4, "mixed_pictures": 3 / 4, "mixed_parity": 2 / 5}
    assert found == expected
    # Among the two nearest: (picture, sentence), (sentence, picture), (picture, picture), (picture, sentence).
    assert measures.mixed_gallery(e, k=2)["mixed_pictures"] == 5 / 8
    assert measures.mixed_gallery(e, k=2)["mixed_right_picture"] == 3 / 4
    assert measures.mixed_gallery(e, k=10)["mixed_pictures"] == pytest.approx(2 / 5)  # the whole gallery
    tie = at([30.0, -30.0], [0.0], [0, 1], [0])
    tie.images[1] = tie.images[0]  # a wrong picture as near as the right one
    assert measures.mixed_gallery(tie)["mixed_rank_1"] == 0


def test_quantised_by_hand():
    e = Embeddings(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]]), torch.tensor([0]), torch.tensor([0]))
    found = measures.quantised(e, 8)  # unit: (0.6, 0.8), (0, -1); the largest is 1
    assert found.images.tolist() == [[76, 102]]  # 0.6 * 127 = 76.2, 0.8 * 127 = 101.6
    assert found.texts.tolist() == [[0, -127]]
    assert measures.quantised(e, 1).texts.tolist() == [[1, -1]]


def test_noise_has_the_stated_length_and_is_the_same_each_time():
    e = Embeddings(3 * torch.eye(2000)[:50], torch.eye(2000)[50:90], torch.zeros(50), torch.zeros(40))
    noisy, again, other = (measures.noisy(e, seed=seed) for seed in (0, 0, 1))
    assert (noisy.images - e.images / 3).norm(dim=1).mean().item() == pytest.approx(measures.NOISE, rel=0.02)
    assert torch.equal(noisy.texts, again.texts)
    assert not torch.equal(noisy.texts, other.texts)


def test_clusters_are_identities_or_modalities():
    near = at([0.0, 1.0, 90.0, 91.0], [2.0, 3.0, 92.0, 93.0], [0, 0, 1, 1], [0, 0, 1, 1])
    assert measures.clusters(near) == pytest.approx(1)
    apart = at([0.0, 1.0, 2.0, 3.0], [90.0, 91.0, 92.0, 93.0], [0, 1, 0, 1], [0, 1, 0, 1])
    assert measures.clusters(apart) == pytest.approx(0)


def two_modalities(seed: int, people: int = 60) -> Embeddings:
    """One point an identity, seen twice with little noise; the sentences are moved along the first axis."""
    rng = np.random.default_rng(seed)
    points = np.random.default_rng(9).normal(size=(people, 16))
    images, texts = (torch.from_numpy(points + 0.3 * rng.normal(size=points.shape)).float() for _ in range(2))
    texts[:, 0] += 20
    labels = torch.arange(people)
    return Embeddings(images, texts, labels, labels.clone())


def test_a_shift_costs_what_mean_subtraction_gives_back():
    found = measures.measure(two_modalities(0), two_modalities(1), two_modalities(2)).set_index("correction")
    assert list(found.index) == list(measures.CORRECTIONS)
    assert set(measures.MEASURES) <= set(found.columns)
    plain, subtracted = found.loc["none"], found.loc["mean subtracted"]
    assert plain["probe_accuracy"] > 0.95
    assert subtracted["probe_accuracy"] < 0.75
    assert plain["centroid_distance"] > 5 * subtracted["centroid_distance"]
    assert plain["mixed_pictures"] == 0
    assert subtracted["mixed_pictures"] > 0.2
    assert plain["mAP_rephrased"] != plain["text_to_image_mAP"]
    unknown = measures.measure(two_modalities(0), two_modalities(1))
    assert set(found) - set(unknown) == {"rank_1_rephrased", "mAP_rephrased"}


def test_related_is_the_correlation_of_ranks():
    # Ranks of b against a: 1 2 4 3 5 -> 1 - 6 * (1 + 1) / (5 * 24) = 0.9; c falls where a rises; d is constant.
    frame = pd.DataFrame({"a": [1, 2, 3, 4, 5], "b": [1, 2, 9, 3, 20], "c": [4, 3, 2, 0, -7], "d": 1.0})
    found = measures.related(frame, ["b", "c", "d"], ["a"]).set_index("measure")
    assert found["a"].tolist()[:2] == pytest.approx([0.9, -1])
    assert np.isnan(found.loc["d", "a"])
    assert set(found["n"]) == {5}
    assert measures.related(frame[:4], ["b"], ["a"])[["a", "a_p"]].isna().all(axis=None)


def test_table_for_reading():
    frame = pd.DataFrame({"variant": list("bba"), "text_to_image_mAP": [0.5, 0.6, 0.125], "mmd_squared": [0.1, 0.1, 2]})
    shown = measures.table(frame, ["text_to_image_mAP", "mmd_squared"]).data
    assert shown.to_numpy().tolist() == [["b", 2, "55.0 ± 63.5", "0.100 ± 0.000"], ["a", 1, "12.5", "2.000"]]
    assert list(shown) == ["variant", "seeds", "text to image, mAP", "MMD²"]


def test_differences_pair_the_seeds_and_their_table_has_points_and_bold_where_the_interval_excludes_0():
    frame = pd.DataFrame({"variant": list("aabb"), "correction": "none", "seed": [1, 0, 0, 1],
                          "mixed_rank_1": [0.5, 0.4, 0.1, 0.3], "mmd_squared": [1.0, 0.5, 0.25, 0.75]})  # fmt: skip
    found = measures.differences(frame, ("a", "none"), ("b", "none"), ["mixed_rank_1", "mmd_squared"])
    found = found.assign(arm="b", correction="none")
    row = found.iloc[0]
    assert (row["ours"], row["baseline"], row["difference"]) == pytest.approx((0.45, 0.2, 0.25))
    assert row["seeds_high"] - row["difference"] == pytest.approx(12.706 * 0.05, rel=1e-4)  # Student's t, 1 degree
    other = found.assign(arm="a", difference=-0.01, seeds_low=[-1, np.nan])
    style = measures.difference_table(pd.concat([found, other]))
    assert style.data.to_numpy().tolist() == [[pytest.approx(25), 0.25], [-1, -0.01]]  # arms in their order
    assert list(style.data) == ["mixed gallery, rank-1", "MMD²"]
    assert re.findall(r"_(row\d_col\d)(?=[^{}]*{\s*font-weight: bold)", style.to_html()) == ["row0_col1"]
