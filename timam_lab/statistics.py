"""Intervals, paired comparisons and corrections for studies with several seeds. Arrays in, numbers out.

A result depends on the seed and on which identities were tested, and the two are looked at apart: over the seeds by
Student's t, over the identities by drawing whole identities (captions of one are not independent). Source: ours, on
scipy and statsmodels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from timam.metrics import bootstrap_interval


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over runs that differ in their seed, and its interval by Student's t.

    Args:
        values: (S,) one result a seed.

    Returns:
        (mean, low, high); low and high are NaN for a single seed, which says nothing about the spread.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values {values.tolist()}: expected one finite number a seed")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def paired_over_seeds(ours: np.ndarray, baseline: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """Two variants that ran with the same seeds: seed by seed, ours - baseline.

    Args:
        ours, baseline: (S,) one result a seed, in the same order.

    Returns:
        difference: its mean.
        seeds_low, seeds_high: interval of the mean by Student's t.
        p: two-sided paired t-test; 1 where all differences are 0.
        effect_size: mean difference in standard deviations of the differences, with Hedges' correction for few
            seeds; infinite where the differences do not vary.

    Raises:
        ValueError: lengths that differ, or values as `mean_interval` refuses.
    """
    ours, baseline = np.asarray(ours, dtype=float), np.asarray(baseline, dtype=float)
    if ours.shape != baseline.shape:
        raise ValueError(f"ours {ours.shape} and baseline {baseline.shape}: expected the same seeds")
    differences = ours - baseline
    mean, low, high = mean_interval(differences, confidence)
    p = effect = float("nan")
    if len(differences) > 1:
        deviation = float(differences.std(ddof=1))
        if deviation > 1e-12 * np.abs(differences).max():  # else rounding
            p = float(stats.ttest_rel(ours, baseline).pvalue)
            effect = mean / deviation * (1 - 3 / (4 * (len(differences) - 1) - 1))
        else:
            p, effect = (0.0, float(np.copysign(np.inf, mean))) if mean else (1.0, 0.0)
    return {"difference": mean, "seeds_low": low, "seeds_high": high, "p": p, "effect_size": effect}


def paired_over_identities(
    ours: np.ndarray, baseline: np.ndarray, identities: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of ours - baseline over the query identities (cluster bootstrap), averaged over the seeds first.

    Args:
        ours, baseline: (S, Q) one result a seed and query, for example 1.0 where the first answer is right.
        identities: (Q,) the identity of each query.

    Returns:
        (low, high): how far the difference would move with other test identities, the training runs as they are.

    Raises:
        ValueError: shapes that do not fit, or fewer than two identities.
    """
    if ours.shape != baseline.shape or ours.ndim != 2:
        raise ValueError(f"ours {ours.shape} and baseline {baseline.shape}: expected the same (seeds, queries)")
    return bootstrap_interval((ours - baseline).mean(axis=0), identities, confidence, seed=seed)


def compare(
    hits: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], identities: np.ndarray, confidence: float = 0.95
) -> pd.DataFrame:
    """Pairs of variants that ran with the same seeds, as one family of comparisons.

    Args:
        hits: variant -> (S, Q), the same seeds and queries in each.
        pairs: (variant, baseline), in the order of the rows.
        identities: (Q,) the identity of each query.

    Returns:
        A row a pair: variant, baseline, what `paired_over_seeds` gives, identities_low and identities_high of
        `paired_over_identities`, and p_holm, the p values corrected for the number of pairs (Holm, 1979).
    """
    rows = []
    for variant, baseline in pairs:
        ours, theirs = hits[variant], hits[baseline]
        low, high = paired_over_identities(ours, theirs, identities, confidence)
        over_seeds = paired_over_seeds(ours.mean(axis=1), theirs.mean(axis=1), confidence)
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
    """How a gain changes with a level that was set: a straight line through each seed's gains, compared over seeds.

    Args:
        levels: (L,) at least two different numbers.
        gains: (S, L) one gain a seed and level.

    Returns:
        slope (mean over the seeds, per unit of level), low, high (Student's t), and p (two-sided, against 0).

    Raises:
        ValueError: shapes that do not fit.
    """
    levels, gains = np.asarray(levels, dtype=float), np.asarray(gains, dtype=float)
    if gains.ndim != 2 or gains.shape[1:] != levels.shape or len(np.unique(levels)) < 2:
        raise ValueError(f"levels {levels.shape} and gains {gains.shape}: expected (L,) and (S, L), L at least 2")
    slopes = np.array([stats.linregress(levels, row).slope for row in gains])
    against_none = paired_over_seeds(slopes, np.zeros_like(slopes), confidence)
    names = {"difference": "slope", "seeds_low": "low", "seeds_high": "high", "p": "p"}
    return {name: against_none[key] for key, name in names.items()}
