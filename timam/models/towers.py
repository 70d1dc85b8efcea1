"""Encoders of transformers: what TIMAM must know of each architecture. A new one is a line of `TOWERS`.

A tower is the image or the text encoder of a checkpoint. CLIP and SigLIP have both, and each serves alone, too.
"""

import inspect
import json
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from timam.images import IMAGENET_MEAN, IMAGENET_STD

Colour = tuple[float, float, float]
_HALF: Colour = (0.5, 0.5, 0.5)
_CLIP: dict[str, Any] = {"mean": tuple(OPENAI_CLIP_MEAN), "std": tuple(OPENAI_CLIP_STD)}


@dataclass(frozen=True)
class Tower:
    """An architecture."""

    model: str  # its class in transformers
    body: str = ""  # the attribute that holds the encoder, where the class adds a projection to it
    projection: str = ""  # the attribute of the projection into the space that images and texts share
    sees: bool = True  # it encodes images. A text tower's sentence embedding is the state of its last token.
    shared_space: bool = False  # its features are in the shared space without a projection
    padded: bool = False  # it was trained on sentences padded to full length, without an attention mask
    mean: Colour = IMAGENET_MEAN  # of its pixels, where the checkpoint has no preprocessor_config.json
    std: Colour = IMAGENET_STD
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of the class


TOWERS = {
    "clip_vision_model": Tower("CLIPVisionModelWithProjection", "vision_model", "visual_projection", **_CLIP),
    "siglip_vision_model": Tower("SiglipVisionModel", shared_space=True, mean=_HALF, std=_HALF),
    "vit": Tower("ViTModel", mean=_HALF, std=_HALF, options={"add_pooling_layer": False}),
    "dinov2": Tower("Dinov2Model"),
    "dinov2_with_registers": Tower("Dinov2WithRegistersModel"),
    "clip_text_model": Tower("CLIPTextModelWithProjection", "text_model", "text_projection", sees=False),
    "siglip_text_model": Tower("SiglipTextModel", projection="head", sees=False, padded=True),
}
IMAGE_TOWERS = [name for name, tower in TOWERS.items() if tower.sees]
TEXT_TOWERS = [name for name, tower in TOWERS.items() if not tower.sees]


class ImageTower(nn.Module):
    """Pictures (B, 3, H, W) float32, normalised as ImageNet's, -> pooled features (B, C).

    Position embeddings are interpolated (bicubic) to other sizes than the checkpoint's. The model is of a class in
    `TOWERS`; mean and std are what it expects of its pixels in [0, 1], and what the pictures are changed to.
    """

    projection: nn.Module | None  # the pretrained one into the shared space, if there is one
    scale: Tensor
    shift: Tensor

    def __init__(self, model: transformers.PreTrainedModel, mean: Colour, std: Colour) -> None:
        super().__init__()
        kind = TOWERS[model.config.model_type]
        self.projection = nn.Identity() if kind.shared_space else getattr(model, kind.projection, None)
        self.model: Any = getattr(model, kind.body, model)
        takes = inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        colours = mean, std, IMAGENET_MEAN, IMAGENET_STD
        own_mean, own_std, mean_in, std_in = (torch.tensor(colour).view(3, 1, 1) for colour in colours)
        self.register_buffer("scale", std_in / own_std)
        self.register_buffer("shift", (mean_in - own_mean) / own_std)

    def blocks(self) -> list[list[str]]:
        """Names of the submodules of the embeddings, with a layer norm that CLIP has there, and of each layer."""
        stem = [name for name, _ in self.named_modules() if name in ("model.embeddings", "model.pre_layrnorm")]
        layers = next(n for n, m in self.named_modules() if isinstance(m, nn.ModuleList))
        return [stem, *([f"{layers}.{n}"] for n in range(len(self.get_submodule(layers))))]  # type: ignore[arg-type]

    def outputs_of(self, block: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> what a block gives for them, (B, C, T, 1)."""
        found: list[Tensor] = []
        with block.register_forward_hook(lambda *call: found.append(call[-1])):
            self(images)
        return found[0].transpose(1, 2)[..., None]

    def forward(self, images: Tensor) -> Tensor:
        """Pictures, or in a tower without its first blocks their outputs (B, C, T, 1) -> (B, C)."""
        own = images * self.scale + self.shift if images.shape[1] == 3 else images[..., 0].transpose(1, 2)
        outputs = self.model(pixel_values=own, **self.options)
        pooled = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state[:, 0] if pooled is None else pooled


def tower_of(config: Any) -> Tower:
    """What there is to know of an architecture by its transformers config; of one without a line: `AutoModel`."""
    return TOWERS.get(config.model_type, Tower("AutoModel", sees=False))


def split_text(model: Any) -> tuple[Any, nn.Module | None]:
    """A text model without its projection, and the pretrained projection, None where there is none."""
    tower = tower_of(model.config)
    projection = getattr(model, tower.projection, None)
    if not tower.body and projection is not None:
        setattr(model, tower.projection, nn.Identity())  # its forward calls it
    return getattr(model, tower.body, model), projection


def padded_length(model: Any) -> int | None:
    """Tokens that every sentence is padded to; None where a model has an attention mask for padding."""
    return longest_input(model) if model is not None and tower_of(model.config).padded else None


def longest_input(model: Any) -> int:
    """Tokens that a language model has positions for."""
    limits = [getattr(model.config, "max_position_embeddings", None) or sys.maxsize]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # RoBERTa and MPNet number the positions from behind the padding's own id.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def image_part(config: Any, name: str) -> Any:
    """The config of a checkpoint's image tower. Raises ValueError naming the checkpoint."""
    part = getattr(config, "vision_config", config)
    if part.model_type not in IMAGE_TOWERS:
        raise ValueError(
            f"model.backbone = {name!r}: a model of the type {config.model_type}; expected one of torchvision, or of "
            f"the types {', '.join(IMAGE_TOWERS)} or a pair with one of them"
        )
    return _with_projection(part, config)


def text_part(config: Any, name: str) -> Any:
    """The config of a checkpoint's text tower. Raises ValueError naming the checkpoint."""
    part = getattr(config, "text_config", config)
    wrong = ""
    if part is not config and part.model_type not in TEXT_TOWERS:
        wrong = f"its text encoder is a {part.model_type}; expected {', '.join(TEXT_TOWERS)} or one that stands alone"
    elif getattr(part, "vocab_size", None) is None:
        wrong = f"a model of the type {config.model_type}, which reads no text"
    elif part.is_encoder_decoder:
        wrong = "has a decoder; expected an encoder of texts"
    if wrong:
        raise ValueError(f"model.language_model = {name!r}: {wrong}")
    return _with_projection(part, config)


def _with_projection(part: Any, config: Any) -> Any:
    if part is not config and hasattr(config, "projection_dim"):
        part.projection_dim = config.projection_dim  # the pair's, which counts; the parts have a default of their own
    return part


def from_config(config: Any) -> Any:
    """A tower with random weights, in float32."""
    tower = tower_of(config)
    if tower.model == "AutoModel":
        model = transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        return without_pooler(model)
    return getattr(transformers, tower.model)._from_config(config, dtype=torch.float32, **tower.options)


def without_pooler(model: Any) -> Any:
    """BERT's pooler reads the first token only. TIMAM reads all of them, so the pooler would get no gradient."""
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def config_of(values: dict[str, Any]) -> Any:
    """The transformers config in a saved model's config.json.

    Raises ValueError for one that makes transformers fetch another model or an attention kernel, which is code.
    """
    unused = ("model_type", "transformers_version", "num_labels", "id2label", "label2id", "auto_map")
    kept = {key: value for key, value in values.items() if key not in unused}
    _check_fetches_nothing(json.dumps(kept))  # before transformers sees it
    config = transformers.AutoConfig.for_model(values["model_type"], **kept)
    _check_fetches_nothing(config.to_json_string(use_diff=False))
    return config


def _check_fetches_nothing(config: str) -> None:
    for word in ("backbone", "attn_implementation", "experts_implementation", "quantization_config"):
        if word in config:
            raise ValueError(f"a config asks for {word}: expected an encoder that needs nothing else")
