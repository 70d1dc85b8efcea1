"""Intervals, paired comparisons and corrections for studies with several seeds: arrays in, numbers out.

A result varies with the training seed and with the identities that are tested. Both are reported, separately: over
seeds by Student's t, over identities by a bootstrap that draws whole identities, as captions of one identity are not
independent. All are scipy's and statsmodels' procedures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over runs that differ in their seed, and its interval by Student's t.

    Args:
        values: (S,) one result per seed.

    Returns:
        (mean, low, high); low and high are NaN for a single seed.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values {values.tolist()}: expected one finite number per seed")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))  # t.interval: NaN at sem = 0
    return mean, mean - half, mean + half


def mean_intervals(runs: pd.DataFrame, measures: Iterable[str]) -> dict[str, float]:
    """`mean_interval` of each measure over the rows of `runs`: NAME, NAME_low and NAME_high."""
    intervals = {}
    for name in measures:
        intervals[name], intervals[f"{name}_low"], intervals[f"{name}_high"] = mean_interval(runs[name].to_numpy())
    return intervals


def bootstrap_interval(
    values: np.ndarray, identities: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of values (Q,), one per query, of identities (Q,).

    It resamples whole identities, at least two: captions of one identity are not independent, so resampling single
    queries would give too narrow an interval.
    """
    if values.shape != identities.shape:
        raise ValueError(f"values {values.shape} and identities {identities.shape}: expected the same length")
    _, index = np.unique(identities, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        raise ValueError("one identity: expected at least two to resample")
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def plus_minus(row: pd.Series, name: str, scale: float = 100, digits: int = 1) -> str:
    """A mean of `mean_intervals` as text, by default in percent: "12.3 ± 0.4"; for one seed without ±."""
    half = scale * (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return f"{scale * row[name]:.{digits}f}" + ("" if np.isnan(half) else f" ± {half:.{digits}f}")


def smallest_detectable(deviation: float, seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided paired t-test over `seeds` finds with probability `power`.

    Args:
        deviation: standard deviation of the differences between paired runs.
        seeds: at least 2.
    """
    # The power is a mean over what the standard deviation may be measured as. The noncentral t distribution of scipy
    # is NaN for the large differences that few seeds need.
    measured = np.sqrt(stats.chi2.ppf((np.arange(10_000) + 0.5) / 10_000, seeds - 1) / (seeds - 1))
    bounds = stats.t.ppf(1 - alpha / 2, seeds - 1) * measured

    def lacking(difference: float) -> float:
        shift = difference * seeds**0.5
        return power - float((stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift)).mean())

    return deviation * float(optimize.brentq(lacking, 0, 1e6))


def paired_over_seeds(
    ours: np.ndarray, baseline: np.ndarray, confidence: float = 0.95, comparisons: int = 1
) -> dict[str, float]:
    """Compares two variants that ran with the same seeds by the differences ours - baseline.

    "No difference shown" is not "no difference": `detectable` says what the study could have found, and the interval
    which differences it leaves possible.

    Args:
        ours, baseline: (S,) one result per seed, in the same order.
        comparisons: how many are made together.

    Returns:
        difference: its mean.
        seeds_low, seeds_high: interval of the mean by Student's t.
        p: two-sided paired t-test; 1 where all differences are 0.
        effect_size: mean difference in standard deviations of the differences, with Hedges' correction for few
            seeds; infinite where the differences do not vary, and NaN for two seeds, which say too little.
        detectable: `smallest_detectable` at 80 % power, and at the 5 % level divided by `comparisons`: the level that
            the smallest of their p values has to reach (Holm, 1979).
        All but the difference are NaN for a single seed.

    Raises:
        ValueError: different lengths, or values that `mean_interval` refuses.
    """
    ours, baseline = np.asarray(ours, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != baseline.shape:
        raise ValueError(f"ours {ours.shape} and baseline {baseline.shape}: expected the same seeds")
    differences = ours - baseline
    mean, low, high = mean_interval(differences, confidence)
    p = effect = detectable = float("nan")
    if (count := len(differences)) > 1:
        deviation = float(differences.std(ddof=1))
        if deviation > 1e-12 * np.abs(differences).max():  # otherwise rounding
            p = float(stats.ttest_rel(ours, baseline).pvalue)
            effect = mean / deviation * (1 - 3 / (4 * (count - 1) - 1)) if count > 2 else float("nan")
        else:
            p, effect = (0.0, float(np.copysign(np.inf, mean))) if mean else (1.0, 0.0)
        detectable = smallest_detectable(deviation, count, alpha=0.05 / comparisons)
    return {"difference": mean, "seeds_low": low, "seeds_high": high, "p": p, "effect_size": effect,
            "detectable": detectable}  # fmt: skip


def compare(
    hits: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], identities: np.ndarray, confidence: float = 0.95
) -> pd.DataFrame:
    """Compares pairs of variants that ran with the same seeds, as one family of comparisons.

    Args:
        hits: variant -> (S, Q) result of each seed and query, the same seeds and queries in each.
        pairs: (variant, baseline), in the order of the rows.
        identities: (Q,) the identity of each query.

    Returns:
        One row per pair: variant, baseline, the results of `paired_over_seeds`, identities_low and identities_high
        (bootstrap interval of the difference, averaged over seeds, if other identities had been tested), and p_holm,
        the p values corrected for the number of pairs (Holm, 1979).

    Raises:
        ValueError: shapes that differ, or fewer than two identities.
    """
    rows = []
    for variant, baseline in pairs:
        ours, other = hits[variant], hits[baseline]
        if ours.shape != other.shape or ours.ndim != 2:
            raise ValueError(f"{variant} {ours.shape} and {baseline} {other.shape}: expected the same (seeds, queries)")
        low, high = bootstrap_interval((ours - other).mean(axis=0), identities, confidence)
        over_seeds = paired_over_seeds(ours.mean(axis=1), other.mean(axis=1), confidence, len(pairs))
        rows.append({"variant": variant, "baseline": baseline, **over_seeds, "identities_low": low,
                     "identities_high": high})  # fmt: skip
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["p_holm"] = np.nan
        tested = frame["p"].notna()
        if tested.any():
            frame.loc[tested, "p_holm"] = multipletests(frame.loc[tested, "p"], method="holm")[1]
    return frame


def trend(levels: np.ndarray, gains: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """How a gain changes with the level of a factor: a line is fitted to each seed's gains, slopes are averaged.

    Args:
        levels: (L,) at least two different numbers.
        gains: (S, L) one gain per seed and level.

    Returns:
        slope (mean over the seeds, per unit of level), low, high (Student's t), and p (two-sided, against 0).

    Raises:
        ValueError: shapes that do not fit.
    """
    levels, gains = np.asarray(levels, dtype=float), np.asarray(gains, dtype=float)
    if gains.ndim != 2 or gains.shape[1:] != levels.shape or len(np.unique(levels)) < 2:
        raise ValueError(f"levels {levels.shape} and gains {gains.shape}: expected (L,) and (S, L), L at least 2")
    slopes = np.array([stats.linregress(levels, row).slope for row in gains])
    fit = paired_over_seeds(slopes, np.zeros_like(slopes), confidence)
    return {"slope": fit["difference"], "low": fit["seeds_low"], "high": fit["seeds_high"], "p": fit["p"]}
