"""A split's embeddings in both directions."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import karpathy_images, write_karpathy, write_reed

from timam import cli
from timam.data import Split, load_dataset
from timam.evaluation import Embeddings, embed_split, evaluate, evaluate_folds, per_query
from timam.metrics import class_retrieval_metrics, retrieval_metrics
from timam.stores import StoredSplit
from timam_lab.baselines import frozen_features
from timam_lab.evaluating import evaluate_model


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_both_directions_are_a_search_each_in_unique_pictures():
    images, texts = 3 * unit(0, 30, 80), 0.5 * unit(4, 20, 76, 35, 70)
    image_labels, text_labels = torch.tensor([0, 1, 0]), torch.tensor([0, 0, 0, 1, 1])
    embeddings = Embeddings(images, texts, image_labels, text_labels)
    there = retrieval_metrics(texts, images, text_labels, image_labels)
    back = retrieval_metrics(images, texts, image_labels, text_labels)
    # Two of three pictures are of identity 0, as are three of five captions.
    assert evaluate(embeddings) == {
        "text_to_image": {**there, "chance": pytest.approx((3 * 2 / 3 + 2 * 1 / 3) / 5), "queries": 5, "gallery": 3},
        "image_to_text": {**back, "chance": pytest.approx((2 * 3 / 5 + 1 * 2 / 5) / 3), "queries": 3, "gallery": 5},
    }
    result = per_query(embeddings, "text_to_image")
    # At 4 degrees: pictures 0 30 80; 20: 30 0 80; 76: 80 30 0; 35, of identity 1 as the picture at 30: 30; 70: 80 30.
    assert result["rank"].tolist() == [1, 2, 1, 1, 2]
    assert result["identity"].tolist() == [0, 0, 0, 1, 1]


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


def test_open_set_by_hand_with_thresholds_of_another_split_and_none_of_few_people(ten_people):
    """There no unknown caption is nearer than 27 degrees to a picture; here the one at 26 degrees is answered."""
    validation = replace(ten_people, texts=torch.cat([ten_people.texts[:9], unit(9 * 36 + 9)]))
    here, there = (pytest.approx(math.cos(math.radians(degrees)), rel=1e-5) for degrees in (26, 27))

    def at_both_rates(value) -> dict:
        return {"0.01": value, "0.1": value}  # of five unknown captions none may be answered

    assert evaluate(ten_people, validation=validation)["open_set"] == {
        "threshold": at_both_rates(there),
        "at_threshold": {"detection_identification_rate": at_both_rates(1), "false_alarm_rate": at_both_rates(1 / 5)},
        "text_to_image": {"detection_identification_rate": at_both_rates(1), "threshold": at_both_rates(here),
                          "queries": 10, "unknown": 5, "gallery": 5},
    }  # fmt: skip
    few = Embeddings(*(tensor[:9] for tensor in vars(ten_people).values()))
    assert "open_set" not in evaluate(few)
    assert evaluate(ten_people, validation=few) == evaluate(ten_people)


@pytest.fixture
def instances() -> Embeddings:
    """Five pictures with two captions each, labels and captions out of order."""
    images, texts = 2 * unit(0, 10, 11, 50, 90), unit(12, 49, 88, 9, 8, 1, 51, 2, 80, 12)
    return Embeddings(images, texts, torch.tensor([7, 2, 4, 0, 9]), torch.tensor([7, 0, 9, 2, 4, 7, 0, 2, 4, 9]))


def test_a_class_data_set_has_class_level_results(instances):
    e, found = instances, evaluate(instances, "class")
    assert found.pop("class_level") == class_retrieval_metrics(e.images, e.image_labels, e.texts, e.text_labels)
    assert found == evaluate(instances) == evaluate(instances, "instance")


def test_folds_are_searched_on_their_own(instances):
    found, e = evaluate_folds(instances, 2), instances
    parts = [  # two pictures and the three others, each with its captions
        evaluate(Embeddings(e.images[i], e.texts[t], e.image_labels[i], e.text_labels[t]))
        for i, t in (([0, 1], [0, 3, 5, 7]), ([2, 3, 4], [1, 2, 4, 6, 8, 9]))
    ]
    for name in ("text_to_image", "image_to_text"):  # the mean over parts, not over captions
        assert found[name] == {key: (parts[0][name][key] + parts[1][name][key]) / 2 for key in parts[0][name]}
    assert found["folds"] == 2
    assert evaluate(instances, "instance", 2)["folds"] == found
    for folds in (1, 6):
        assert "folds" not in evaluate(instances, "instance", folds)


def test_a_split_is_evaluated_by_its_data_sets_protocol(tiny_model, tmp_path):
    coco = write_karpathy(tmp_path / "coco", karpathy_images(train=1, val=6, test=6), ".", "coco")
    birds = write_reed(tmp_path / "cub", {"train": ["1.A"], "val": ["2.B", "3.C"], "test": ["4.D", "5.E"]}, captions=2)
    for name, root, val, test in (("coco", coco, set(), {"folds"}), ("cub", birds, {"class_level"}, {"class_level"})):
        for split, expected in (("val", val), ("test", test)):
            found = evaluate_model(tiny_model(), load_dataset(name, root), split)
            assert {"class_level", "folds"} & set(found) == expected, (name, split)


def test_the_table_shows_classes_and_folds(instances):
    results = evaluate(instances, "class", 2)
    table = cli.results_table({"dataset": "d", "split": "test", **results})
    _, *rows, ap, rank = table[table.index("mean over 2 parts") :].strip().splitlines()
    for row, direction in zip(rows, ("text_to_image", "image_to_text"), strict=True):
        assert row.split()[:2] == [direction, f"{100 * results['folds'][direction]['rank_1']:.2f}"]
    level = results["class_level"]
    assert level["text_to_image_ap_50"] != level["image_to_text_rank_1"]  # a mix-up would be seen
    assert {"AP@50", f"{100 * level['text_to_image_ap_50']:.2f}"} <= set(ap.split())
    assert {"rank-1", f"{100 * level['image_to_text_rank_1']:.2f}"} <= set(rank.split())


CAPTIONS = ["a man in a red hat", "the woman with a black bag and blue boots", "a dress", "a man in a white coat"]


@pytest.fixture
def split() -> tuple[Split, np.ndarray]:
    """Three pictures, as noise, of two identities, and four captions."""
    paths, pixels = [Path(f"{i}.png") for i in range(3)], np.random.default_rng(0).integers(0, 256, (3, 3, 64, 32))
    found = Split("test", paths, np.array([1, 0, 1]), CAPTIONS, np.array([0, 0, 1, 2]), np.array([10, 20]))
    return found, pixels.astype(np.uint8)


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
