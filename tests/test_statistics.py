"""timam_lab.statistics: textbook values and refused inputs."""

import numpy as np
import pytest
from scipy import stats

from timam_lab.statistics import (
    bootstrap_interval,
    compare,
    mean_interval,
    paired_over_seeds,
    smallest_detectable,
    trend,
)


def test_mean_interval_of_equal_values_and_refused_ones():
    assert mean_interval(np.ones(3)) == (1, 1, 1)
    for values in ([], [1.0, np.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="one finite number per seed"):
            mean_interval(np.array(values))


def test_bootstrap_interval_is_of_the_mean_over_queries_and_repeats_with_its_seed():
    # Identity 0 has one query of value 1, identity 1 three of value 0. Resamples: (0,0): 1, (0,1) and (1,0): 1/4,
    # (1,1): 0, so the middle half, from the quartiles, is [0.25 or less, 0.25 or more]; a mean of identities' means
    # would give 0.5.
    values, identity = np.array([1.0, 0, 0, 0]), np.array([7, 3, 3, 3])
    assert bootstrap_interval(values, identity, confidence=0.3) == pytest.approx((0.25, 0.25))
    assert bootstrap_interval(values, identity, confidence=0.95) == pytest.approx((0.0, 1.0))
    values, identity = np.random.default_rng(2).normal(size=60), np.arange(60)
    found = bootstrap_interval(values, identity, seed=3)
    assert found == bootstrap_interval(values, identity, seed=3) != bootstrap_interval(values, identity, seed=4)
    with pytest.raises(ValueError, match=r"\(2,\) and identities \(3,\)"):
        bootstrap_interval(np.ones(2), np.zeros(3))
    with pytest.raises(ValueError, match="one identity"):
        bootstrap_interval(np.ones(3), np.zeros(3))


@pytest.mark.parametrize(("seeds", "alpha"), [(5, 0.05), (5, 0.05 / 14), (3, 0.05 / 15), (2, 0.01)])
def test_smallest_detectable_difference_is_found_in_four_of_five_studies(seeds, alpha):
    rng = np.random.default_rng(0)
    differences = rng.normal(smallest_detectable(2.0, seeds, alpha=alpha), 2.0, (2000, seeds))
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue < alpha).mean() == pytest.approx(0.8, abs=0.03)


def test_what_several_comparisons_could_detect():
    # Of two comparisons the smaller p has to be below 0.025 (Holm).
    hits = {name: np.random.default_rng(i).random((5, 8)).round() for i, name in enumerate(("a", "b", "base"))}
    row = compare(hits, [("a", "base"), ("b", "base")], np.arange(8)).iloc[0]
    deviation = (hits["a"] - hits["base"]).mean(axis=1).std(ddof=1)
    assert row["detectable"] == pytest.approx(smallest_detectable(deviation, 5, alpha=0.025))


def test_paired_over_seeds_by_hand():
    """Differences 1, 2, 3, 4: mean 2.5, deviation 1.291, t = 2.5 / (1.291 / 2) = 3.873, Hedges' factor 1 - 3 / 11."""
    found = paired_over_seeds(np.array([2.0, 4, 6, 8]), np.array([1.0, 2, 3, 4]))
    assert found["difference"] == 2.5
    assert found["p"] == pytest.approx(2 * stats.t.sf(3.873, 3), rel=1e-3)
    assert found["effect_size"] == pytest.approx(2.5 / 1.291 * 8 / 11, rel=1e-3)
    assert np.isnan(paired_over_seeds(np.array([2.0, 4]), np.array([1.0, 2]))["effect_size"])
    assert np.isnan(paired_over_seeds(np.array([2.0, 4]), np.array([1.0, 2]))["effect_size"])
    same = paired_over_seeds(np.ones(3), np.ones(3))
    assert (same["difference"], same["p"], same["effect_size"]) == (0, 1, 0)
    always = paired_over_seeds(np.zeros(3), np.ones(3))
    assert (always["difference"], always["p"], always["effect_size"]) == (-1, 0, -np.inf)
    one = paired_over_seeds(np.ones(1), np.zeros(1))
    assert one.pop("difference") == 1
    assert np.isnan(list(one.values())).all()
    with pytest.raises(ValueError, match="expected the same seeds"):
        paired_over_seeds(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match=r"\(seeds, queries\)"):
        compare({"a": np.ones((2, 4)), "b": np.ones((1, 4))}, [("a", "b")], np.array([0, 0, 1, 1]))


def test_identity_interval_is_of_the_difference_averaged_over_seeds():
    # One seed's gain is the other's loss at every query: no difference, and none that other identities would give.
    ours = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    frame = compare({"a": ours, "b": 1 - ours}, [("a", "b")], np.array([0, 0, 1, 1]))
    assert frame.loc[0, ["identities_low", "identities_high"]].tolist() == [0, 0]


def test_holm_by_hand(monkeypatch):
    """0.01, 0.03, 0.02 -> 0.03, then 2 x 0.02 = 0.04, then max(0.04, 0.03) = 0.04."""
    ps = iter([0.01, 0.03, 0.02])
    monkeypatch.setattr("timam_lab.statistics.paired_over_seeds", lambda *_: {"difference": 0.0, "p": next(ps)})
    hits, identities = dict.fromkeys(("base", "a", "b", "c"), np.ones((2, 8))), np.arange(8)
    frame = compare(hits, [(name, "base") for name in "abc"], identities)
    assert frame["p_holm"].tolist() == pytest.approx([0.03, 0.04, 0.04])
    assert compare(hits, [], identities).empty


def test_trend_by_hand():
    gains = np.array([[0.0, 0.1, 0.2], [0.1, 0.2, 0.3]])  # both rise by 0.05 a unit
    found = trend(np.array([0.0, 2, 4]), gains)
    assert found["slope"] == pytest.approx(0.05)
    assert found["low"] == pytest.approx(0.05, abs=1e-9)
    for levels in (np.ones(3), np.arange(2.0)):
        with pytest.raises(ValueError, match=r"expected \(L,\) and \(S, L\)"):
            trend(levels, gains)
