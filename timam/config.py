"""The settings of a run, with bounds in their types; the presets of presets.yaml; overrides by KEY=VALUE.

Marks in the comments: [paper] stated in the paper, [recalled] believed to be in it, [ours] our choice.
"""

import dataclasses
import hashlib
import json
import os
import re
import reprlib
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

LONGEST_TEXT = 100_000  # characters of a caption or query; captions of the benchmarks have at most about 700
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def check_sentences(texts: list[Any], name: str) -> None:
    """ValueError, with its NAME for str.format, for what is no text, blank, no Unicode text, or too long."""
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip() or re.search(r"[\ud800-\udfff]", text):
            raise ValueError(f"{name.format(i)} = {reprlib.repr(text)}: expected a sentence")
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{name.format(i)} has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")


Pixels = Annotated[int, Field(ge=32, le=1024)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int | None, Field(ge=1)]
Nonnegative = Annotated[float, Field(ge=0)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Optimizer = Literal["sgd", "adam", "adamw"]
# Strict: 3.0 and true are no whole numbers. An integer is a number.
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _in_words(error: Any, section: str) -> str:
    if error["type"] == "value_error":  # of our own validators
        return str(error["ctx"]["error"])
    name, fields = str(error["loc"][0]), _FIELDS[section]
    key = f"{section}.{name}".lstrip(".")
    if name not in fields:
        return f"unknown setting {key}; {section or 'a config'} has: {', '.join(fields)}"
    return f"{key} = {reprlib.repr(error['input'])}: {error['msg'].replace('Input should be', 'expected')}"


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Inside, pydantic's error becomes a ValueError in plain words, a line for each setting."""
    try:
        yield
    except ValidationError as error:
        section = error.title.removesuffix("Config").lower()
        raise ValueError("\n".join(_in_words(e, section) for e in error.errors())) from None


def added(default: Any) -> Any:
    """A setting that was added after the first runs. Its default must do what was done before: there it is left out of
    the fingerprint, so that the folders of older runs are still found."""
    return dataclasses.field(default=default, metadata={"added": True})


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Which data, and how batches are drawn from it."""

    dataset: str = "pedestrians"
    root: str = ""
    columns: str = added("")  # of a table under other names than ours: "caption=text;image_path=file"
    # Pictures a step. The matching loss compares each with every caption of the batch, so 2 are needed [recalled].
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 64
    # 0: shuffled batches. K: batches of K pictures of each identity; K must divide the batch size [ours].
    images_per_identity: Annotated[int, Field(ge=0)] = 0
    color_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0  # brightness, contrast, saturation times 1 +- this; 0 = off
    horizontal_flip: bool = True  # mirrors half of the pictures; wrong where captions tell left from right
    pad_crop: Annotated[int, Field(ge=0, le=1024)] = 0  # pixels of zero padding before a random crop; 0 = off
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability that a random rectangle is blanked

    @model_validator(mode="after")
    def _check_identities_fill_a_batch(self) -> "DataConfig":
        k = self.images_per_identity
        if k and self.batch_size % k:
            raise ValueError(f"data.images_per_identity = {k}: expected a divisor of {self.batch_size}, the batch size")
        return self

    @property
    def renamed(self) -> dict[str, str]:
        """{our name: the table's column}, as `timam.data.load_dataset` takes it; of `columns`."""
        pairs = (part.partition("=") for part in self.columns.split(";") if part)
        return {name.strip(): column.strip() for name, _, column in pairs}


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The encoders, the joint space and the discriminator."""

    # A torchvision classification model [paper: ResNet-101], or a transformers checkpoint: CLIP, SigLIP, ViT, DINOv2.
    backbone: str = "resnet101"
    backbone_weights: str = "IMAGENET1K_V1"  # torchvision's name of the weights, "none" for random ones, or a file
    image_height: Pixels = 224  # [ours]
    image_width: Pixels = 224
    language_model: str = "bert-base-uncased"  # transformers' name or a folder; "none": learned word embeddings
    language_model_weights: bool = True  # False: the architecture with random weights
    max_tokens: Annotated[int, Field(ge=4, le=512)] = 64  # word pieces of a caption, special tokens included [ours]
    word_embedding_dim: Width = 300  # only with language_model = "none" [ours]
    normalize_words: bool = added(False)  # word states get mean 0 and variance 1 each before the LSTM [ours]
    lstm_hidden: Width = 512  # per direction [ours]
    lstm_summary: Literal["max", "last"] = "max"  # masked maximum over time, or each direction's last state [ours]
    text_head: Literal["lstm", "pooled"] = added("lstm")  # "pooled": the language model's own pooling [paper: LSTM]
    projection: Literal["new", "pretrained"] = added("new")  # "pretrained": CLIP and SigLIP keep theirs [ours]
    embedding_dim: Width = 512  # D [recalled]
    shared_classifier: bool = True  # one identity classifier for both modalities, or one each [ours]
    normalized_classifier: bool = True  # its rows have unit length: norm-softmax [paper]; False: plain softmax
    discriminator_hidden: Width = 256  # width between the discriminator's two linear layers [ours]
    discriminator_conditional: bool = added(False)  # it also sees the identity: its row of the classifier [ours]


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """The weighted sum that the encoders minimise; all weights are 1 in the paper. A weight of 0 turns a term off."""

    identification_weight: Nonnegative = 1.0  # L_I [paper]
    matching_weight: Nonnegative = 1.0  # L_M [paper]
    adversarial_weight: Nonnegative = 1.0  # L_D [paper]
    matching: Literal["cmpm", "sdm", "infonce", "triplet"] = added("cmpm")  # the matching loss [paper: CMPM]
    temperature: Annotated[float, Field(gt=0, le=1)] = added(0.02)  # of "sdm"; "infonce" learns it from there [ours]
    margin: Annotated[float, Field(ge=0, le=2)] = added(0.2)  # of "triplet", a difference of cosines [ours]
    matching_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-8  # inside the logarithm of "cmpm" and "sdm" [ours]
    # "alternating": the encoders minimise the discriminator's loss with exchanged labels [ours].
    adversarial_form: Literal["alternating", "gradient_reversal"] = "alternating"
    adversarial_input: Literal["raw", "unit"] = "raw"  # embeddings as they are, or all scaled to length sqrt(D) [ours]
    gradient_penalty: Nonnegative = 0.0  # weight of the R1 penalty on the discriminator; 0 = off [paper: none]
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # the target for images is 1 - this [recalled]
    discrepancy: Literal["mmd", "coral"] = added("mmd")  # the distance that `discrepancy_weight` weights
    discrepancy_weight: Nonnegative = added(0.0)  # in place of the adversary, or beside it; 0 = off [paper: none]


@dataclass(frozen=True, config=_STRICT)
class TrainConfig:
    """Schedule and optimizers. Epochs are counted from 1."""

    epochs: Count = 60  # [ours]
    max_steps: CountOrNone = None  # steps an epoch at most: then an epoch visits a part of the pictures
    image_optimizer: Optimizer = "sgd"  # of the image encoder, with momentum 0.9 [recalled]
    text_optimizer: Optimizer = "adam"  # of the text encoder [recalled] and the identity classifier [ours]
    discriminator_optimizer: Optimizer = "sgd"  # [recalled]
    image_lr: LearningRate = 2e-4  # [recalled]
    text_lr: LearningRate = 2e-4  # [recalled]
    language_model_lr: LearningRate = 2e-5  # once it is unfrozen [ours]
    # Times the rates: for what has no pretrained weights beside the encoders (projections, LSTM, classifier) [ours].
    new_layers_factor: Annotated[float, Field(gt=0, le=1000)] = added(1.0)
    discriminator_lr: LearningRate = 2e-4  # [recalled]
    discriminator_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # SGD's, or Adam's first beta
    discriminator_steps: Annotated[int, Field(ge=1, le=16)] = 1  # for each step of the encoders [ours]
    weight_decay: Nonnegative = 4e-4  # [recalled]
    # "plateau": rates are divided by 10 when the validation score stops rising [recalled].
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    plateau_patience: Count = 5  # epochs without a better validation score before the division [ours]
    minimum_lr: Nonnegative = 2e-6  # the plateau schedule goes no lower [recalled]
    warmup_epochs: Nonnegative = 0.0  # linear from 0, with "cosine" and "constant"
    unfreeze_epoch: CountOrNone = None  # the first epoch that trains the language model; None: not by epoch
    unfreeze_patience: CountOrNone = 3  # unfreeze after so many epochs without a better score; None: not by score
    init: str = added("")  # a run or a TIMAM (folder, hub id) whose encoders training starts from; "": none [ours]
    # The first blocks keep weights and statistics; their outputs are stored unless pictures are augmented [ours].
    frozen_blocks: Annotated[int, Field(ge=0)] = added(0)
    gradient_clip: Nonnegative = 0.0  # greatest norm of the encoders' gradient, and of the discriminator's; 0 = off
    early_stop: CountOrNone = 15  # stop after so many epochs without a better validation score [ours]
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # "auto": bf16 where the GPU has it, else "no"
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = added("none")  # also gets what history.csv gets
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # as many bits as NumPy's generator takes


@dataclass(frozen=True, config=_STRICT)
class Config:
    """Everything needed to repeat a run; RUN/config.json holds it."""

    preset: str = "paper"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


_TYPES: dict[str, Any] = {"data": DataConfig, "model": ModelConfig, "loss": LossConfig, "train": TrainConfig}
SECTIONS = tuple(_TYPES)
_FIELDS = {section: cls.__pydantic_fields__ for section, cls in {**_TYPES, "": Config}.items()}


def fingerprint(config: Config) -> str:
    """8 hex digits that differ where any setting differs: names the run's directory."""
    settings = dataclasses.asdict(config)
    for section, cls in _TYPES.items():
        for field in dataclasses.fields(cls):
            if "added" in field.metadata and settings[section][field.name] == field.default:
                del settings[section][field.name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _parse(text: str, field: Any) -> Any:
    """The value of a command line's text: a text with ~ as the home folder, or true, false, none or a number."""
    if field is None or field.annotation is str or typing.get_origin(field.annotation) is Literal:
        return os.path.expanduser(text) if text.startswith("~/") else text
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


@_plain_errors()
def override(config: Config, assignments: list[str]) -> Config:
    """The config with `SECTION.FIELD=VALUE` (or `FIELD=VALUE`) applied together. ValueError says what is wrong."""
    changes: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ValueError(f"{assignment!r}: expected KEY=VALUE, for example train.epochs=3")
        section, dot, name = key.rpartition(".")
        if not dot:  # field names are unique over the sections
            section = next((s for s in SECTIONS if name in _FIELDS[s]), "")
        if section not in SECTIONS:
            every = ", ".join(f"{s}.{k}" for s in SECTIONS for k in _FIELDS[s])
            raise ValueError(f"unknown setting {key!r}; the settings are: {every}")
        changes.setdefault(section, {})[name] = _parse(text, _FIELDS[section].get(name))
    return replace(config, **{section: replace(getattr(config, section), **new) for section, new in changes.items()})


@_plain_errors()
def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `asdict`; absent settings keep the defaults of `paper`. Raises ValueError as `override`."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    sections = {s: _TYPES[s](**v) if s in _TYPES and isinstance(v, dict) else v for s, v in values.items()}
    return Config(**sections)


_DECLARED = yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))
PRESETS: dict[str, Config] = {
    name: override(Config(preset=name), [f"{key}={value}" for key, value in settings.items()])
    for name, settings in _DECLARED.items()
    if not name.startswith(".")  # only a part of presets
}


def flat(config: Config) -> dict[str, Any]:
    """{"section.field": value}."""
    values = dataclasses.asdict(config)
    return {f"{section}.{name}": value for section in SECTIONS for name, value in values[section].items()}


def departures(config: Config, base: Config) -> dict[str, tuple[Any, Any]]:
    """Settings in which a config differs from another: {"section.field": (the other's value, the config's)}."""
    theirs = flat(base)
    return {key: (theirs[key], value) for key, value in flat(config).items() if theirs[key] != value}
