"""The modality gap: how far apart image and text embeddings are, in NumPy arrays."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_LIMIT = 5000  # images or texts that are measured; the memory grows with the square
_NEIGHBOURS = 10  # per sample, for cross_modal_neighbours
LINEAR_PROBE = LogisticRegression(class_weight="balanced", max_iter=1000)  # of "probe_accuracy"; only copies are fitted


def modality_gap(
    images: np.ndarray, texts: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Measures how far apart the modalities are, on unit-length embeddings.

    Args:
        images, texts: embeddings (N, D), (M, D) of any norm; of more than 5,000, randomly drawn identities with fewer.
        image_labels, text_labels: (N,), (M,) identities, at least two, else ValueError.

    Returns:
        "centroid_distance", of the two means. "probe_accuracy": balanced accuracy of a logistic regression on
        identities that it was not fitted on; 0.5 if the modalities look alike. "mmd_squared": the maximum mean
        discrepancy with the kernel exp(-2 |x - y|^2), unbiased, so it can be slightly negative (Gretton et al., JMLR
        2012). "cross_modal_neighbours": the share of the other modality among a sample's 10 nearest, over its share
        among all, averaged over the modalities; 0 = separate, 1 = mixed. "alignment": mean squared distance of an
        identity's picture and caption, in [0, 4]; NaN without an identity of both modalities. "image_uniformity",
        "text_uniformity": log of the mean of the same kernel over two images, or two texts, in [-8, 0]; lower = more
        spread out, -4 where they are orthogonal (Wang and Isola, ICML 2020).
    """
    both, identities, is_image, _ = unit_sample(images, texts, image_labels, text_labels, seed)
    n, m = int(is_image.sum()), int((~is_image).sum())
    similarity = both @ both.T
    kernel = np.exp(4 * np.minimum(similarity, 1) - 4)  # |x - y|^2 = 2 - 2 x'y
    np.fill_diagonal(kernel, 0)  # a sample is no pair
    own = identities[:n, None] == identities[n:]  # (n, m) pictures and captions of an identity
    with np.errstate(divide="ignore", invalid="ignore"):
        alike_images = kernel[:n, :n].sum(dtype=float) / np.float64(n * (n - 1))
        alike_texts = kernel[n:, n:].sum(dtype=float) / np.float64(m * (m - 1))
        return {
            "centroid_distance": float(np.linalg.norm(both[:n].mean(axis=0) - both[n:].mean(axis=0))),
            "probe_accuracy": balanced_mean(probe_hits(both, is_image, identities, LINEAR_PROBE), is_image),
            "mmd_squared": float(alike_images + alike_texts - 2 * kernel[:n, n:].mean(dtype=float)),
            "cross_modal_neighbours": balanced_mean(crossed_neighbours(similarity, is_image), is_image),
            "alignment": float((2 - 2 * similarity[:n, n:][own]).sum(dtype=float) / np.float64(own.sum())),
            "image_uniformity": float(np.log(alike_images)),
            "text_uniformity": float(np.log(alike_texts)),
        }


def unit_sample(
    images: np.ndarray, texts: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `modality_gap` measures: unit-length embeddings (N, D), their identities (N,) in [0, C), is_image (N,) bool.

    And the positions (C,) of these identities among all, in the order in which they were drawn.
    """
    known, labels = np.unique(np.concatenate([image_labels, text_labels]), return_inverse=True)
    if len(known) < 2:
        raise ValueError("one identity: expected at least 2, as probes are tested on others than they are fitted on")
    is_image = np.repeat([True, False], [len(image_labels), len(text_labels)])
    drawn = np.random.default_rng(seed).permutation(len(known))
    for modality in (is_image, ~is_image):
        if modality.sum() > _LIMIT:
            counts = np.bincount(labels[modality], minlength=len(known))[drawn].cumsum()
            drawn = drawn[: max(2, int(np.searchsorted(counts, _LIMIT, side="right")))]
    kept = np.isin(labels, drawn)
    both = np.concatenate([images, texts])[kept]
    unit = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    return unit, np.unique(labels[kept], return_inverse=True)[1], is_image[kept], drawn


def balanced_mean(values: np.ndarray, is_image: np.ndarray) -> float:
    """Mean over the modalities of the mean of values (N,)."""
    return float((values[is_image].mean() + values[~is_image].mean()) / 2)


def crossed_neighbours(similarity: np.ndarray, is_image: np.ndarray) -> np.ndarray:
    """Share of the other modality among each sample's nearest, divided by its share among all others, (N,)."""
    count = min(_NEIGHBOURS, len(is_image) - 1)
    distance = -similarity
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, count - 1, axis=1)[:, :count]
    expected = np.where(is_image, (~is_image).sum(), is_image.sum()) / (len(is_image) - 1)
    return (is_image[nearest] != is_image[:, None]).mean(axis=1) / expected


def probe_hits(embeddings: np.ndarray, is_image: np.ndarray, identities: np.ndarray, probe: Any) -> np.ndarray:
    """Whether a scikit-learn classifier is right on each embedding, (N,) bool, when fitted on other identities, 5-fold.

    Each coordinate of the embeddings (N, D) is standardised; is_image is (N,) bool, identities (N,).
    """
    folds = GroupKFold(min(5, len(np.unique(identities))))
    pipeline = make_pipeline(StandardScaler(), probe)
    return cross_val_predict(pipeline, embeddings, is_image, groups=identities, cv=folds) == is_image
