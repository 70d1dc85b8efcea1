"""The ceiling of rendered data: rankings worked out by hand, and every order of the tied items as a slow reference."""

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from timam.cli import cli
from timam_lab import notebook
from timam_lab.oracle import fit_features, oracle, ranking_metrics, read_truth


def picture(number, name, *stated, hidden=()):
    return {"id": number, "file_path": name, "hidden": list(hidden), "captions": [{"stated": each} for each in stated]}


LOOKS = [("cap", "none", "red"), ("none", "case", "red"), ("none", "case", "blue"), ("cap", "case", "red")]
PEOPLE = [dict(zip(("hat", "bag", "coat"), look, strict=True)) for look in LOOKS]
PICTURES = [
    picture(1, "a", {"coat": ["red"]}, {"hat": ["cap"], "bag": ["none"]}),
    picture(1, "b", {"hat": ["cap", "hat"]}, hidden=["hat"]),
    picture(2, "c", {"coat": ["red"], "bag": ["case"]}, hidden=["bag"]),
    picture(3, "d", {"coat": ["blue", "green"], "hat": ["none"]}),
    picture(4, "e", {"coat": ["red"]}),
]


def write(folder, images):
    people = [{"id": k, "split": "test" if k < 4 else "train", "attributes": p} for k, p in enumerate(PEOPLE, 1)]
    (folder / "attributes.json").write_text(json.dumps({"identities": people, "images": images}))
    return folder


def test_rankings_by_hand(tmp_path):
    """Test captions against pictures a, b (person 1), c (2), d (3); (contradictions, agreements) of each pair:

    1 red coat         a (0,1)  b (0,1)  c (0,1)  d (1,0)   three tie at the top, two of them right
    1 cap, no bag      a (0,2)  b (0,1)  c (1,0)  d (2,0)   a, then b: right
    1 cap or hat       a (0,1)  b (0,0)  c (1,0)  d (1,0)   a, then b: right (b hides the head)
    2 red coat, case   a (1,1)  b (1,1)  c (0,1)  d (1,1)   c: right
    3 blue or green, bareheaded  a (2,0)  b (1,0)  c (1,1)  d (0,2)   d: right
    """
    root = write(tmp_path, PICTURES)
    against, _, chance = oracle(root)["text_to_image"].values()
    assert (against["rank_1"], against["rank_5"]) == (pytest.approx(4 / 5), 1)
    assert against["mAP"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 4) / 5)
    assert chance["rank_1"] == pytest.approx((3 * 2 / 4 + 2 * 1 / 4) / 5)
    found = oracle(root)["image_to_text"]
    # Best captions (the pairs above, by column). a: "cap, no bag", right. b: "red coat" and "cap, no bag" tie, both
    # right. c: "red coat" of person 1 ties with the right one. d: "blue or green", right.
    assert found["ties_against"]["rank_1"] == pytest.approx(3 / 4)
    assert found["ties_at_random"]["rank_1"] == pytest.approx(3.5 / 4)
    assert oracle(root, "train")["text_to_image"]["ties_against"]["mAP"] == 1
    with pytest.raises(ValueError, match="no pictures in its val split"):
        oracle(root, "val")


def test_contradictions_count_before_agreements():
    stated = dict.fromkeys("abcd", ("1",))
    seen = [{}, {"a": "1"}, {"a": "1", "b": "1", "c": "1", "d": "2"}]
    captions, pictures = fit_features([stated], seen)
    ((hidden, fits_one, fits_three_but_one),) = captions @ pictures.T
    assert fits_one > hidden > fits_three_but_one


def test_expected_metrics_are_the_mean_over_all_orders():
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    for seed in range(6):
        scores, query, hits = np.random.default_rng(seed).integers(3, size=(1, 7)), np.array([seed % 3]), []
        for order in itertools.permutations(range(7)):
            ranked = sorted(order, key=lambda item: -scores[0, item])  # stable: ties stay in this order
            right = labels[ranked] == query[0]
            precision = np.cumsum(right) / np.arange(1, 8)
            hits.append([right[0], right[:5].any(), 1.0, precision[right].mean()])
        found = ranking_metrics(scores, np.eye(7), query, labels)
        np.testing.assert_allclose(list(found["ties_at_random"].values()), np.mean(hits, axis=0), rtol=1e-12)
        np.testing.assert_allclose(list(found["ties_against"].values()), np.min(hits, axis=0), rtol=1e-12)


def test_version_1_is_read(tmp_path):
    wrong = [{"attribute": "coat", "true": "red", "stated": "pink"}]
    image = picture(1, "a", hidden=["bag"]) | {"captions": [{"mentioned": ["hat", "coat"], "wrong": wrong}]}
    (found,) = read_truth(write(tmp_path, [image]))
    assert (found.stated, found.seen) == ([{"hat": ("cap",), "coat": ("pink",)}], {"hat": "cap", "coat": "red"})


def test_command_and_rows_and_sentence_of_notebooks(tmp_path):
    assert not [*notebook.ceilings(tmp_path), *notebook.ceiling_in_words(tmp_path)]  # of other data
    command = ["data", "oracle", "--root", str(write(tmp_path, PICTURES))]
    assert json.loads(CliRunner().invoke(cli, [*command, "--json"]).output) == oracle(tmp_path)
    assert "ties_at_random   rank_1  93.3" in CliRunner().invoke(cli, command).output
    rows = notebook.ceilings(tmp_path)
    assert rows["text_to_image_rank_1"].tolist() == pytest.approx([4 / 5, 14 / 15, 2 / 5])
    assert "80.0% (ties against) to 93.3%" in next(iter(notebook.ceiling_in_words(tmp_path)))
