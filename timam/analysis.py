"""What embeddings say beyond the metrics: intervals, the modality gap, a linear baseline. Arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def bootstrap_interval(
    values: np.ndarray, identities: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries that resamples whole identities.

    Captions of one identity are not independent; resampling single queries would give too narrow an interval.

    Args:
        values: (Q,) one result a query, for example 1.0 where the first answer is right.
        identities: (Q,) the identity of each query.

    Returns:
        (low, high).

    Raises:
        ValueError: lengths that differ, or fewer than two identities.
    """
    if values.shape != identities.shape:
        raise ValueError(f"values {values.shape} and identities {identities.shape}: expected the same length")
    _, index = np.unique(identities, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        raise ValueError("one identity: expected at least two to resample")
    result = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        confidence_level=confidence, n_resamples=resamples, method="percentile",
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def modality_gap(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray
) -> dict[str, float]:
    """How far apart the modalities lie, on unit-length embeddings.

    Args:
        image_embeddings: (N, D), any norm; text_embeddings: (M, D).
        image_labels: (N,) identities; text_labels: (M,): the probe is tested on identities it was not fitted on.

    Returns:
        centroid_distance: Euclidean distance of the two means, in [0, 2].
        probe_accuracy: balanced accuracy, cross-validated, of a fresh logistic regression that tells image from text;
            0.5 = indistinguishable by a linear rule.

    Raises:
        ValueError: fewer than two identities.
    """
    images = image_embeddings / np.linalg.norm(image_embeddings, axis=1, keepdims=True)
    texts = text_embeddings / np.linalg.norm(text_embeddings, axis=1, keepdims=True)
    identities = np.concatenate([image_labels, text_labels])
    folds = min(5, len(np.unique(identities)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    scores = cross_val_score(
        probe, np.concatenate([images, texts]), np.repeat([1, 0], [len(images), len(texts)]), groups=identities,
        cv=GroupKFold(folds), scoring="balanced_accuracy",
    )  # fmt: skip
    distance = np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0))
    return {"centroid_distance": float(distance), "probe_accuracy": float(scores.mean())}


def linear_baseline(
    image_features: np.ndarray, text_features: np.ndarray, components: int, alpha: float
) -> tuple[Pipeline, Pipeline]:
    """Text and image maps of a ridge regression from frozen text features to frozen image features. Source: ours.

    Image features are standardised and reduced by whitened principal components; the texts' standardised
    features are regressed onto them. Retrieval is then by cosine similarity in that space.

    Args:
        image_features: (P, C) of paired training examples; text_features: (P, C').
        components: principal components kept of the images.
        alpha: ridge penalty.

    Returns:
        (image_map, text_map), fitted estimators: image_map.transform(images) and text_map.predict(texts).
    """
    image_map = make_pipeline(StandardScaler(), PCA(components, whiten=True, random_state=0)).fit(image_features)
    text_map = make_pipeline(StandardScaler(), Ridge(alpha)).fit(text_features, image_map.transform(image_features))
    return image_map, text_map
