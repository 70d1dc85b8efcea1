"""timam_lab.statistics: textbook values, coverage on known distributions, and refused inputs."""

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


def test_mean_interval_by_hand():
    """Mean 3, standard error sqrt(2.5 / 5); the 97.5 % point of t with 4 degrees of freedom is 2.776 (any table)."""
    mean, low, high = mean_interval(np.array([1.0, 2, 3, 4, 5]))
    assert mean == 3
    assert (low, high) == (pytest.approx(3 - 2.776 * 0.5**0.5, abs=1e-3), pytest.approx(3 + 2.776 * 0.5**0.5, abs=1e-3))
    assert mean_interval(np.ones(3)) == (1, 1, 1)
    mean, low, high = mean_interval(np.array([0.25]))
    assert mean == 0.25
    assert np.isnan([low, high]).all()
    for values in ([], [1.0, np.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="one finite number per seed"):
            mean_interval(np.array(values))


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_bootstrap_interval_covers_as_often_as_it_says(confidence):
    # Results whose mean is 0, with as much variance between identities as within. 200 repetitions: three standard
    # errors are 0.11 at 0.5 and 0.05 at 0.95; a percentile interval of 40 identities is itself a few percent short.
    # Resampling single queries would cover less than 0.8 in place of 0.95.
    generator = np.random.default_rng(0)
    hits = []
    for seed in range(200):
        identity = np.repeat(np.arange(40), generator.integers(1, 12, 40))
        values = generator.normal(size=40)[identity] + generator.normal(size=len(identity))
        low, high = bootstrap_interval(values, identity, confidence, resamples=200, seed=seed)
        hits.append(low <= 0 <= high)
    slack = 3 * np.sqrt(confidence * (1 - confidence) / 200) + 0.04
    assert np.mean(hits) == pytest.approx(confidence, abs=slack)


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


def test_paired_over_seeds_by_hand():
    """Differences 1, 2, 3, 4: mean 2.5, deviation 1.291, t = 2.5 / (1.291 / 2) = 3.873, Hedges' factor 1 - 3 / 11."""
    found = paired_over_seeds(np.array([2.0, 4, 6, 8]), np.array([1.0, 2, 3, 4]))
    assert found["difference"] == 2.5
    assert found["p"] == pytest.approx(2 * stats.t.sf(3.873, 3), rel=1e-3)
    assert found["effect_size"] == pytest.approx(2.5 / 1.291 * 8 / 11, rel=1e-3)


def test_smallest_detectable_difference_is_found_in_four_of_five_studies():
    rng = np.random.default_rng(0)
    differences = rng.normal(smallest_detectable(2.0, 5), 2.0, (2000, 5))
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert smallest_detectable(2.0, 20) < 0.5 * smallest_detectable(2.0, 5)
    # Of two comparisons the smaller p has to be below 0.025 (Holm).
    pairs = [("a", "base"), ("b", "base")]
    hits = {name: rng.integers(0, 2, (5, 8)).astype(float) for name in ("a", "b", "base")}
    row = compare(hits, pairs, np.arange(8)).iloc[0]
    deviation = (hits["a"] - hits["base"]).mean(axis=1).std(ddof=1)
    assert row["detectable"] == pytest.approx(smallest_detectable(deviation, 5, alpha=0.025))


def test_differences_that_do_not_vary_and_seeds_that_do_not_pair():
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


def test_identity_interval_is_of_identities_and_averages_the_seeds_first():
    """20 identities of 30 captions each all right or all wrong: the interval must be that of 20, not of 600."""
    rng = np.random.default_rng(0)
    ours = np.repeat(rng.integers(0, 2, 20), 30).astype(float)[None]
    ends, widths = ["identities_low", "identities_high"], []
    for identities in (np.repeat(np.arange(20), 30), np.arange(600)):
        frame = compare({"ours": ours, "wrong": np.zeros_like(ours)}, [("ours", "wrong")], identities)
        widths.append(np.ptp(frame.loc[0, ends].to_numpy(float)))
    assert widths[0] == pytest.approx(2 * 1.96 * ours.std() / 20**0.5, rel=0.15)
    assert widths[0] > 4 * widths[1]
    # One seed's gain is the other's loss at every query: no difference, and none that other identities would give.
    ours = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    frame = compare({"a": ours, "b": 1 - ours}, [("a", "b")], np.array([0, 0, 1, 1]))
    assert frame.loc[0, ends].tolist() == [0, 0]


def made_up(rng, gains, seeds=5, queries=400):
    """Variants whose true rank-1 is 0.4 + gain; identities of four queries."""
    identities = np.repeat(np.arange(queries // 4), 4)
    luck = rng.random((seeds, queries))  # the same queries are hard for every variant
    return {name: (luck < 0.4 + gain).astype(float) for name, gain in gains.items()}, identities


def test_compare_finds_the_gain_that_is_there():
    hits, identities = made_up(np.random.default_rng(0), {"base": 0, "better": 0.2, "same": 0, "worse": -0.1})
    pairs = [("better", "base"), ("same", "base"), ("worse", "base")]
    frame = compare(hits, pairs, identities).set_index("variant")
    assert list(frame.index) == ["better", "same", "worse"]
    assert frame.loc["better", "difference"] == pytest.approx(0.2, abs=0.03)
    assert frame.loc["worse", "seeds_high"] < 0
    assert frame.loc["worse", "identities_high"] < 0
    assert frame.loc["same", "p_holm"] == 1
    assert (frame["p_holm"] >= frame["p"]).all()


def test_holm_by_hand(monkeypatch):
    """0.01, 0.03, 0.02 -> 0.03, then 2 x 0.02 = 0.04, then max(0.04, 0.03) = 0.04."""
    ps = iter([0.01, 0.03, 0.02])
    monkeypatch.setattr("timam_lab.statistics.paired_over_seeds", lambda *_: {"difference": 0.0, "p": next(ps)})
    hits, identities = made_up(np.random.default_rng(0), {"base": 0, "a": 0, "b": 0, "c": 0})
    frame = compare(hits, [(name, "base") for name in "abc"], identities)
    assert frame["p_holm"].tolist() == pytest.approx([0.03, 0.04, 0.04])


def test_compare_of_single_seeds_and_of_nothing():
    hits, identities = made_up(np.random.default_rng(0), {"base": 0, "better": 0.2}, seeds=1)
    frame = compare(hits, [("better", "base")], identities)
    assert frame["p_holm"].isna().all()
    assert frame["identities_low"].notna().all()  # the identities still say something
    assert compare(hits, [], identities).empty


def test_trend_by_hand_and_without_one():
    gains = np.array([[0.0, 0.1, 0.2], [0.1, 0.2, 0.3]])  # both rise by 0.05 a unit
    found = trend(np.array([0.0, 2, 4]), gains)
    assert found["slope"] == pytest.approx(0.05)
    assert found["low"] == pytest.approx(0.05, abs=1e-9)
    flat = trend(np.arange(4.0), np.random.default_rng(0).normal(0, 1, (8, 4)))
    assert flat["low"] < 0 < flat["high"]
    for levels in (np.ones(3), np.arange(2.0)):
        with pytest.raises(ValueError, match=r"expected \(L,\) and \(S, L\)"):
            trend(levels, gains)
