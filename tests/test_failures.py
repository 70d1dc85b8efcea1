"""Wrong answers, planted faults of sentences and models, and explanations of models that are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from timam.data import load_dataset
from timam.evaluation import Embeddings, per_query
from timam_lab.explanations import occlusion_map, word_effects
from timam_lab.failures import MISLED, MISTAKEN, UNDECIDED, PedestrianTruth, wrong_answers
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians


def test_wrong_answers_are_those_that_the_metrics_count():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    embeddings = Embeddings(images, texts, torch.arange(40) % 12, torch.arange(90) % 12)
    frame, rank = wrong_answers(embeddings), per_query(embeddings, "text_to_image")["rank"]
    assert set(frame["query"]) == set(np.flatnonzero(rank > 1))
    assert (frame["right_rank"].to_numpy() == rank[frame["query"]]).all()
    assert frame["right_rank"].is_monotonic_decreasing
    similarity = F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T
    relevant = embeddings.text_labels[:, None] == embeddings.image_labels
    first, right = (each.max(dim=1) for each in (similarity, similarity.where(relevant, -1)))
    for row in frame.to_dict("records"):
        query = row["query"]
        assert (row["retrieved"], row["right"]) == (first.indices[query], right.indices[query])
        assert row["score"] == pytest.approx(first.values[query].item())
        assert row["margin"] == pytest.approx((first.values - right.values)[query].item())
    equal = Embeddings(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4), torch.arange(4))
    assert len(wrong_answers(equal)) == 4


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory):
    root = tmp_path_factory.mktemp("pedestrians") / "data"
    spec = PedestrianSpec(train_identities=1, val_identities=1, test_identities=12, height=64, width=32, mistake=0.2)
    render_pedestrians(root, spec, workers=1, progress=False)
    split = load_dataset("pedestrians", root).split("test")
    return split, PedestrianTruth(root, split)


def test_faults_are_sorted_by_who_fits_the_sentence(pedestrians, monkeypatch):
    split, truth = pedestrians
    # All sentences describe the first picture. The third one hides the head, which contradicts nothing.
    monkeypatch.setattr(truth, "seen", [{"headwear": "cap"}, {"headwear": "none"}, {}])
    monkeypatch.setattr(truth, "stated", [{"headwear": (value,)} for value in ("cap", "cap", "none")])
    frame = pd.DataFrame({"query": [0, 1, 2], "retrieved": [1, 2, 1]})
    found = truth.sort(frame, replace(split, caption_image=np.zeros(3, int)))
    assert found["kind"].tolist() == [MISTAKEN, UNDECIDED, MISLED]
    assert found["contradicted"].tolist() == [["headwear"], [], []]
    assert found["untrue"].tolist() == [[], [], ["headwear"]]


def test_confusions_of_random_answers_are_at_chance(pedestrians):
    split, truth = pedestrians
    generator = np.random.default_rng(0)
    queries = np.repeat(np.arange(len(split.captions)), 40)
    frame = pd.DataFrame({"query": queries, "retrieved": generator.integers(len(split.image_paths), size=len(queries))})
    table = truth.confusions(frame).set_index("attribute")
    assert table.loc["gender", "ratio"] == pytest.approx(1, abs=0.1)
    assert table["stated"].is_monotonic_decreasing
    assert table["low"].lt(table["chance"]).sum() >= 0.8 * len(table)  # chance is in nearly all of the intervals
    assert table["high"].gt(table["chance"]).sum() >= 0.8 * len(table)
    described = truth.confusions(frame.assign(retrieved=split.caption_image[queries]))
    assert described["retrieved"].max() < 0.6  # its own pictures: only the sentences' mistakes, one in five


class Known:
    """A model whose similarities are known: the share of red in a picture's upper left, the word red in a text."""

    def encode_texts(self, texts):
        return torch.tensor([[1.0, 1.0 if "red" in t.split() else 0.0] for t in texts])

    def encode_images(self, images):
        corner = torch.stack([i[0, : i.shape[1] // 2, : i.shape[2] // 2].float().mean() / 255 for i in images])
        return torch.stack([torch.ones_like(corner), corner], dim=1)


def test_word_that_matters_is_found():
    frame = word_effects(Known(), "a red coat", torch.tensor([0.0, 1.0]))
    assert frame["word"].tolist() == ["a", "red", "coat"]
    np.testing.assert_allclose(frame["effect"], [0, 0.5**0.5, 0], atol=1e-6)
    assert word_effects(Known(), "red", torch.tensor([0.0, 1.0])).empty


def test_region_that_matters_is_found():
    pixels = torch.zeros(3, 48, 24, dtype=torch.uint8)
    pixels[0] = 255
    found = occlusion_map(Known(), pixels, torch.tensor([0.0, 1.0]))
    assert found.shape == (12, 6)
    assert (found[:6, :3] > 0.001).all()
    np.testing.assert_allclose(found[7:, :], 0, atol=1e-6)
    np.testing.assert_allclose(found[:, 4:], 0, atol=1e-6)
