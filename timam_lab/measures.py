"""What is measured of an embedded split in notebook 10: retrieval, the gap, mixed galleries, clusters, robustness.

Every measure is taken of embeddings as they are and of the same embeddings corrected after training (`CORRECTIONS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pandas.io.formats.style import Styler
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from timam.evaluation import Embeddings
from timam.metrics import two_way_metrics
from timam_lab.centering import center_modalities
from timam_lab.gaps import split_gap
from timam_lab.statistics import mean_intervals, paired_over_seeds, plus_minus

CORRECTIONS = {"none": None, "mean subtracted": False, "standardised": True}  # name: `center_modalities(standardise=)`
NOISE = 0.5  # length of the noise on an embedding, as a share of the embedding's
MEASURES = {  # of `measure`: title, and whether more is better (None: neither)
    "text_to_image_rank_1": ("text to image, rank-1", True),
    "text_to_image_mAP": ("text to image, mAP", True),
    "image_to_text_rank_1": ("image to text, rank-1", True),
    "image_to_text_mAP": ("image to text, mAP", True),
    "centroid_distance": ("centroid distance", None),
    "probe_accuracy": ("linear probe", None),
    "nonlinear_probe_accuracy": ("kernel probe", None),
    "mmd_squared": ("MMD²", None),
    "cross_modal_neighbours": ("cross-modal neighbours, over chance", None),
    "mixed_rank_1": ("mixed gallery, rank-1", True),
    "mixed_right_picture": ("mixed gallery, a right picture in the top ten", True),
    "mixed_pictures": ("mixed gallery, pictures in the top ten", None),
    "clusters": ("clusters against identities (NMI)", True),
    "rank_1_8_bits": ("rank-1 at 8 bits a dimension", True),
    "rank_1_1_bit": ("rank-1 at 1 bit a dimension", True),
    "rank_1_noise": ("rank-1 with noise", True),
    "rank_1_rephrased": ("rank-1 in unseen words", True),
    "mAP_rephrased": ("mAP in unseen words", True),
}
PLAIN = ("centroid_distance", "mmd_squared", "cross_modal_neighbours")  # shown as they are; the others in percent
GAP = ("centroid_distance", "probe_accuracy", "nonlinear_probe_accuracy", "mmd_squared", "cross_modal_neighbours")


def corrected(embeddings: Embeddings, validation: Embeddings, correction: str) -> Embeddings:
    """The embeddings after one of `CORRECTIONS`, which is fitted on the validation split."""
    standardise = CORRECTIONS[correction]
    if standardise is None:
        return embeddings
    e, fitted_on = embeddings, (validation.images.numpy(), validation.texts.numpy())
    images, texts = center_modalities(e.images.numpy(), e.texts.numpy(), fitted_on, standardise)
    return Embeddings(torch.from_numpy(images), torch.from_numpy(texts), e.image_labels, e.text_labels)


def quantised(embeddings: Embeddings, bits: int) -> Embeddings:
    """At unit length, in whole steps: 8 bits are -127 to 127, with one scale for all; 1 bit is the sign."""
    images, texts = (F.normalize(e, dim=1) for e in (embeddings.images, embeddings.texts))
    highest = 2 ** (bits - 1) - 1
    largest = torch.maximum(images.abs().max(), texts.abs().max())
    steps = lambda e: (e * highest / largest).round() if highest else torch.where(e >= 0, 1.0, -1.0)  # noqa: E731
    return Embeddings(steps(images), steps(texts), embeddings.image_labels, embeddings.text_labels)


def noisy(embeddings: Embeddings, seed: int = 0) -> Embeddings:
    """At unit length, each with Gaussian noise whose length is `NOISE` on average."""
    generator = torch.Generator().manual_seed(seed)

    def disturbed(e: Tensor) -> Tensor:
        drawn = torch.randn(e.shape, generator=generator, dtype=torch.float64).to(e.dtype)
        return F.normalize(e, dim=1) + NOISE * e.shape[1] ** -0.5 * drawn

    images, texts = disturbed(embeddings.images), disturbed(embeddings.texts)
    return Embeddings(images, texts, embeddings.image_labels, embeddings.text_labels)


def mixed_gallery(embeddings: Embeddings, k: int = 10) -> dict[str, float]:
    """Each sentence searches one gallery of all pictures and all other sentences.

    Returns:
        mixed_rank_1: share of sentences whose nearest item is of the right identity, whatever its modality; ties count
        against it. mixed_right_picture: share of sentences with a picture of the right identity among the k nearest.
        mixed_pictures: share of pictures among the k nearest. mixed_parity: their share of the gallery, which a search
        that is blind to the modality would show on average.
    """
    images, texts = (F.normalize(e, dim=1) for e in (embeddings.images, embeddings.texts))
    gallery, labels = torch.cat([images, texts]), torch.cat([embeddings.image_labels, embeddings.text_labels])
    similarity = texts @ gallery.T
    itself = torch.arange(len(texts))
    similarity[itself, len(images) + itself] = -torch.inf
    right = labels[None, :] == embeddings.text_labels[:, None]
    best, wrong = (similarity.masked_fill(~m, -torch.inf).amax(dim=1) for m in (right, ~right))
    nearest = similarity.topk(min(k, len(gallery) - 1), dim=1).indices
    return {
        "mixed_rank_1": float((best > wrong).float().mean()),
        "mixed_right_picture": float(((nearest < len(images)) & right.gather(1, nearest)).any(dim=1).float().mean()),
        "mixed_pictures": float((nearest < len(images)).float().mean()),
        "mixed_parity": len(images) / (len(gallery) - 1),
    }


def clusters(embeddings: Embeddings, seed: int = 0) -> float:
    """Normalised mutual information, 0 to 1, of the identities and as many clusters (k-means) of both modalities."""
    both = torch.cat([F.normalize(e, dim=1) for e in (embeddings.images, embeddings.texts)]).numpy()
    labels = torch.cat([embeddings.image_labels, embeddings.text_labels]).numpy()
    clusters = KMeans(len(np.unique(labels)), n_init=1, random_state=seed).fit_predict(both)
    return float(normalized_mutual_info_score(labels, clusters))


def measure(test: Embeddings, validation: Embeddings, rephrased: Embeddings | None = None) -> pd.DataFrame:
    """All of `MEASURES` on a test split: one row for each of `CORRECTIONS`, with "correction" and "mixed_parity".

    Args:
        validation: of the same model; the corrections are fitted on it.
        rephrased: the test split with other captions; without it their measures are absent.
    """
    rows = []
    for correction in CORRECTIONS:
        e = corrected(test, validation, correction)
        metrics = two_way_metrics(*vars(e).values())
        row = {f"{d}_{name}": metrics[d][name] for d in metrics for name in ("rank_1", "mAP")}
        measured = split_gap(e, nonlinear=True)
        row |= {name: measured[name] for name in GAP if name in measured}
        row |= {**mixed_gallery(e), "clusters": clusters(e)}
        changed = {"8_bits": quantised(e, 8), "1_bit": quantised(e, 1), "noise": noisy(e)}
        if rephrased is not None:
            changed["rephrased"] = corrected(rephrased, validation, correction)
        for name, other in changed.items():
            results = two_way_metrics(*vars(other).values())["text_to_image"]
            row |= {f"rank_1_{name}": results["rank_1"], f"mAP_{name}": results["mAP"]}
        rows.append({"correction": correction, **row})
    return pd.DataFrame(rows)


def related(frame: pd.DataFrame, measures: Iterable[str], targets: Sequence[str]) -> pd.DataFrame:
    """Which measure goes with which target: Spearman's rank correlation over the rows of `frame`.

    Returns:
        One row per measure: measure, n (rows), and for each target TARGET and TARGET_p (two-sided). NaN where the
        measure or the target does not vary, or with fewer than five rows: the order of four shows nothing at 5 %.
    """
    rows = []
    for name in measures:
        row: dict[str, float | str] = {"measure": name, "n": len(frame)}
        for target in targets:
            varies = len(frame) > 4 and frame[[name, target]].nunique().min() > 1
            correlation = stats.spearmanr(frame[name], frame[target]) if varies else (np.nan, np.nan)
            row[target], row[f"{target}_p"] = map(float, correlation)
        rows.append(row)
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame, measures: Sequence[str]) -> Styler:
    """For reading: a row for each variant, and of each measure the mean over the seeds ± half its 95 % interval."""
    rows = []
    for variant, part in frame.groupby("variant", sort=False):
        intervals = pd.Series(mean_intervals(part, measures))
        texts = {MEASURES[m][0]: plus_minus(intervals, m, *((1, 3) if m in PLAIN else (100, 1))) for m in measures}
        rows.append({"variant": variant, "seeds": len(part), **texts})
    return pd.DataFrame(rows).style.hide(axis="index")


def differences(
    frame: pd.DataFrame, ours: tuple[str, str], baseline: tuple[str, str], measures: Iterable[str]
) -> pd.DataFrame:
    """Two pairs of (variant, correction) compared by `timam_lab.statistics.paired_over_seeds`, a row for each measure.

    Args:
        frame: a row per run and correction, with "variant", "correction", "seed" and the measures.
    """
    sides = []
    for variant, correction in (ours, baseline):
        rows = frame[(frame["variant"] == variant) & (frame["correction"] == correction)]
        sides.append(rows.sort_values("seed").reset_index(drop=True))
    made: list[Mapping[str, object]] = []
    for name in measures:
        found = paired_over_seeds(sides[0][name].to_numpy(), sides[1][name].to_numpy())
        made.append({"measure": name, "ours": sides[0][name].mean(), "baseline": sides[1][name].mean(), **found})
    return pd.DataFrame(made)


def difference_table(found: pd.DataFrame) -> Styler:
    """For reading: `differences` of several arms, which have the columns "arm" and "correction"; measures as columns.

    Fractions in percentage points. Bold: the interval over seeds excludes 0.
    """
    names = {m: MEASURES[m][0] for m in found["measure"].unique()}
    clear = found["seeds_low"] * found["seeds_high"] > 0
    shown = found["difference"].where(found["measure"].isin(PLAIN), 100 * found["difference"])
    wide, bold = (
        found.assign(shown=values).pivot(index=["arm", "correction"], columns="measure", values="shown")
        .reindex(pd.MultiIndex.from_frame(found[["arm", "correction"]].drop_duplicates()))[list(names)]
        .rename(columns=names)
        for values in (shown, clear)
    )  # fmt: skip
    return wide.style.format("{:+.2f}").apply(lambda _: bold.map({True: "font-weight: bold", False: ""}.get), axis=None)
