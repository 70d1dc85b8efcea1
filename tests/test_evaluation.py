"""A split's embeddings in both directions, and chance level against a closed form and a simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from timam.data import Split
from timam.evaluation import Embeddings, chance, embed_split, evaluate, frozen_features, gap, per_query


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


def test_evaluate_both_directions_by_hand(embeddings):
    results = evaluate(embeddings)
    assert list(results) == ["text_to_image", "image_to_text"]
    text, image = results["text_to_image"], results["image_to_text"]
    assert (text["queries"], text["gallery"], image["queries"], image["gallery"]) == (5, 3, 3, 5)
    assert (text["rank_1"], text["rank_5"], image["rank_1"]) == (3 / 5, 1.0, 1.0)
    # AP: x.x 5/6, .xx 7/12, x.x 5/6, x.. 1, .x. 1/2; INP: 2/3, 2/3, 2/3, 1, 1/2.
    assert text["mAP"] == pytest.approx((5 / 6 + 7 / 12 + 5 / 6 + 1 + 1 / 2) / 5, rel=1e-6)
    assert text["mINP"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 1 + 1 / 2) / 5, rel=1e-6)
    # xx..x, x..x., x..xx: AP (1 + 1 + 3/5) / 3, (1 + 2/4) / 2, (1 + 2/4 + 3/5) / 3.
    assert image["mAP"] == pytest.approx((2.6 / 3 + 1.5 / 2 + 2.1 / 3) / 3, rel=1e-6)
    assert image["mINP"] == pytest.approx((3 / 5 + 2 / 4 + 3 / 5) / 3, rel=1e-6)


def test_per_query_keeps_the_order_of_the_queries(embeddings):
    result = per_query(embeddings, "text_to_image")
    assert result["rank"].tolist() == [1, 2, 1, 1, 2]
    assert result["identity"].tolist() == [0, 0, 0, 1, 1]
    assert per_query(embeddings, "image_to_text")["identity"].tolist() == [0, 1, 0]


def test_embeddings_survive_a_file(embeddings, tmp_path):
    embeddings.save(tmp_path / "test.safetensors")
    again = Embeddings.load(tmp_path / "test.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(vars(embeddings).values(), vars(again).values(), strict=True))


def random_embeddings(images: int, texts: int, identities: int, seed: int = 0) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    every = torch.arange(identities)  # each identity at least once on either side
    return Embeddings(
        images=torch.randn(images, 8, generator=generator),
        texts=torch.randn(texts, 8, generator=generator),
        image_labels=torch.cat([every, torch.randint(identities, (images - identities,), generator=generator)]),
        text_labels=torch.cat([every, torch.randint(identities, (texts - identities,), generator=generator)]),
    )


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
@pytest.mark.parametrize("k", [1, 3, 10, 100])
def test_chance_equals_the_closed_form(direction, k):
    embeddings = random_embeddings(images=20, texts=33, identities=6)
    _, gallery, query_labels, gallery_labels = embeddings.direction(direction)
    values = []
    for label in query_labels.tolist():
        positives = sum(g == label for g in gallery_labels.tolist())
        drawn = min(k, len(gallery))  # math.comb is 0 where fewer negatives are left than are drawn
        values.append(1 - math.comb(len(gallery) - positives, drawn) / math.comb(len(gallery), drawn))
    assert chance(embeddings, direction, k) == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_chance_is_what_random_embeddings_reach(direction):
    found = [evaluate(random_embeddings(12, 20, 5, seed=0))[direction]["rank_5"]]
    labels = random_embeddings(12, 20, 5)
    for seed in range(1, 200):
        drawn = random_embeddings(12, 20, 5, seed=seed)
        shuffled = Embeddings(drawn.images, drawn.texts, labels.image_labels, labels.text_labels)
        found.append(evaluate(shuffled)[direction]["rank_5"])
    # Queries of one draw share a gallery; the standard error of the mean over draws is measured, about 0.01.
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(chance(labels, direction, 5), abs=4 * error)


def test_gap_passes_images_and_texts_in_order():
    # Texts at one place, images at another: told apart, whichever labels; 2-D at 0 and 90 degrees: sqrt(2) apart.
    labels = torch.arange(20) // 4
    found = gap(Embeddings(unit(*[0.0] * 20), unit(*[90.0] * 20), labels, labels))
    assert found["centroid_distance"] == pytest.approx(math.sqrt(2), rel=1e-6)
    assert found["probe_accuracy"] == 1.0


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


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_embed_split_is_encode_images_and_encode_texts(tiny_model, split, batch_size):
    model = tiny_model().train()
    data, pixels = split
    pixels.setflags(write=False)  # as a memory-mapped store is
    found = embed_split(model, data, pixels, batch_size)
    torch.testing.assert_close(found.images, model.encode_images(list(torch.from_numpy(pixels.copy()))))
    torch.testing.assert_close(found.texts, model.encode_texts(CAPTIONS))
    assert found.image_labels.tolist() == [1, 0, 1]
    assert found.text_labels.tolist() == [1, 1, 0, 1]
    assert model.training  # as it was before


def test_frozen_features_are_means_over_real_words(tiny_model, split):
    model = tiny_model()
    data, pixels = split
    images, texts = frozen_features(model, data, pixels, batch_size=2)
    assert images.shape == (3, 512)  # ResNet-18's channels
    assert texts.shape == (4, 16)  # the language model's width
    model.eval()
    for caption, found in zip(CAPTIONS, texts, strict=True):  # one at a time: no padding at all
        with torch.no_grad():
            states = model.text_encoder.word_states(*model.tokenize([caption]))
        np.testing.assert_allclose(found, states[0].mean(dim=0).numpy(), atol=1e-3)  # kept in half precision
