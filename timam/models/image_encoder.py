"""Image encoder [paper]: a classification backbone without its head, global average pooling, a linear layer to D."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def strip_head(backbone: nn.Module) -> nn.Module:
    """Removes the classification layers of a torchvision model in place, so that forward gives pooled features.

    The head's layers before its first linear layer (pooling, layer normalisation, flattening) are kept, as the
    backbone was trained with them. VGG and AlexNet pool to 1 x 1 instead of 7 x 7 and 6 x 6.

    Raises:
        ValueError: no head of a known form.
    """
    name = next(
        (n for n in ("fc", "classifier", "heads", "head") if isinstance(getattr(backbone, n, None), nn.Module)), None
    )
    if name is None:
        raise ValueError(f"{type(backbone).__name__} has no fc, classifier, heads or head to replace")
    head = getattr(backbone, name)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    kinds = (nn.Linear, nn.Dropout, nn.Conv2d)
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, kinds)), None)
    if first is None:
        raise ValueError(f"{type(backbone).__name__}.{name} holds no linear layer to remove")
    kept = layers[:first]
    if any(isinstance(layer, nn.Conv2d) for layer in layers):  # SqueezeNet classifies with a convolution, then pools
        kept = [nn.AdaptiveAvgPool2d(1)]
    setattr(backbone, name, nn.Sequential(*kept))
    if isinstance(getattr(backbone, "avgpool", None), nn.AdaptiveAvgPool2d):
        backbone.avgpool = nn.AdaptiveAvgPool2d(1)
    return backbone


def feature_width(backbone: nn.Module, height: int, width: int) -> int:
    """Channels C of the features that a backbone without head gives for pictures (B, 3, height, width).

    Found with tensors that have sizes but no values, on torch's meta device.

    Raises:
        ValueError: the backbone does not take this size, or does not give (B, C).
    """
    probe = copy.deepcopy(backbone).to("meta").eval()
    try:
        features = probe(torch.empty(2, 3, height, width, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{type(backbone).__name__} does not take pictures of {height}x{width} pixels: {error}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{type(backbone).__name__} gives {found} without its head: expected features (B, C)")
    return features.shape[1]


class ImageEncoder(nn.Module):
    """Normalised pictures (B, 3, H, W) float32 -> embeddings (B, D), not unit length.

    Args:
        backbone: a torchvision classification model with its head; changed in place.
        height, width: of the pictures, in pixels.
        embedding_dim: D.

    Raises:
        ValueError: a backbone whose head cannot be replaced or that does not take this size.
    """

    def __init__(self, backbone: nn.Module, height: int, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.backbone = strip_head(backbone)
        self.projection = nn.Linear(feature_width(self.backbone, height, width), embedding_dim)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> pooled features (B, C) before the projection."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.features(images))
