"""A linear baseline on frozen features, which results are compared with; and t-SNE maps of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from timam.data import Split
from timam.models import TIMAM
from timam.stores import open_word_states


def tsne(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, perplexity: float = 30.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One t-SNE map of both modalities' unit-length embeddings, by scikit-learn.

    Args:
        image_embeddings: (N, D); text_embeddings: (M, D).
        perplexity: reduced to a third of the number of samples where that is less.

    Returns:
        (N, 2) and (M, 2).
    """
    both = np.concatenate([image_embeddings, text_embeddings])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    points = TSNE(perplexity=min(perplexity, (len(both) - 1) / 3), random_state=seed).fit_transform(both)
    return points[: len(image_embeddings)], points[len(image_embeddings) :]


def linear_baselines(
    image_features: np.ndarray, text_features: np.ndarray, components: int, penalties: Sequence[float]
) -> tuple[Pipeline, dict[float, Pipeline]]:
    """Ridge regressions from frozen text features to frozen image features. Source: ours.

    Image features are standardised and reduced to whitened principal components. The standardised text features are
    regressed onto those. Retrieval is by cosine similarity in that space. The components are in the order of their
    variance and are regressed one by one. So the first columns are the baseline with fewer components.

    Args:
        image_features: (P, C) of paired training examples; text_features: (P, C').
        components: principal components kept of the images, at most P and C.
        penalties: ridge penalties.

    Returns:
        (image_map, {penalty: text_map}), fitted estimators: image_map.transform(images) and text_map.predict(texts)
        are (N, components).
    """
    image_map = make_pipeline(StandardScaler(), PCA(components, whiten=True, random_state=0)).fit(image_features)
    mapped = image_map.transform(image_features)
    return image_map, {a: make_pipeline(StandardScaler(), Ridge(a)).fit(text_features, mapped) for a in penalties}


def frozen_features(
    model: TIMAM, split: Split, pixels: np.ndarray, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Features of a model's pretrained parts, before any training: the input of the linear baseline.

    Returns:
        (N, C) float32 pooled picture features and (M, C') float32 means of the captions' word states.
    """
    images = model.encode_pixels(pixels, batch_size, encode=model.image_encoder.features)
    words = open_word_states(model, split.captions)
    sums = np.add.reduceat(words.states, words.offsets[:-1], axis=0, dtype=np.float32)
    return images.numpy(), sums / np.diff(words.offsets)[:, None].astype(np.float32)
