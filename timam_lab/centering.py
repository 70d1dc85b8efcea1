"""A modality gap closed after training: each modality's mean is removed."""

from __future__ import annotations

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler


def center_modalities(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    fitted_on: tuple[np.ndarray, np.ndarray],
    standardise: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and (M, D) with each modality's mean removed, which closes most of the gap without training.

    Both are taken at unit length, and have it afterwards. `timam.models.TIMAM.centered` does the same with the means
    that a finished run saves with its model.

    Args:
        fitted_on: image and text embeddings of the validation split, never those that are tested.
        standardise: each coordinate is also divided by its standard deviation.
    """

    def centred(embeddings: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
        steps = make_pipeline(Normalizer(), StandardScaler(with_std=standardise), Normalizer())
        return steps.fit(fitted_on).transform(embeddings)

    return centred(image_embeddings, fitted_on[0]), centred(text_embeddings, fitted_on[1])
