"""Notebook 10 beside what is published on the modality gap: each claim, what was measured here, and whether it agrees.

Nothing here knows a result: every number and every verdict follows from the measured runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch.nn.functional as F

from timam.evaluation import Embeddings
from timam_lab.measures import differences, related

ALONE, GAME, SUBTRACTED = "no adversary", "regularised game", "mean subtracted"
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "nothing shown"
SMALL = 0.01  # a difference of rank-1 or mAP that would not matter


@dataclass(frozen=True)
class Findings:
    """What the claims are compared with."""

    measured: pd.DataFrame  # a row per run and correction: variant, correction, seed, `timam_lab.measures.MEASURES`
    before: dict[str, float]  # `timam.gap.modality_gap` of an untrained model
    trained: Embeddings  # of a run without an adversary

    def mean(self, measure: str, correction: str = "none", variant: str = ALONE) -> float:
        rows = self.measured[(self.measured["variant"] == variant) & (self.measured["correction"] == correction)]
        return float(rows[measure].mean())

    def change(self, measure: str, ours: tuple[str, str], baseline: tuple[str, str] = (ALONE, "none")) -> pd.Series:
        """Ours minus the baseline, as `timam_lab.statistics.paired_over_seeds`."""
        return differences(self.measured, ours, baseline, [measure]).iloc[0]

    @property
    def arms(self) -> pd.DataFrame:
        """The mean over the seeds of each arm, uncorrected."""
        plain = self.measured[self.measured["correction"] == "none"]
        return plain.groupby("variant", sort=False).mean(numeric_only=True)


def points(change: pd.Series) -> str:
    """A change of a fraction in percentage points, with its interval over seeds where there are several."""
    interval = "" if np.isnan(change["seeds_low"]) else " ({:+.1f} to {:+.1f})".format(
        100 * change["seeds_low"], 100 * change["seeds_high"])  # fmt: skip
    return f"{100 * change['difference']:+.1f} points{interval}"


def gain(change: pd.Series) -> str:
    """Whether a claimed gain is seen: its interval is above 0; or none worth having is left possible; or neither."""
    if change["seeds_low"] > 0:
        return AGREES
    return DISAGREES if change["seeds_high"] < SMALL else OPEN


def no_change(change: pd.Series) -> str:
    """Whether a claimed equality is seen: all but a small difference is excluded; or 0 is; or neither."""
    if max(-change["seeds_low"], change["seeds_high"]) < SMALL:
        return AGREES
    return DISAGREES if change["seeds_low"] * change["seeds_high"] > 0 else OPEN


def both(*verdicts: str) -> str:
    """Of a claim with parts: agrees only where each does."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "in part" if AGREES in verdicts else OPEN if OPEN in verdicts else DISAGREES


def _liang(f: Findings) -> tuple[str, str]:
    before, after = f.before["probe_accuracy"], f.mean("probe_accuracy")
    distances = f"centroid distance {f.before['centroid_distance']:.2f}, then {f.mean('centroid_distance'):.2f}"
    kept = before > 0.9 and after > 0.9, f.mean("centroid_distance") > 0.5 * f.before["centroid_distance"]
    verdict = both(*(AGREES if seen else DISAGREES for seen in kept))
    return f"linear probe {before:.1%} before training, {after:.1%} after; {distances}", verdict


def _schrodi(f: Findings) -> tuple[str, str]:
    images, texts = (F.normalize(e, dim=1).mean(dim=0).numpy() for e in (f.trained.images, f.trained.texts))
    parts = np.sort((images - texts) ** 2)[::-1]
    few = max(1, len(parts) // 20)
    share = float(parts[:few].sum() / parts.sum())
    text = f"the {few} of {len(parts)} coordinates that differ most carry {share:.0%} of the squared distance"
    return text, AGREES if share > 0.5 else DISAGREES


def _yaras(f: Findings) -> tuple[str, str]:
    change = f.change("text_to_image_mAP", (GAME, "none"))
    nearer = f.mean("centroid_distance", variant=GAME) < f.mean("centroid_distance")
    return f"mAP by the regularised game, which {'narrows' if nearer else 'widens'} it: {points(change)}", gain(change)


def _i0t(f: Findings) -> tuple[str, str]:
    distance, probe = (f.mean(m, "standardised") for m in ("centroid_distance", "probe_accuracy"))
    kernel = f.mean("nonlinear_probe_accuracy", "standardised")
    closed = [AGREES if distance < 0.5 * f.mean("centroid_distance") else DISAGREES]
    closed += [AGREES if p < 0.6 else DISAGREES for p in (probe, kernel)]
    text = f"centroid distance {f.mean('centroid_distance'):.2f} to {distance:.2f}, linear probe {probe:.0%}"
    return f"{text}, kernel probe {kernel:.0%}", both(*closed)


def _gr_clip(f: Findings) -> tuple[str, str]:
    right_picture, any_item = (f.change(m, (ALONE, SUBTRACTED)) for m in ("mixed_right_picture", "mixed_rank_1"))
    shares = [f.mean("mixed_pictures", c) for c in ("none", SUBTRACTED)]
    pictures = f"pictures among the first ten {shares[0]:.0%} to {shares[1]:.0%}, parity {f.mean('mixed_parity'):.0%}"
    return f"a right picture among the first ten {points(right_picture)}, rank-1 {points(any_item)}; {pictures}", gain(
        right_picture
    )


def _clustering(f: Findings) -> tuple[str, str]:
    retrieval, groups = (f.change(m, (ALONE, SUBTRACTED)) for m in ("text_to_image_mAP", "clusters"))
    text = f"mAP by mean subtraction {points(retrieval)}; clusters {points(groups)} of mutual information"
    return text, both(no_change(retrieval), gain(groups))


def _chowers(f: Findings) -> tuple[str, str]:
    accuracy = f.change("text_to_image_rank_1", (ALONE, SUBTRACTED))
    robust = [f.change(m, (ALONE, SUBTRACTED)) for m in ("rank_1_1_bit", "rank_1_noise")]
    parts = [f"{name} {points(c)}" for name, c in zip(("at 1 bit", "with noise"), robust, strict=True)]
    text = f"rank-1 by mean subtraction {points(accuracy)}; {', '.join(parts)}"
    return text, both(no_change(accuracy), *map(gain, robust))


def _distribution(f: Findings) -> tuple[str, str]:
    arms = f.arms[~f.arms.index.str.startswith("CMPM")]  # the matching loss changes both the gap and the retrieval
    correlations = related(arms, ["mmd_squared", "centroid_distance"], ["text_to_image_mAP"])
    (mmd, p), (centroid, _) = correlations[["text_to_image_mAP", "text_to_image_mAP_p"]].to_numpy(float)
    text = f"rank correlation with mAP over {len(arms)} arms: MMD² {mmd:+.2f} (p = {p:.2f}), centroids {centroid:+.2f}"
    predicts = p < 0.05 and abs(mmd) > abs(centroid)
    return text, AGREES if predicts else OPEN


WORKS: dict[str, tuple[str, Callable[[Findings], tuple[str, str]]]] = {
    "Liang et al., NeurIPS 2022": ("a gap is there from the start, and contrastive training keeps it", _liang),
    "Schrodi et al., ICLR 2025": ("few dimensions carry the gap", _schrodi),
    "Yaras et al., CPAL 2025": ("closing the gap helps retrieval", _yaras),
    "I0T, ACL 2025": ("standardising after training removes the gap", _i0t),
    "GR-CLIP, 2025 (2507.19054)": ("mean subtraction gains much in galleries of both modalities", _gr_clip),
    "2601.18525": ("the gap hardly matters for retrieval; it does for clustering", _clustering),
    "Chowers et al., CVPR 2026": ("closing the gap buys robustness, not accuracy", _chowers),
    "2604.00279": ("the distance of the distributions predicts results, that of the centroids less", _distribution),
}


def compared(findings: Findings) -> pd.DataFrame:
    """One row per work: work, claim, here (what was measured), verdict; "not played" where an arm is absent."""
    rows = []
    for work, (claim, compare) in WORKS.items():
        missing = compare is _yaras and GAME not in findings.arms.index
        here, verdict = ("", "not played") if missing else compare(findings)
        rows.append({"work": work, "claim": claim, "here": here, "verdict": verdict})
    return pd.DataFrame(rows)
