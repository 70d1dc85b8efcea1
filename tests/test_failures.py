"""Wrong answers by hand, planted faults of sentences and models, and explanations of models that are known."""

import json

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


def test_wrong_answers_by_hand():
    angles = torch.tensor([0.0, 30.0, 80.0]).deg2rad()
    images = torch.stack([angles.cos(), angles.sin()], dim=1)
    texts = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    frame = wrong_answers(Embeddings(images, texts, torch.tensor([0, 1, 2]), torch.tensor([0, 2])))
    (row,) = frame.to_dict("records")  # the first sentence is answered right
    assert (row["query"], row["retrieved"], row["right"], row["right_rank"]) == (1, 0, 2, 3)
    assert row["score"] == pytest.approx(1.0)
    assert row["margin"] == pytest.approx(1 - np.cos(np.deg2rad(80)))


def test_wrong_answers_are_those_that_the_metrics_count():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    embeddings = Embeddings(images, texts, torch.arange(40) % 12, torch.arange(90) % 12)
    frame, rank = wrong_answers(embeddings), per_query(embeddings, "text_to_image")["rank"]
    assert set(frame["query"]) == set(np.flatnonzero(rank > 1))
    assert (frame["right_rank"].to_numpy() == rank[frame["query"]]).all()
    assert frame["right_rank"].is_monotonic_decreasing
    similarity = F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T
    assert (frame["retrieved"].to_numpy() == similarity.argmax(dim=1).numpy()[frame["query"]]).all()
    equal = Embeddings(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4), torch.arange(4))
    assert len(wrong_answers(equal)) == 4


# -- pedestrians ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pedestrians(tmp_path_factory):
    root = tmp_path_factory.mktemp("pedestrians") / "data"
    spec = PedestrianSpec(train_identities=1, val_identities=1, test_identities=12, height=64, width=32, mistake=0.2)
    render_pedestrians(root, spec, workers=1, progress=False)
    split = load_dataset("pedestrians", root).split("test")
    return root, split, PedestrianTruth(root, split)


def test_truth_says_what_the_files_say(pedestrians):
    root, split, truth = pedestrians
    content = json.loads((root / "attributes.json").read_text())
    images = {i["file_path"]: i for i in content["images"]}
    assert len(truth.seen) == len(split.image_paths)
    assert len(truth.stated) == len(split.captions)
    mistakes = 0
    for query, (text, picture) in enumerate(zip(split.captions, split.caption_image, strict=True)):
        image = images["/".join(split.image_paths[picture].parts[-2:])]
        (caption,) = [c for c in image["captions"] if c["text"] == text]
        assert truth.stated[query] == {name: tuple(values) for name, values in caption["stated"].items()}
        wrong = {w["attribute"] for w in caption["wrong"]}
        assert set(truth.contradicted(query, picture)) <= wrong
        mistakes += len(wrong)
    assert mistakes > 5


def test_faults_are_sorted_by_who_fits_the_sentence(pedestrians, monkeypatch):
    _, split, truth = pedestrians
    contradictions = [len(truth.contradicted(q, picture)) for q, picture in enumerate(split.caption_image)]
    clean, untrue = contradictions.index(0), next(q for q, n in enumerate(contradictions) if n)
    other = next(p for p in range(len(split.image_paths)) if len(truth.contradicted(clean, p)) > 2)
    as_described = {name: values[0] for name, values in truth.stated[untrue].items()}
    monkeypatch.setattr(truth, "seen", [*truth.seen, as_described, {"bag": "none"}])
    monkeypatch.setattr(truth, "stated", [*truth.stated, {"bag": ("handbag",), "shoes": ("boots",)}])
    assert truth.contradicted(-1, -1) == ["bag"]  # what is hidden contradicts nothing
    frame = pd.DataFrame({"query": [clean, clean, untrue],
                          "retrieved": [other, split.caption_image[clean], len(truth.seen) - 2]})  # fmt: skip
    found = truth.sort(frame, split)
    # The second: a picture that fits as well as the described one.
    assert found["kind"].tolist() == [MISTAKEN, UNDECIDED, MISLED]
    assert found["contradicted"].tolist()[::2] == [truth.contradicted(clean, other), []]
    assert found["untrue"].iloc[2]


def test_confusions_of_random_answers_are_at_chance(pedestrians):
    _, split, truth = pedestrians
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


# -- what the model looked at -----------------------------------------------------------------------------------


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
