"""timam_lab.baselines: chance by counting, a planted linear map is recovered, t-SNE keeps groups together."""

import numpy as np
import pytest
import torch
from layouts import TINY_SETTINGS

from timam import config as configs
from timam.data import load_dataset
from timam.evaluation import Embeddings, evaluate
from timam.metrics import chance
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
    image_map, text_maps = linear_baselines(*planted(200, seed=1), components=4, penalties=(1e-3, 10.0))
    text_map = text_maps[1e-3]
    images, texts = planted(50, seed=2)  # new pairs
    mapped, predicted = image_map.transform(images), text_map.predict(texts)
    assert mapped.shape == predicted.shape == (50, 4)
    assert np.abs(mapped - predicted).max() < 0.05
    np.testing.assert_allclose(
        np.cov(image_map.transform(planted(200, seed=1)[0]).T), np.eye(4), atol=1e-10
    )  # whitened
    fewer, text_maps = linear_baselines(*planted(200, seed=1), components=2, penalties=(10.0,))
    np.testing.assert_allclose(fewer.transform(images), mapped[:, :2], atol=1e-6)  # the first columns
    _, all_maps = linear_baselines(*planted(200, seed=1), components=4, penalties=(10.0,))
    np.testing.assert_allclose(text_maps[10.0].predict(texts), all_maps[10.0].predict(texts)[:, :2], atol=1e-6)
    similarity = predicted @ mapped.T / np.linalg.norm(predicted, axis=1)[:, None] / np.linalg.norm(mapped, axis=1)
    assert (similarity.argmax(axis=1) == np.arange(50)).mean() > 0.95


def test_baseline_is_chosen_on_validation_and_stands_beside_results(people, language_model, monkeypatch):
    settings = [*TINY_SETTINGS, f"language_model={language_model}", "dataset=cuhk-pedes", f"root={people}"]
    config = configs.override(configs.PRESETS["smoke"], settings)
    data = load_dataset("cuhk-pedes", people)

    def baseline():
        torch.manual_seed(0)  # this backbone has no pretrained weights
        return tuned_baseline(config.model, data)

    scores = {}
    for size in (2, 4):
        for penalty in (1.0, 1e3):
            with monkeypatch.context() as patch:  # one choice at a time
                patch.setattr(baselines, "COMPONENTS", (size,))
                patch.setattr(baselines, "PENALTIES", (penalty,))
                alone, _ = baseline()
            scores[size, penalty] = evaluate(alone(data.split("val")))["text_to_image"]["mAP"]
    monkeypatch.setattr(baselines, "COMPONENTS", (2, 4))
    monkeypatch.setattr(baselines, "PENALTIES", (1.0, 1e3))
    embed, told = baseline()
    assert evaluate(embed(data.split("val")))["text_to_image"]["mAP"] == pytest.approx(max(scores.values()))
    assert "the end of what was tried" in told  # there is no penalty between the two
    torch.manual_seed(0)
    rows = notebook.references(config).set_index("variant")
    assert list(rows.index) == ["linear baseline", "chance"]
    found = evaluate(embed(data.split("test")))
    assert rows.loc["linear baseline", "image_to_text_mAP"] == pytest.approx(found["image_to_text"]["mAP"])
    assert rows.loc["chance", "text_to_image_rank_1"] == found["text_to_image"]["chance"]


def test_tsne_keeps_groups_together_and_repeats():
    images, texts = np.random.default_rng(0).normal(size=(2, 60, 8))
    images[:, 0] += 40
    maps = tsne(images, texts, perplexity=10)
    assert [m.shape for m in maps] == [(60, 2), (60, 2)]
    centres = [m.mean(axis=0) for m in maps]
    spread = max(np.linalg.norm(m - c, axis=1).mean() for m, c in zip(maps, centres, strict=True))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    np.testing.assert_array_equal(maps[0], tsne(images, texts, perplexity=10)[0])
    assert tsne(images[:3], texts[:3])[0].shape == (3, 2)


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_chance_is_the_mean_share_of_relevant_items(direction):
    generator = torch.Generator().manual_seed(0)
    labels = [torch.cat([torch.arange(6), torch.randint(6, (n,), generator=generator)]) for n in (14, 27)]
    embeddings = Embeddings(torch.zeros(20, 1), torch.zeros(33, 1), *labels)
    _, gallery, query_labels, gallery_labels = embeddings.direction(direction)
    values = [sum(g == q for g in gallery_labels.tolist()) / len(gallery) for q in query_labels.tolist()]
    assert chance(query_labels, gallery_labels) == pytest.approx(np.mean(values), rel=1e-12)
