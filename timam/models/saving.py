"""Saving a model as a folder, and reading one back, which may come from a stranger.

The folder holds model.safetensors, config.json and tokenizer/. No file of it can run code or make the reader fetch
anything, and a config with other sizes than the weights is refused before memory is taken.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from timam import config as configs
from timam.files import check_sums, read_json
from timam.models import towers
from timam.models.weights import empty_encoders

if TYPE_CHECKING:
    from timam.models.joint import TIMAM


def public_name(name: str) -> str:
    """A name on the hub as it is; of a folder or file, also one that is gone, only the last part: it is private."""
    path = Path(name).expanduser()
    local = path.exists() or path.is_absolute() or name[:1] in (".", "~") or len(path.parts) > 2  # not OWNER/NAME
    return path.resolve().name if local else name


def save(model: "TIMAM", folder: Path) -> None:
    """Writes everything that `load` needs into an existing folder."""
    keys = ("backbone", "backbone_weights", "language_model")
    names = {key: public_name(getattr(model.model_config, key)) for key in keys}
    content = {
        "model": {**dataclasses.asdict(model.model_config), **names},
        "num_identities": model.num_identities,
        "language_model_config": transformers_config(model.text_encoder.language_model),
        "backbone_config": transformers_config(getattr(model.image_encoder.backbone, "model", None)),
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def transformers_config(module: Any) -> dict[str, Any] | None:
    """The config of a module of transformers, without the folder that it came from; None for another module."""
    if not isinstance(module, transformers.PreTrainedModel):
        return None
    content = json.loads(module.config.to_json_string(use_diff=False))
    content.pop("_name_or_path", None)  # a folder of this machine
    return content


def fetched(name: str, **options: Any) -> Path:
    """The folder of this name, or a download of the hub repository. Raises FileNotFoundError for a path to nothing."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith(".") or len(folder.parts) > 2:  # a repository's id is OWNER/NAME
        raise FileNotFoundError(f"{name}: no such folder")
    wanted = ["config.json", "model.safetensors", "tokenizer/*"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, **options))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such folder, and the hub cannot be reached ({error})") from error


def load(cls: "type[TIMAM]", folder: Path) -> "TIMAM":
    """The model in a folder, in eval mode, on the CPU. Raises as `TIMAM.from_pretrained`."""
    check_sums(folder)
    content, state = _read(folder)
    path = folder / "tokenizer"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise ValueError(f"{path} is damaged: {error}") from error
    try:
        tower_configs = content["language_model_config"], content.get("backbone_config")
        model_config = configs.from_dict({"model": content["model"]}).model
        wanted = [n for c in tower_configs for k, n in (c or {}).items() if "layer" in k and type(n) is int]
        if max(wanted, default=0) > len(state):
            raise ValueError(f"{max(wanted):,} layers of {len(state)} tensors")
        words, tower = (config and towers.config_of(config) for config in tower_configs)
        encoders = empty_encoders(model_config, tower, words)  # a config of a few bytes may ask for terabytes
        with torch.device("meta"):
            model = cls(model_config, content["num_identities"], tokenizer, *encoders)
            if "modality_means" in state:  # of a finished run
                model.modality_means = torch.empty(2, model_config.embedding_dim)
    except Exception as error:  # torchvision and transformers raise many kinds
        raise ValueError(f"{folder / 'config.json'} gives no model: {type(error).__name__}: {error}") from error
    expected = model.state_dict()
    sizes, found = ({(name, tuple(t.shape)) for name, t in tensors.items()} for tensors in (expected, state))
    if wrong := sorted(sizes ^ found):
        raise ValueError(f"{folder}: model.safetensors does not fit config.json: {wrong[0]} is in one of them only")
    model.load_state_dict({name: state[name].to(t.dtype) for name, t in expected.items()}, assign=True)
    model.image_encoder.to(memory_format=torch.channels_last)
    for module in (model.text_encoder.language_model, model.image_encoder.backbone):
        _fill_buffers(module)
    return model.eval()


def _fill_buffers(module: Any) -> None:
    """Gives values to buffers that no file holds, such as the numbers of the positions: they follow from the config."""
    if not any(buffer.is_meta for buffer in module.buffers()):
        return
    module = getattr(module, "model", module)  # of an ImageTower
    with init_empty_weights(include_buffers=False):
        fresh = type(module)(module.config)
    for name, buffer in fresh.named_buffers():
        parent, _, leaf = name.rpartition(".")
        if module.get_buffer(name).is_meta:
            setattr(module.get_submodule(parent), leaf, buffer)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and model.safetensors. Raises FileNotFoundError or ValueError naming the file."""
    for name in ("config.json", "model.safetensors", "tokenizer/tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a saved TIMAM: it has no {name}")
    content = read_json(folder / "config.json")
    try:
        state = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}") from error
    for name, tensor in state.items():
        if tensor.is_complex() or not tensor.isfinite().all():
            raise ValueError(f"{folder / 'model.safetensors'}: {name} holds other than finite numbers")
    return content, state
