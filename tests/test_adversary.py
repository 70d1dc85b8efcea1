"""timam_lab.adversary: arms as settings, what is chosen of them, a game of known solution, a planted difference."""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from timam.config import PRESETS, override
from timam.evaluation import Embeddings
from timam_lab import adversary, studies, wordings
from timam_lab.adversary import ARMS, GRID, probe_accuracy, shift_control, what_a_probe_uses


def test_arms_are_settings_all_different_and_one_of_as_many_trials_each():
    for preset in ("quick", "smoke", "paper"):
        assert len(studies.grid(PRESETS[preset], ARMS, [0])) == len(ARMS)
    quick, paper = PRESETS["quick"], PRESETS["paper"]
    assert override(quick, ARMS["regularised game"].split()) == quick
    played = override(paper, ARMS["paper's game, SGD"].split())
    assert override(played, ["matching=cmpm", "temperature=0.02"]) == paper
    tried = adversary.trials(quick, list(ARMS), 5)
    assert {arm: len(e) for arm, e in tried.items()} == {arm: 3 if arm in GRID else 1 for arm in ARMS}
    for arm, experiments in tried.items():
        configs = [e.config for e in experiments]
        assert {c.train.seed for c in configs} == {5}
        assert override(quick, [*ARMS[arm].split(), "seed=5"]) in configs


def test_the_value_with_the_best_validation_score_is_chosen(monkeypatch):
    tried = adversary.trials(PRESETS["quick"], ["MMD", "no adversary"], 0)
    scores = {"discrepancy_weight=1": 0.2, "discrepancy_weight=10": 0.4, "discrepancy_weight=100": 0.4}
    table = lambda experiments, runs: pd.DataFrame(  # noqa: E731
        [{"variant": e.variant, "text_to_image_mAP": scores.get(e.variant, 0.1)} for e in experiments]
    )
    monkeypatch.setattr(adversary, "validation", table)
    settings, found = adversary.chosen(tried, "runs")
    assert override(PRESETS["quick"], settings["MMD"].split()).loss.discrepancy_weight == 10
    assert found[found["chosen"]]["value"].tolist() == ["discrepancy_weight=10", "adversarial_weight=0"]
    assert found["arm"].tolist() == ["MMD"] * 3 + ["no adversary"]


def test_rephrased_captions_are_embedded_once_and_kept(tmp_path, monkeypatch):
    """The test sentences in unseen words, each at the place of the one it rephrases."""
    monkeypatch.setattr(wordings, "rewritten", lambda root, **shares: [["a hat"], ["a bag", "a bag"]])
    test = Embeddings(torch.ones(2, 2), torch.zeros(3, 2), torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    words = torch.arange(6.0).reshape(3, 2)
    model = Mock(encode_texts=Mock(return_value=words))
    config = override(PRESETS["quick"], [f"data.root={tmp_path}"])
    run = Mock(folder=tmp_path, **{"best_model.return_value": model, "test_embeddings.return_value": test,
                                   "config.return_value": config})  # fmt: skip
    assert adversary.rephrased(run) is None  # no rendered people
    (tmp_path / "attributes.json").touch()
    for _ in range(2):
        found = adversary.rephrased(run)
        assert torch.equal(found.texts, words)
        assert torch.equal(found.images, test.images)
    model.encode_texts.assert_called_once_with(["a hat", "a bag", "a bag"])
    (tmp_path / adversary.REPHRASED).unlink()
    monkeypatch.setattr(wordings, "rewritten", lambda *_, **__: [["a hat"]])
    with pytest.raises(ValueError, match="1 test captions, 3"):
        adversary.rephrased(run)


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "low", "high"), [("regularised game", 0, 0.35), ("paper's game, AdamW", 1.0, 100)])
def test_two_halves_of_one_cloud_meet_only_in_the_regularised_game(arm, low, high):
    images = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) + 2
    config = override(PRESETS["quick"], ARMS[arm].split())
    distances = shift_control(config, images, torch.arange(200) % 50, seed=0, steps=400)
    assert distances[0] == 1
    assert low <= np.mean(distances[-50:]) <= high


def test_a_difference_in_a_narrow_direction_is_found_there():
    rng = np.random.default_rng(0)
    widths = np.array([10.0, 5, 1, 1, 1, 1, 1, 0.1])
    rows = torch.from_numpy(rng.normal(size=(2, 300, 8)) * widths).float()
    rows[0, :, 7] += 1.0  # ten standard deviations of the narrowest direction
    labels = torch.arange(300) % 60
    found = what_a_probe_uses(Embeddings(rows[0], rows[1], labels, labels), parts=[2]).iloc[0]
    assert found["variance in the first"] > 0.7
    assert found["distance in the first"] < 0.5
    assert found["probe on the first"] == pytest.approx(0.5, abs=0.1)
    assert found["probe on the last"] > 0.95
    assert probe_accuracy(rows[0].numpy(), rows[1].numpy(), labels.numpy(), labels.numpy()) > 0.95
