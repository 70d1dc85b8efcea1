"""A modality gap closed after training: each modality's mean is removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import normalize


@dataclass(frozen=True)
class Centering:
    """Maps one modality's embeddings (N, D) of any norm to unit-length ones, centred at the modality's mean."""

    mean: np.ndarray  # (D,) of unit-length embeddings
    scale: np.ndarray  # (D,) their standard deviations, or ones

    @classmethod
    def fit(cls, embeddings: np.ndarray, standardise: bool = False) -> Centering:
        """The means, and with `standardise` the standard deviations, of unit-length embeddings."""
        unit = normalize(embeddings)
        scale = unit.std(axis=0) if standardise else np.ones_like(unit[0])
        return cls(unit.mean(axis=0), np.where(scale > 0, scale, np.ones_like(scale)))

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        return normalize((normalize(embeddings) - self.mean) / self.scale)


def center_modalities(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    fitted_on: tuple[np.ndarray, np.ndarray],
    standardise: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and (M, D) with each modality's mean removed, which closes most of the gap without training.

    `fitted_on`: image and text embeddings of the validation split, never those that are tested.
    """
    image_centering, text_centering = (Centering.fit(embeddings, standardise) for embeddings in fitted_on)
    return image_centering(image_embeddings), text_centering(text_embeddings)
