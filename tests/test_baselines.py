"""timam_lab.baselines: a planted linear map is recovered, validation chooses, t-SNE of unit lengths."""

import numpy as np
import pytest
import torch
from layouts import TINY_SETTINGS

from timam import config as configs
from timam.data import load_dataset
from timam.evaluation import evaluate
from timam_lab import baselines, notebook
from timam_lab.baselines import linear_baselines, tsne, tuned_baseline


def planted(pairs: int, seed: int):
    """Pictures that are a fixed linear map of four hidden factors plus little noise, and texts another one."""
    maps = np.random.default_rng(0)
    to_image, to_text = maps.normal(size=(4, 12)), maps.normal(size=(4, 9))
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(pairs, 4))
    noise = 0.01 * generator.normal(size=(pairs, 12))
    return 5 + hidden @ to_image + noise, hidden @ to_text - 3


def test_linear_baseline_recovers_a_planted_map():
    train = planted(200, seed=1)
    image_map, text_maps = linear_baselines(*train, components=4, penalties=(1e-3, 10.0))
    images, texts = planted(50, seed=2)  # new pairs
    mapped, predicted = image_map.transform(images), text_maps[1e-3].predict(texts)
    assert mapped.shape == predicted.shape == (50, 4)
    assert np.abs(mapped - predicted).max() < 0.05
    np.testing.assert_allclose(np.cov(image_map.transform(train[0]).T), np.eye(4), atol=1e-10)  # whitened
    fewer, fewer_maps = linear_baselines(*train, components=2, penalties=(10.0,))
    np.testing.assert_allclose(fewer.transform(images), mapped[:, :2], atol=1e-6)  # the first columns
    np.testing.assert_allclose(fewer_maps[10.0].predict(texts), text_maps[10.0].predict(texts)[:, :2], atol=1e-6)


def test_baseline_is_chosen_on_validation_and_stands_beside_results(people, language_model, monkeypatch):
    settings = [*TINY_SETTINGS, f"language_model={language_model}", "dataset=cuhk-pedes", f"root={people}"]
    config = configs.override(configs.PRESETS["smoke"], settings)
    data = load_dataset("cuhk-pedes", people)

    def baseline(components, penalties):
        monkeypatch.setattr(baselines, "COMPONENTS", components)
        monkeypatch.setattr(baselines, "PENALTIES", penalties)
        torch.manual_seed(0)  # this backbone has no pretrained weights
        return tuned_baseline(config.model, data)

    def score(embed) -> float:
        return evaluate(embed(data.split("val")))["text_to_image"]["mAP"]

    alone = [score(baseline((size,), (penalty,))[0]) for size in (2, 4) for penalty in (1.0, 1e3)]
    embed, told = baseline((2, 4), (1.0, 1e3))
    assert score(embed) == pytest.approx(max(alone))
    assert "the end of what was tried" in told  # there is no penalty between the two
    torch.manual_seed(0)
    rows = notebook.references(config).set_index("variant")
    assert list(rows.index) == ["linear baseline", "chance"]
    found = evaluate(embed(data.split("test")))
    assert rows.loc["linear baseline", "image_to_text_mAP"] == pytest.approx(found["image_to_text"]["mAP"])
    assert rows.loc["chance", "text_to_image_rank_1"] == found["text_to_image"]["chance"]


def test_tsne_maps_unequal_and_small_numbers_whatever_the_lengths_of_the_embeddings():
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(3, 8)), generator.normal(size=(5, 8))
    image_map, text_map = tsne(images, texts)
    assert (image_map.shape, text_map.shape) == ((3, 2), (5, 2))
    other_image_map, other_text_map = tsne(4 * images, texts)
    np.testing.assert_array_equal(other_image_map, image_map)
    np.testing.assert_array_equal(other_text_map, text_map)
