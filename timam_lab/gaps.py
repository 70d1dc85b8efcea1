"""What the notebooks add to `timam.gap`: a kernel probe, and intervals over identities."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.svm import SVC

from timam import gap
from timam.evaluation import Embeddings

GAP_MEASURES = {  # of `modality_gap`: what it is, and its value where the modalities cannot be distinguished
    "centroid_distance": "centroid distance (0: no gap)",
    "probe_accuracy": "linear probe, percent right (50: no gap)",
    "nonlinear_probe_accuracy": "kernel probe, percent right (50: no gap)",
    "mmd_squared": "MMD² (0: no gap)",
    "cross_modal_neighbours": "cross-modal neighbours, over chance (1: no gap)",
    "alignment": "squared distance of an identity's picture and caption (lower: closer)",
    "image_uniformity": "uniformity of pictures (lower: more spread out)",
    "text_uniformity": "uniformity of captions (lower: more spread out)",
}


def modality_gap(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_labels: np.ndarray,
    text_labels: np.ndarray,
    nonlinear: bool = False,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """`timam.gap.modality_gap` of the same arrays and the same seed, with more.

    Args:
        nonlinear: adds "nonlinear_probe_accuracy", that of a support vector machine with a Gaussian kernel, which takes
            longer.
        resamples: adds NAME_low and NAME_high for each measure: a 95 % percentile bootstrap interval that resamples
            whole identities. The probes are not fitted again. The distance of two sample means is too large, as chance
            moves them apart: its square by the noise of the means, and that of resampled means by as much again. Twice
            the bootstrap's estimate of that bias (Efron and Tibshirani, 1993, chapter 10) is taken from the squares, so
            that the interval is about the distance of the populations, and may end below that of the sample.
    """
    sides = image_embeddings, text_embeddings, image_labels, text_labels
    result = gap.modality_gap(*sides, seed)
    both, identities, is_image, drawn = gap.unit_sample(*sides, seed)
    probes: dict[str, Any] = {"nonlinear_probe_accuracy": SVC(class_weight="balanced")} if nonlinear else {}
    if resamples:
        probes["probe_accuracy"] = gap.LINEAR_PROBE
    each = {name: gap.probe_hits(both, is_image, identities, probe) for name, probe in probes.items()}
    result |= {name: gap.balanced_mean(values, is_image) for name, values in each.items()}
    result = {name: result[name] for name in GAP_MEASURES if name in result}
    if resamples:
        count = len(drawn)
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
        similarity = both @ both.T
        each["cross_modal_neighbours"] = gap.crossed_neighbours(similarity, is_image)
        weights = weights[:, drawn.argsort()]
        resampled = _weighted(both, similarity, identities, is_image, each, weights)
        squares = resampled["centroid_distance"] ** 2
        bias = squares.mean() - result["centroid_distance"] ** 2
        resampled["centroid_distance"] = np.sqrt(np.maximum(squares - 2 * bias, 0))
        for name, values in resampled.items():
            result[f"{name}_low"], result[f"{name}_high"] = map(float, np.percentile(values, [2.5, 97.5]))
    return result


def split_gap(embeddings: Embeddings, **options: Any) -> dict[str, float]:
    """`modality_gap` of a split, with its options; empty for a single identity, as probes need two."""
    if len(embeddings.text_labels.unique()) < 2:
        return {}
    return modality_gap(*(t.numpy() for t in vars(embeddings).values()), **options)


def _weighted(
    both: np.ndarray,
    similarity: np.ndarray,
    identities: np.ndarray,
    is_image: np.ndarray,
    each: dict[str, np.ndarray],
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """The measures (B,) for B weights (B, C) of the identities; `each` holds means of one value (N,) per sample."""
    split = np.array([is_image.sum()])
    one_hot = csr_array((np.ones(len(identities)), (identities, np.arange(len(identities)))))  # (C, N)
    sums = one_hot[:, is_image], one_hot[:, ~is_image]  # product with (n, ...): sums by identity
    counts = [s.sum(axis=1) for s in sums]  # (C,)
    totals = [s @ part for s, part in zip(sums, np.split(both, split), strict=True)]  # (C, D)
    kernel = np.exp(4 * np.minimum(similarity, 1) - 4)
    np.fill_diagonal(kernel, 0)

    def balanced_mean(values: np.ndarray) -> np.ndarray:
        parts = zip(sums, counts, np.split(values, split), strict=True)
        return sum((weights @ (s @ part)) / (weights @ count) for s, count, part in parts) / 2

    def mean_kernel(a: int, b: int) -> np.ndarray:
        block = np.split(np.split(kernel, split)[a], split, axis=1)[b]
        numbers = np.outer(counts[a], counts[b]) - (np.diag(counts[a]) if a == b else 0)  # a sample is no pair
        return _weighted_pairs(sums[b] @ (sums[a] @ block).T, weights) / _weighted_pairs(numbers.T, weights)

    centroids = [weights @ t / (weights @ n)[:, None] for t, n in zip(totals, counts, strict=True)]
    result = {name: balanced_mean(values) for name, values in each.items()}
    result["centroid_distance"] = np.linalg.norm(centroids[0] - centroids[1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        images, texts, across = mean_kernel(0, 0), mean_kernel(1, 1), mean_kernel(0, 1)
        pairs = counts[0] * counts[1]
        distances = 2 * pairs - 2 * (totals[0] * totals[1]).sum(axis=1)
        return result | {
            "mmd_squared": images + texts - 2 * across,
            "alignment": weights @ distances / (weights @ pairs),
            "image_uniformity": np.log(images),
            "text_uniformity": np.log(texts),
        }


def _weighted_pairs(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums (C, C) over pairs of samples, by their identities -> (B,) weighted totals."""
    # An identity that is drawn w times counts w times within itself, not w^2: its copies are the same samples, which
    # would be pairs at distance 0.
    return ((weights @ sums) * weights).sum(axis=1) - (weights**2 - weights) @ np.diag(sums)
