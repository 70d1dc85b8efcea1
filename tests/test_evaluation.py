"""A split's embeddings in both directions."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import karpathy_images, write_karpathy, write_reed

from timam import cli
from timam.data import Split, load_dataset
from timam.evaluation import (
    Embeddings,
    embed_split,
    evaluate,
    evaluate_folds,
    evaluate_model,
    gap,
    per_query,
)
from timam.metrics import class_retrieval_metrics
from timam.stores import StoredSplit
from timam_lab.baselines import frozen_features


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.fixture
def embeddings() -> Embeddings:
    """Three pictures of two identities and five captions, in the plane, of any length.

    Text to image (pictures at 0, 30, 80 degrees of identities 0, 1, 0):
       4 deg (0): 0 30 80 -> x . x   rank 1      20 deg (0): 30 0 80 -> . x x   rank 2     76 deg (0): 80 30 0   rank 1
      35 deg (1): 30 0 80 -> x . .   rank 1      70 deg (1): 80 30 0 -> . x .   rank 2
    Image to text (captions at 4, 20, 76 of identity 0; 35, 70 of identity 1):
       0 deg (0): 4 20 35 70 76: rank 1;   30 deg (1): 35 20 4 70 76: rank 1;   80 deg (0): 76 70 35 20 4: rank 1
    """
    return Embeddings(
        images=3 * unit(0, 30, 80),
        texts=0.5 * unit(4, 20, 76, 35, 70),
        image_labels=torch.tensor([0, 1, 0]),
        text_labels=torch.tensor([0, 0, 0, 1, 1]),
    )


def test_both_directions_and_single_queries_by_hand(embeddings):
    results = evaluate(embeddings)
    assert list(results) == ["text_to_image", "image_to_text"]
    text, image = results["text_to_image"], results["image_to_text"]
    assert (text["queries"], text["gallery"], image["queries"], image["gallery"]) == (5, 3, 3, 5)
    assert (text["rank_1"], text["rank_5"], image["rank_1"]) == (3 / 5, 1.0, 1.0)
    # Of the gallery two thirds, for the three captions of the two pictures of identity 0, and one third for the others.
    assert text["chance"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 3) / 5)
    assert image["chance"] == pytest.approx((2 * 3 / 5 + 1 * 2 / 5) / 3)
    # AP: x.x 5/6, .xx 7/12, x.x 5/6, x.. 1, .x. 1/2. The other way xx..x, x..x., x..xx: 2.6/3, 1.5/2, 2.1/3.
    assert text["mAP"] == pytest.approx((5 / 6 + 7 / 12 + 5 / 6 + 1 + 1 / 2) / 5, rel=1e-6)
    assert image["mAP"] == pytest.approx((2.6 / 3 + 1.5 / 2 + 2.1 / 3) / 3, rel=1e-6)
    result = per_query(embeddings, "text_to_image")
    assert result["rank"].tolist() == [1, 2, 1, 1, 2]
    assert result["identity"].tolist() == [0, 0, 0, 1, 1]
    assert per_query(embeddings, "image_to_text")["identity"].tolist() == [0, 1, 0]


def test_embeddings_survive_a_file(embeddings, tmp_path):
    embeddings.save(tmp_path / "test.safetensors")
    again = Embeddings.load(tmp_path / "test.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(vars(embeddings).values(), vars(again).values(), strict=True))


def test_gap_passes_images_and_texts_in_order():
    # Texts at one place, images at another: told apart, whichever labels; 2-D at 0 and 90 degrees: sqrt(2) apart.
    labels = torch.arange(20) // 4
    found = gap(Embeddings(unit(*[0.0] * 20), unit(*[90.0] * 20), labels, labels))
    assert found["centroid_distance"] == pytest.approx(math.sqrt(2), rel=1e-6)
    assert found["probe_accuracy"] == 1.0


# -- open set --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten_people() -> Embeddings:
    """Ten directions 36 degrees apart, a picture of each, and a caption a few degrees beside it, of any length.

    Every second identity is taken out: 1, 3, 5, 7, 9. The known captions are 0, 1, 2, 3 and 4 degrees off, and the
    nearest picture that remains is theirs. The unknown ones, 2, 4, 6, 8 and 10 degrees off, have a picture of the next
    identity at 34, 32, 30, 28 and 26 degrees.
    """
    off = torch.tensor([0.0, 2, 1, 4, 2, 6, 3, 8, 4, 10])
    labels = torch.arange(10) + 5
    return Embeddings(4 * unit(*range(0, 360, 36)), unit(*(36.0 * torch.arange(10) + off)), labels, labels)


def cosines(*degrees: float) -> list[float]:
    return pytest.approx([math.cos(math.radians(d)) for d in degrees], rel=1e-5)


def test_open_set_by_hand(ten_people):
    found = evaluate(ten_people)["open_set"]
    assert list(found) == ["text_to_image"]
    text = found["text_to_image"]
    assert (text.pop("queries"), text.pop("unknown"), text.pop("gallery")) == (10, 5, 5)
    assert list(text["threshold"].values()) == cosines(26, 26)  # of five unknown captions none may be answered
    assert text["detection_identification_rate"] == {"0.01": 1.0, "0.1": 1.0}


def test_thresholds_of_another_split(ten_people):
    """There no unknown caption is nearer than 27 degrees to a picture; here the one at 26 degrees is answered."""
    validation = dataclasses.replace(ten_people, texts=torch.cat([ten_people.texts[:9], unit(9 * 36 + 9)]))
    found = evaluate(ten_people, validation=validation)["open_set"]
    assert list(found["threshold"].values()) == cosines(27, 27)
    assert found["at_threshold"] == {
        "detection_identification_rate": {"0.01": 1.0, "0.1": 1.0},
        "false_alarm_rate": {"0.01": 1 / 5, "0.1": 1 / 5},
    }
    assert found["text_to_image"] == evaluate(ten_people)["open_set"]["text_to_image"]


def test_a_split_of_few_identities_has_no_open_set_measures(ten_people):
    few = Embeddings(*(tensor[:9] for tensor in vars(ten_people).values()))
    assert "open_set" not in evaluate(few)
    assert evaluate(ten_people, validation=few) == evaluate(ten_people)


# -- classes and folds -----------------------------------------------------------------------------------------------


def test_a_class_data_set_has_class_level_results(embeddings):
    found = evaluate(embeddings, "class")
    e = embeddings
    assert found["class_level"] == class_retrieval_metrics(e.images, e.image_labels, e.texts, e.text_labels)
    # Three pictures, fewer than 50: 2 and 1 of 3. Each picture's nearest caption is of its identity, as said above.
    assert found.pop("class_level") == {"image_to_text_rank_1": 1.0, "text_to_image_ap_50": pytest.approx(1 / 2)}
    assert found == evaluate(embeddings) == evaluate(embeddings, "instance")


@pytest.fixture
def instances() -> Embeddings:
    """Five pictures with two captions each, labels and captions out of order; in two parts: two and three pictures.

    Pictures at 0 and 10 (labels 7, 2) | 11, 50, 90 degrees (4, 0, 9). Captions, where each finds its picture:
        7: 1, 12   2: 9, 2 | 4: 8, 80   0: 49, 51   9: 88, 12
    In the part, 12 of label 7 has 10 first and 0 second; in the whole it has 11, 10, 0. In its part 2 has 0 first,
    80 and 12 have 90 and 11 first; 80 -> 90 50 11, 12 -> 11 50 90.
    """
    return Embeddings(
        images=2 * unit(0, 10, 11, 50, 90),
        texts=unit(12, 49, 88, 9, 8, 1, 51, 2, 80, 12),
        image_labels=torch.tensor([7, 2, 4, 0, 9]),
        text_labels=torch.tensor([7, 0, 9, 2, 4, 7, 0, 2, 4, 9]),
    )


def test_folds_by_hand(instances):
    found = evaluate_folds(instances, 2)
    assert (list(found), found["folds"]) == (["folds", "text_to_image", "image_to_text"], 2)
    text, image = found["text_to_image"], found["image_to_text"]
    assert (text["queries"], text["gallery"], image["queries"], image["gallery"]) == (5.0, 2.5, 2.5, 5.0)
    # First part: ranks 1, 2 (label 7), 1, 2 (label 2); second: 1, 3 (label 4), 1, 1, 1, 3 (label 9).
    assert text["rank_1"] == pytest.approx((2 / 4 + 4 / 6) / 2)  # the mean over parts, not over captions: 6/10
    assert text["mAP"] == pytest.approx(((1 + 1 / 2 + 1 + 1 / 2) / 4 + (4 + 2 / 3) / 6) / 2)
    # 0 -> 1 (7); 10 -> 9 (2) | 11 -> 12 of 9, then 8 (4): rank 2; 50 -> 49, 51 (0); 90 -> 88 (9).
    assert image["rank_1"] == pytest.approx((1 + 2 / 3) / 2)
    # The whole differs: captions of the other part stand between. 12 of 7 has rank 3, 11 -> 12 of 7 and of 9 first.
    assert evaluate(instances)["text_to_image"]["mAP"] < text["mAP"]


def test_evaluate_adds_folds_where_there_are_enough_pictures(instances):
    assert evaluate(instances, "instance", 5)["folds"] == evaluate_folds(instances, 5)
    assert {"folds": 1, **evaluate(instances)} == evaluate_folds(instances, 1)
    for folds in (1, 6):
        assert "folds" not in evaluate(instances, "instance", folds)


def test_a_split_is_evaluated_by_its_data_sets_protocol(tiny_model, tmp_path):
    coco = write_karpathy(tmp_path / "coco", karpathy_images(train=1, val=6, test=6), ".", "coco")
    birds = write_reed(tmp_path / "cub", {"train": ["1.A"], "val": ["2.B", "3.C"], "test": ["4.D", "5.E"]}, captions=2)
    found = {
        (name, split): {"class_level", "folds"} & set(evaluate_model(tiny_model(), load_dataset(name, root), split))
        for name, root in (("coco", coco), ("cub", birds))
        for split in ("val", "test")
    }
    expected = {("coco", "val"): set(), ("coco", "test"): {"folds"}}
    assert found == expected | {("cub", split): {"class_level"} for split in ("val", "test")}


def test_the_table_shows_classes_and_folds(instances):
    plain = cli._table({"dataset": "d", "split": "test", **evaluate(instances)})
    results = evaluate(instances, "class", 2)
    table = cli._table({"dataset": "d", "split": "test", **results})
    assert table.startswith(plain)
    title, *rows, ap, rank = table.removeprefix(plain).strip().splitlines()
    assert title == "mean over 2 parts of the pictures, each searched on its own"
    for row, direction in zip(rows, ("text_to_image", "image_to_text"), strict=True):
        assert row.split()[:2] == [direction, f"{100 * results['folds'][direction]['rank_1']:.2f}"]
    level = results["class_level"]
    assert level["text_to_image_ap_50"] != level["image_to_text_rank_1"]  # a mix-up would be seen
    assert f"{100 * level['text_to_image_ap_50']:.2f}" in ap.split()
    assert f"{100 * level['image_to_text_rank_1']:.2f}" in rank.split()
    assert "one averaged query a class, cosine" in ap
    assert ("AP@50" in ap, "rank-1" in rank) == (True, True)


# -- with a model ----------------------------------------------------------------------------------------------------

CAPTIONS = ["a man in a red hat", "the woman with a black bag and blue boots", "a dress", "a man in a white coat"]


@pytest.fixture
def split() -> tuple[Split, np.ndarray]:
    """Three pictures, as noise, of two identities, and four captions."""
    return Split(
        name="test",
        image_paths=[Path(f"{i}.png") for i in range(3)],
        image_labels=np.array([1, 0, 1]),
        captions=CAPTIONS,
        caption_image=np.array([0, 0, 1, 2]),
        identities=np.array([10, 20]),
    ), np.random.default_rng(0).integers(0, 256, (3, 3, 64, 32), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_embed_split_is_encode_images_and_encode_texts(tiny_model, split, batch_size):
    model = tiny_model().train()
    data, pixels = split
    pixels.setflags(write=False)  # as a memory-mapped store is
    found = embed_split(model, StoredSplit(data, pixels), batch_size)
    torch.testing.assert_close(found.images, model.encode_images(list(torch.from_numpy(pixels.copy()))))
    torch.testing.assert_close(found.texts, model.encode_texts(CAPTIONS))
    assert found.image_labels.tolist() == [1, 0, 1]
    assert found.text_labels.tolist() == [1, 1, 0, 1]
    assert model.training  # as it was before


def test_frozen_features_are_means_over_real_words(tiny_model, split):
    model = tiny_model()
    data, pixels = split
    images, texts = frozen_features(model, data, pixels, batch_size=2)
    assert images.shape == (3, 1024)  # ShuffleNet's channels
    assert texts.shape == (4, 16)  # the language model's width
    model.eval()
    for caption, found in zip(CAPTIONS, texts, strict=True):  # one at a time: no padding at all
        with torch.no_grad():
            states = model.text_encoder.word_states(*model.tokenize([caption]))
        np.testing.assert_allclose(found, states[0].mean(dim=0).numpy(), atol=1e-3)  # kept in half precision
