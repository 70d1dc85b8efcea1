"""The modality gap: how far apart image and text embeddings are, in NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

_LIMIT = 5000  # images or texts that are measured; the memory grows with the square
_NEIGHBOURS = 10  # per sample, for cross_modal_neighbours

GAP_MEASURES = {  # of `modality_gap`: what it is; its value where the modalities cannot be distinguished
    "centroid_distance": "distance of the two means; 0",
    "probe_accuracy": "fresh linear probe; 0.5",
    "nonlinear_probe_accuracy": "fresh kernel probe; 0.5",
    "mmd_squared": "maximum mean discrepancy, squared; 0",
    "cross_modal_neighbours": "share of neighbours of the other modality, over its chance; 1",
    "alignment": "squared distance of an identity's picture and caption; 0 where they coincide",
    "image_uniformity": "log mean kernel of two pictures; -4 where they are orthogonal",
    "text_uniformity": "log mean kernel of two captions; as the pictures'",
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
    """Measures how far apart the modalities are, on unit-length embeddings: a number for each of `GAP_MEASURES`.

    Probes: balanced accuracy on identities that they were not fitted on, of a logistic regression and of a support
    vector machine with a Gaussian kernel. mmd_squared: with the kernel exp(-2 |x - y|^2), unbiased, so it can be
    slightly negative (Gretton et al., JMLR 2012). cross_modal_neighbours: among a sample's 10 nearest, averaged over
    the modalities; 0 = separate. alignment: in [0, 4]; NaN without an identity of both modalities. Uniformities: log of
    the mean of the same kernel over two images, or two texts, in [-8, 0]; lower = more spread out (Wang and Isola,
    ICML 2020).

    Args:
        image_embeddings, text_embeddings: (N, D), (M, D) of any norm. If there are more than 5,000 images or texts,
            randomly drawn identities with at most 5,000 are measured.
        image_labels, text_labels: (N,), (M,) identities, at least two, else ValueError.
        nonlinear: also fits a kernel probe, which takes longer.
        resamples: adds NAME_low and NAME_high for each measure: a 95 % percentile bootstrap interval that resamples
            whole identities. The probes are not fitted again.
    """
    identities, labels = np.unique(np.concatenate([image_labels, text_labels]), return_inverse=True)
    if len(identities) < 2:
        raise ValueError("one identity: expected at least 2, as probes are tested on others than they are fitted on")
    is_image = np.repeat([True, False], [len(image_labels), len(text_labels)])
    drawn = _draw_identities(labels, is_image, seed)
    kept = np.isin(labels, drawn)
    both = np.concatenate([_unit_rows(image_embeddings), _unit_rows(text_embeddings)])
    _, identity = np.unique(labels[kept], return_inverse=True)
    weights = np.ones((1, len(drawn)))
    if resamples:
        counts = np.random.default_rng(seed).multinomial(len(drawn), np.full(len(drawn), 1 / len(drawn)), resamples)
        weights = np.concatenate([weights, counts[:, drawn.argsort()]])
    measured = _measures(both[kept], identity, is_image[kept], weights, nonlinear)
    result = {name: float(values[0]) for name, values in measured.items()}
    for name, values in measured.items() if resamples else ():
        result[f"{name}_low"], result[f"{name}_high"] = map(float, np.percentile(values[1:], [2.5, 97.5]))
    return result


def _draw_identities(labels: np.ndarray, is_image: np.ndarray, seed: int) -> np.ndarray:
    """All identities in random order, or as many of the first as have at most `_LIMIT` images and texts."""
    drawn = np.random.default_rng(seed).permutation(labels.max() + 1)
    for modality in (is_image, ~is_image):
        if modality.sum() > _LIMIT:
            counts = np.bincount(labels[modality], minlength=labels.max() + 1)[drawn].cumsum()
            drawn = drawn[: max(2, int(np.searchsorted(counts, _LIMIT, side="right")))]
    return drawn


def _measures(
    embeddings: np.ndarray, identity: np.ndarray, is_image: np.ndarray, weights: np.ndarray, nonlinear: bool
) -> dict[str, np.ndarray]:
    """Each measure (B,) of unit-length embeddings (N, D), for B weights (B, C) of the identities (N,) in [0, C)."""
    split = np.array([is_image.sum()])
    one_hot = csr_array((np.ones(len(identity)), (identity, np.arange(len(identity)))))  # (C, N)
    sums = one_hot[:, is_image], one_hot[:, ~is_image]  # product with (n, ...): sums by identity
    counts = [s.sum(axis=1) for s in sums]  # (C,)
    totals = [s @ part for s, part in zip(sums, np.split(embeddings, split), strict=True)]  # (C, D)

    def balanced_mean(values: np.ndarray) -> np.ndarray:
        parts = zip(sums, counts, np.split(values, split), strict=True)
        return sum((weights @ (s @ part)) / (weights @ count) for s, count, part in parts) / 2

    def mean_kernel(a: int, b: int) -> np.ndarray:
        block = np.split(np.split(kernel, split)[a], split, axis=1)[b]
        numbers = np.outer(counts[a], counts[b]) - (np.diag(counts[a]) if a == b else 0)  # a sample is no pair
        return _weighted_pairs(sums[b] @ (sums[a] @ block).T, weights) / _weighted_pairs(numbers.T, weights)

    centroids = [weights @ t / (weights @ n)[:, None] for t, n in zip(totals, counts, strict=True)]
    result = {"centroid_distance": np.linalg.norm(centroids[0] - centroids[1], axis=1)}
    result["probe_accuracy"] = balanced_mean(probe_hits(embeddings, is_image, identity, linear_probe()))
    if nonlinear:
        hits = probe_hits(embeddings, is_image, identity, SVC(class_weight="balanced"))
        result["nonlinear_probe_accuracy"] = balanced_mean(hits)
    similarity = embeddings @ embeddings.T
    kernel = np.exp(4 * np.minimum(similarity, 1) - 4)  # |x - y|^2 = 2 - 2 x'y
    np.fill_diagonal(kernel, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        images, texts, across = mean_kernel(0, 0), mean_kernel(1, 1), mean_kernel(0, 1)
        result["mmd_squared"] = images + texts - 2 * across
        result["cross_modal_neighbours"] = balanced_mean(_crossed_neighbours(similarity, is_image))
        pairs = counts[0] * counts[1]
        distances = 2 * pairs - 2 * (totals[0] * totals[1]).sum(axis=1)
        result["alignment"] = weights @ distances / (weights @ pairs)
        return result | {"image_uniformity": np.log(images), "text_uniformity": np.log(texts)}


def _weighted_pairs(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums (C, C) over pairs of samples, by their identities -> (B,) weighted totals."""
    # An identity that is drawn w times counts w times within itself, not w^2: its copies are the same samples, which
    # would be pairs at distance 0.
    return ((weights @ sums) * weights).sum(axis=1) - (weights**2 - weights) @ np.diag(sums)


def _crossed_neighbours(similarity: np.ndarray, is_image: np.ndarray) -> np.ndarray:
    """Share of the other modality among each sample's nearest, divided by its share among all others, (N,)."""
    count = min(_NEIGHBOURS, len(is_image) - 1)
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    expected = np.where(is_image, (~is_image).sum(), is_image.sum()) / (len(is_image) - 1)
    return (is_image[nearest] != is_image[:, None]).mean(axis=1) / expected


def linear_probe() -> LogisticRegression:
    """The probe behind `modality_gap`'s "probe_accuracy", not fitted."""
    return LogisticRegression(class_weight="balanced", max_iter=1000)


def probe_hits(embeddings: np.ndarray, is_image: np.ndarray, identities: np.ndarray, probe: Any) -> np.ndarray:
    """Whether a scikit-learn classifier is right on each embedding, (N,) bool, when fitted on other identities, 5-fold.

    Each coordinate of the embeddings (N, D) is standardised; is_image is (N,) bool, identities (N,).
    """
    folds = GroupKFold(min(5, len(np.unique(identities))))
    pipeline = make_pipeline(StandardScaler(), probe)
    return cross_val_predict(pipeline, embeddings, is_image, groups=identities, cv=folds) == is_image


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
