"""timam_lab.adversary: games that settings express, the control's known solution, a planted difference found."""

import numpy as np
import pytest
import torch

from timam.config import PRESETS, override
from timam.evaluation import Embeddings
from timam_lab import studies
from timam_lab.adversary import FORMS, probe_accuracy, shift_control, what_a_probe_uses


def test_forms_are_settings_and_all_different():
    assert len(studies.grid(PRESETS["quick"], FORMS, [0])) == len(FORMS)
    quick = PRESETS["quick"]
    assert override(quick, FORMS["regularised game"].split()) == quick


@pytest.mark.slow
@pytest.mark.parametrize(("form", "low", "high"), [("regularised game", 0, 0.35), ("unregularised game", 1.0, 100)])
def test_two_halves_of_one_cloud_meet_only_in_the_regularised_game(form, low, high):
    images = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) + 2
    config = override(PRESETS["quick"], FORMS[form].split())
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
