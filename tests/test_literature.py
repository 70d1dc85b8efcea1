"""timam_lab.literature: verdicts follow from the numbers, in both directions."""

import numpy as np
import pandas as pd
import pytest
import torch

from timam.evaluation import Embeddings
from timam_lab import literature
from timam_lab.literature import AGREES, ALONE, DISAGREES, GAME, OPEN, Findings
from timam_lab.measures import CORRECTIONS, MEASURES


def findings(changes: dict[tuple[str, str], dict[str, float]], spread: float = 0.001, before: float = 1.0) -> Findings:
    """Runs of three seeds that are all alike but for `changes` of (variant, correction)."""
    rows = []
    for variant in (ALONE, GAME, "MMD"):
        for correction in CORRECTIONS:
            for seed in range(3):
                row = dict.fromkeys(MEASURES, 0.5 + spread * seed * (variant != ALONE or correction != "none"))
                row |= {"mixed_parity": 0.33, **changes.get((variant, correction), {})}
                rows.append({"variant": variant, "correction": correction, "seed": seed, **row})
    images, texts = torch.ones(4, 40), torch.ones(4, 40)
    texts[:, 0] = 3.0
    trained = Embeddings(images, texts, torch.arange(4), torch.arange(4))
    return Findings(pd.DataFrame(rows), {"probe_accuracy": before, "centroid_distance": 0.8}, trained)


def verdicts(f: Findings) -> dict[str, str]:
    table = literature.compared(f)
    assert len(table) == 8
    return dict(zip(table["work"].str[:7], table["verdict"], strict=True))


def test_a_gain_and_its_absence():
    same = {"text_to_image_rank_1": 0.5, "text_to_image_mAP": 0.5}
    better = {"mixed_right_picture": 0.7, "clusters": 0.6, "rank_1_1_bit": 0.6, "rank_1_noise": 0.6}
    ours = {(ALONE, "mean subtracted"): same | better,
            (ALONE, "none"): {"probe_accuracy": 1.0, "centroid_distance": 0.6},
            (ALONE, "standardised"): {"probe_accuracy": 0.5, "nonlinear_probe_accuracy": 0.5, "centroid_distance": 0.1},
            (GAME, "none"): {"text_to_image_mAP": 0.6, "centroid_distance": 0.2}}  # fmt: skip
    found = verdicts(findings(ours))
    works = ("Liang e", "Schrodi", "Yaras e", "I0T, AC", "GR-CLIP", "2601.18", "Chowers")
    assert [found[work] for work in works] == [AGREES] * 7
    ours[ALONE, "none"]["centroid_distance"] = 0.3  # less than half of the first 0.8
    assert verdicts(findings(ours))["Liang e"] == "in part"
    ours[ALONE, "mean subtracted"] = {"mixed_right_picture": 0.4, "clusters": 0.4, "text_to_image_mAP": 0.7}
    ours[GAME, "none"] = {"text_to_image_mAP": 0.4}
    ours[ALONE, "standardised"] = {"probe_accuracy": 0.9, "nonlinear_probe_accuracy": 0.9, "centroid_distance": 0.6}
    found = verdicts(findings(ours, before=0.6))
    assert [found[w] for w in ("Liang e", "Yaras e", "I0T, AC", "GR-CLIP", "2601.18")] == [DISAGREES] * 5


def test_wide_intervals_show_nothing_and_one_seed_too():
    f = findings({}, spread=0.2)
    assert verdicts(f)["GR-CLIP"] == verdicts(f)["Yaras e"] == OPEN
    one = Findings(f.measured[f.measured["seed"] == 0], f.before, f.trained)
    assert verdicts(one)["GR-CLIP"] == OPEN
    assert "to" not in literature.points(one.change("mixed_rank_1", (ALONE, "mean subtracted")))
    few = Findings(f.measured[f.measured["variant"] == ALONE], f.before, f.trained)
    assert verdicts(few)["Yaras e"] == "not played"


def test_a_change_in_words():
    change = pd.Series({"difference": 0.0123, "seeds_low": -0.01, "seeds_high": 0.0346})
    assert literature.points(change) == "+1.2 points (-1.0 to +3.5)"
    assert literature.both(AGREES, DISAGREES) == "in part"
    assert literature.both(OPEN, DISAGREES) == OPEN


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (-0.004, 0.009, AGREES), (0.01, 0.03, DISAGREES), (-0.03, -0.001, DISAGREES), (-0.01, 0.03, OPEN),
    (np.nan, np.nan, OPEN),
])  # fmt: skip
def test_equality_needs_a_narrow_interval(low, high, verdict):
    assert literature.no_change(pd.Series({"seeds_low": low, "seeds_high": high})) == verdict
