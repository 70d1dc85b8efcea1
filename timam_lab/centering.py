"""A modality gap closed after training: each modality's mean is removed."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor

from timam.models import TIMAM
from timam.models.joint import IMAGE
from timam.search import Gallery


def center_modalities(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    fitted_on: tuple[np.ndarray, np.ndarray],
    standardise: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and (M, D) with each modality's mean removed, which closes most of the gap without training.

    Both are taken at unit length, and have it afterwards. `centered` does the same with the means that a finished
    run saves with its model.

    Args:
        fitted_on: image and text embeddings of the validation split, never those that are tested.
        standardise: each coordinate is also divided by its standard deviation.
    """

    def centred(embeddings: np.ndarray, fitted_on: np.ndarray) -> np.ndarray:
        steps = make_pipeline(Normalizer(), StandardScaler(with_std=standardise), Normalizer())
        return steps.fit(fitted_on).transform(embeddings)

    return centred(image_embeddings, fitted_on[0]), centred(text_embeddings, fitted_on[1])


def centered(model: TIMAM, embeddings: Tensor, modality: int) -> Tensor:
    """Embeddings (N, D) at unit length minus their modality's mean on validation, at unit length again: float32.

    For galleries that hold both pictures and sentences, where the mean would decide what is near. All that are compared
    must be centred. `modality` is `IMAGE` or `TEXT` of `timam.models.joint`. Raises ValueError for a model without
    means.
    """
    if model.modality_means is None:
        raise ValueError("the model has no means of its modalities: only a run that finished since has them")
    means = model.modality_means[modality].to(embeddings.device)
    return F.normalize(F.normalize(embeddings, dim=1) - means, dim=1)


def centered_gallery(model: TIMAM, gallery: Gallery) -> Gallery:
    """The same pictures without their mean on validation, in memory; queries must be `centered`, too."""
    embeddings = centered(model, torch.tensor(gallery.embeddings), IMAGE).numpy()
    return dataclasses.replace(gallery, embeddings=embeddings)
