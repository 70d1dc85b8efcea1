"""A model on a split of any data set, and CLIP or SigLIP as models that need no training."""

from __future__ import annotations

from typing import Any

import torch

from timam.config import ModelConfig
from timam.data import Dataset
from timam.evaluation import embed_split, evaluate, gap
from timam.models import TIMAM
from timam.models.weights import fetch_configs
from timam.stores import StoredSplit, open_pixels


def evaluate_model(model: TIMAM, dataset: Dataset, split: str = "test", progress: bool = False) -> dict[str, Any]:
    """`evaluate` and `gap` of a model on one split of a data set, with the names of both; on a GPU if there is one."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dataset.split(split)
    pixels = open_pixels(chosen.image_paths, model.model_config.image_height, model.model_config.image_width, progress)
    embeddings = embed_split(model, StoredSplit(chosen, pixels), progress=progress)
    results = evaluate(embeddings, dataset.kind, dataset.folds if split == "test" else 1)
    return {"dataset": dataset.name, "split": split, **results, "modality_gap": gap(embeddings)}


def pair_settings(name: str) -> ModelConfig:
    """Settings that use a pair of towers, CLIP or SigLIP, as it is. Raises WeightsError, and ValueError for no pair."""
    image, text = fetch_configs(ModelConfig(backbone=name, language_model=name))
    width = getattr(text, "projection_dim", None) or text.projection_size
    sizes = {"image_height": image.image_size, "image_width": image.image_size, "embedding_dim": width}
    sizes["max_tokens"] = text.max_position_embeddings
    return ModelConfig(backbone=name, language_model=name, projection="pretrained", text_head="pooled", **sizes)
