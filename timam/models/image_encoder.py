"""Image encoder [paper]: a classification backbone without its head, global average pooling, a linear layer to D.

A tower of transformers may take the backbone's place; it pools in its own way.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from timam.models.towers import ImageTower


def strip_head(backbone: nn.Module) -> nn.Module:
    """Removes the classification layers of a torchvision model in place, so that forward gives pooled features.

    What the head has before its first linear layer is kept, as the backbone was trained with it. VGG and AlexNet pool
    to 1 x 1 instead of 7 x 7 and 6 x 6. Raises ValueError for a head of another form.
    """
    names = ("fc", "classifier", "heads", "head")
    name = next((n for n in names if isinstance(getattr(backbone, n, None), nn.Module)), names[0])
    head = getattr(backbone, name, nn.Identity())
    layers: list[nn.Module] = list(head) if isinstance(head, nn.Sequential) else [head]
    kinds = (nn.Linear, nn.Dropout, nn.Conv2d)
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, kinds)), None)
    if first is None:
        raise ValueError(f"{type(backbone).__name__} has no linear layer to remove in {', '.join(names)}")
    kept = layers[:first]
    if any(isinstance(layer, nn.Conv2d) for layer in layers):  # SqueezeNet classifies with a convolution, then pools
        kept = [nn.AdaptiveAvgPool2d(1)]
    setattr(backbone, name, nn.Sequential(*kept))
    if isinstance(getattr(backbone, "avgpool", None), nn.AdaptiveAvgPool2d):
        backbone.avgpool = nn.AdaptiveAvgPool2d(1)
    return backbone


def feature_width(backbone: nn.Module, height: int, width: int) -> int:
    """Channels C of the features (B, C) that a backbone without head gives for pictures (B, 3, height, width).

    Found on torch's meta device. Raises ValueError where the backbone does not take this size.
    """
    probe, name = copy.deepcopy(backbone).to("meta").eval(), type(backbone).__name__
    try:
        return probe(torch.empty(2, 3, height, width, device="meta")).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} does not take pictures of {height}x{width} pixels: {error}") from error


def blocks_of(backbone: nn.Module) -> list[list[str]]:
    """The blocks of a backbone in the order of its forward pass, each a list of submodule names.

    A block is a layer of `features` (MobileNet and others); of a ResNet the stem or a residual block; of an
    `ImageTower` the embeddings or a layer. Raises ValueError for other backbones.
    """
    if isinstance(backbone, ImageTower):
        return backbone.blocks()
    if isinstance(features := getattr(backbone, "features", None), nn.Sequential):
        return [[f"features.{name}"] for name in features._modules]
    if isinstance(getattr(backbone, "layer4", None), nn.Sequential):
        stem, residual = ["conv1", "bn1", "relu", "maxpool"], [f"layer{n}" for n in range(1, 5)]
        return [stem, *([f"{layer}.{name}"] for layer in residual for name in getattr(backbone, layer)._modules)]
    raise ValueError(f"train.frozen_blocks: the blocks of {type(backbone).__name__} are not known; expected 0")


def _without(backbone: nn.Module, names: list[str]) -> nn.Module:
    """The backbone with some submodules passed over. The other submodules are the backbone's own."""
    parents = {".".join(name.split(".")[:n]) for name in names for n in range(name.count(".") + 1)}
    known = {id(module): module for name, module in backbone.named_modules() if name not in parents}
    for module in map(backbone.get_submodule, names):
        known[id(module)] = copy.copy(module)  # not an identity: transformers asks embeddings for their dtype
        known[id(module)].forward = lambda states, *_, **__: states
    return copy.deepcopy(backbone, known)  # copies the parents only


class ImageEncoder(nn.Module):
    """Normalised pictures (B, 3, H, W) float32 -> embeddings (B, D), not unit length.

    The backbone is a torchvision classification model with its head, changed in place, or an `ImageTower`, whose
    pretrained projection `keep_projection` uses. Raises ValueError for a backbone of another form or for another size,
    and a projection of another width than D.
    """

    def __init__(
        self, backbone: nn.Module, height: int, width: int, embedding_dim: int, keep_projection: bool = False
    ) -> None:
        super().__init__()
        own = None
        if isinstance(backbone, ImageTower):
            own, backbone.projection = backbone.projection, None
        else:
            strip_head(backbone)
        self.backbone = backbone
        features = feature_width(backbone, height, width)
        self.new_projection = own is None or not keep_projection
        self.projection = projection(features, embedding_dim, own if keep_projection else None)
        # The frozen blocks and the rest, in a tuple so that their parameters are not registered a second time.
        self._parts: tuple[Any, ...] = ()

    def freeze_blocks(self, count: int) -> None:
        """The first `count` blocks keep their weights and, in eval mode whatever `train()` says, their statistics.

        Raises ValueError for more blocks than the backbone has, or a backbone whose blocks are not known.
        """
        if not count:
            return
        blocks = blocks_of(self.backbone)
        if count > len(blocks):
            raise ValueError(f"train.frozen_blocks = {count}: {type(self.backbone).__name__} has {len(blocks)} blocks")
        names = [name for block in blocks[:count] for name in block]
        frozen = nn.Sequential(*map(self.backbone.get_submodule, names)).requires_grad_(False)
        self._parts = frozen, _without(self.backbone, names)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        for frozen in self._parts[:1]:
            frozen.eval()
        return self

    def block_outputs(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> outputs (B, C', h, w) of the frozen blocks, without gradients; (B, C', T, 1) of a tower's."""
        with torch.no_grad():
            if isinstance(self.backbone, ImageTower):
                return self.backbone.outputs_of(self._parts[0][-1], images)
            return self._parts[0](images)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), or outputs of the frozen blocks -> pooled features (B, C) before the projection."""
        return self.backbone(images) if images.shape[1] == 3 else self._parts[1](images)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.features(images))


def projection(features: int, embedding_dim: int, own: nn.Module | None) -> nn.Module:
    """(B, features) -> (B, embedding_dim): a new linear layer, or `own`. Raises ValueError for another width."""
    if own is None:
        return nn.Linear(features, embedding_dim)
    width = getattr(own, "out_features", features)  # an identity gives the features
    if width != embedding_dim:
        raise ValueError(f"model.embedding_dim = {embedding_dim}: the pretrained projection gives {width}")
    return own
