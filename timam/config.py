"""What a run is: frozen dataclasses with bounds, the presets, and overrides by KEY=VALUE.

Marks in the comments: [paper] stated in the paper, [recalled] believed to be in it, [ours] our choice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timam.files import read_json

LONGEST_TEXT = 100_000  # characters of a caption or query: the benchmarks' have at most some 700
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def _check(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {reprlib.repr(value)}: expected {expected}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _check(value in choices, name, value, "one of " + ", ".join(choices))


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how batches are drawn from it."""

    dataset: str = "pedestrians"
    root: str = ""
    batch_size: int = 64  # pictures a step; the matching loss compares each with every caption of the batch [recalled]
    images_per_identity: int = 0  # 0: shuffle; K: identity-aware batches, K pictures of each identity [ours]
    color_jitter: float = 0.0  # brightness, contrast and saturation times a factor in 1 +- this; 0 = off
    horizontal_flip: bool = True  # mirrors half the pictures; wrong where captions tell left from right
    pad_crop: int = 0  # pixels of zero padding before a random crop of the original size; 0 = off
    random_erasing: float = 0.0  # probability that a random rectangle of a picture is blanked

    def __post_init__(self) -> None:
        _check(2 <= self.batch_size <= 2**20, "data.batch_size", self.batch_size, "2 (pairs are compared) to 1,048,576")
        _check(self.images_per_identity >= 0, "data.images_per_identity", self.images_per_identity, "0 (off) or more")
        k = self.images_per_identity
        _check(k == 0 or self.batch_size % k == 0, "data.images_per_identity", k, f"a divisor of {self.batch_size}")
        _check(0 <= self.color_jitter < 1, "data.color_jitter", self.color_jitter, "at least 0 (off), below 1")
        _check(0 <= self.pad_crop <= 1024, "data.pad_crop", self.pad_crop, "0 (off) to 1024 pixels")
        _check(0 <= self.random_erasing <= 1, "data.random_erasing", self.random_erasing, "a probability in [0, 1]")


@dataclass(frozen=True)
class ModelConfig:
    """The encoders, the joint space and the discriminator."""

    backbone: str = "resnet101"  # any torchvision classification model [paper: ResNet-101]
    backbone_weights: str = "IMAGENET1K_V1"  # torchvision's name of the weights, or "none" for random ones
    image_height: int = 224  # pixels [ours]
    image_width: int = 224
    language_model: str = "bert-base-uncased"  # transformers' name or a folder; "none": learned word embeddings
    language_model_weights: bool = True  # False: the architecture with random weights
    max_tokens: int = 64  # word pieces kept of a caption, special tokens included [ours]
    word_embedding_dim: int = 300  # only with language_model = "none" [ours]
    lstm_hidden: int = 512  # per direction [ours]
    lstm_summary: str = "max"  # over time: "max" (masked) or "last" (the last state of each direction) [ours]
    embedding_dim: int = 512  # D [recalled]
    shared_classifier: bool = True  # one identity classifier for both modalities, or one each [ours]
    normalized_classifier: bool = True  # its rows have unit length: norm-softmax [paper]; False: plain softmax
    discriminator_hidden: int = 256  # width between the discriminator's two linear layers [ours]

    def __post_init__(self) -> None:
        for name in ("image_height", "image_width"):
            _check(32 <= getattr(self, name) <= 1024, f"model.{name}", getattr(self, name), "32 to 1024 pixels")
        for name in ("word_embedding_dim", "lstm_hidden", "embedding_dim", "discriminator_hidden"):
            _check(1 <= getattr(self, name) <= 2**16, f"model.{name}", getattr(self, name), "1 to 65,536")
        _check(4 <= self.max_tokens <= 512, "model.max_tokens", self.max_tokens, "4 to 512 word pieces")
        _check_choice("model.lstm_summary", self.lstm_summary, ("max", "last"))


@dataclass(frozen=True)
class LossConfig:
    """The weighted sum that the encoders minimise; all weights are 1 in the paper."""

    identification_weight: float = 1.0  # L_I [paper]
    matching_weight: float = 1.0  # L_M [paper]
    adversarial_weight: float = 1.0  # L_D [paper]
    adversarial_form: str = "alternating"  # labels flipped for the encoders, or "gradient_reversal" [ours]
    adversarial_input: str = "raw"  # what the discriminator sees; or "unit": all of one length, sqrt(D) [ours]
    gradient_penalty: float = 0.0  # R1 weight on the discriminator's slope; 0 = off [paper: none]
    label_smoothing: float = 0.1  # one-sided: the discriminator's target for images is 1 - this [recalled]
    matching_epsilon: float = 1e-8  # inside the logarithm of the matching loss [ours]

    def __post_init__(self) -> None:
        for name in ("identification_weight", "matching_weight", "adversarial_weight", "gradient_penalty"):
            _check(0 <= getattr(self, name) < float("inf"), f"loss.{name}", getattr(self, name), "0 (off) or more")
        _check_choice("loss.adversarial_form", self.adversarial_form, ("alternating", "gradient_reversal"))
        _check_choice("loss.adversarial_input", self.adversarial_input, ("raw", "unit"))
        _check(0 <= self.label_smoothing < 0.5, "loss.label_smoothing", self.label_smoothing, "at least 0, below 0.5")
        _check(0 < self.matching_epsilon < 1, "loss.matching_epsilon", self.matching_epsilon, "between 0 and 1")


OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class TrainConfig:
    """Schedule and optimizers. Epochs are counted from 1."""

    epochs: int = 60  # [ours]
    max_steps: int | None = None  # steps an epoch at most, for trials
    image_optimizer: str = "sgd"  # with momentum 0.9; image encoder [recalled]
    text_optimizer: str = "adam"  # text encoder and identity classifier [recalled; the classifier: ours]
    discriminator_optimizer: str = "sgd"  # [recalled]
    image_lr: float = 2e-4  # [recalled]
    text_lr: float = 2e-4  # [recalled]
    language_model_lr: float = 2e-5  # once it is unfrozen [ours]
    discriminator_lr: float = 2e-4  # [recalled]
    discriminator_momentum: float = 0.9  # SGD's, or Adam's first beta
    discriminator_steps: int = 1  # of the discriminator for each of the encoders [ours]
    weight_decay: float = 4e-4  # [recalled]
    schedule: str = "plateau"  # "plateau": divide by 10 on a validation plateau; "cosine"; "constant" [recalled]
    plateau_patience: int = 5  # epochs without a better validation score before the division [ours]
    minimum_lr: float = 2e-6  # the plateau schedule goes no lower [recalled]
    warmup_epochs: float = 0.0  # linear from 0, with "cosine" and "constant"
    unfreeze_epoch: int | None = None  # the first epoch that trains the language model; None: not by epoch
    unfreeze_patience: int | None = 3  # unfreeze after so many epochs without a better score; None: not by plateau
    gradient_clip: float = 0.0  # greatest norm of each player's gradient; 0 = off
    early_stop: int | None = 15  # stop after so many epochs without a better validation score [ours]
    mixed_precision: str = "auto"  # "auto": bf16 where the GPU has it, else "no"; or "no", "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        for name in ("max_steps", "unfreeze_epoch", "unfreeze_patience", "early_stop"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"train.{name}", value, "1 or more, or none")
        for name in ("image_optimizer", "text_optimizer", "discriminator_optimizer"):
            _check_choice(f"train.{name}", getattr(self, name), OPTIMIZERS)
        for name in ("image_lr", "text_lr", "language_model_lr", "discriminator_lr"):
            _check(0 < getattr(self, name) <= 1, f"train.{name}", getattr(self, name), "above 0, at most 1")
        for name in ("weight_decay", "minimum_lr", "warmup_epochs", "gradient_clip"):
            _check(0 <= getattr(self, name) < float("inf"), f"train.{name}", getattr(self, name), "0 or more")
        _check(0 <= self.discriminator_momentum < 1, "train.discriminator_momentum", self.discriminator_momentum,
               "at least 0, below 1")  # fmt: skip
        _check(1 <= self.discriminator_steps <= 16, "train.discriminator_steps", self.discriminator_steps, "1 to 16")
        _check(0 <= self.seed < 2**32, "train.seed", self.seed, "0 or more, below 2**32")  # as NumPy's generator
        _check(self.plateau_patience >= 1, "train.plateau_patience", self.plateau_patience, "1 or more")
        _check_choice("train.schedule", self.schedule, ("plateau", "cosine", "constant"))
        _check_choice("train.mixed_precision", self.mixed_precision, ("auto", "no", "bf16"))


@dataclass(frozen=True)
class Config:
    """Everything needed to repeat a run; RUN/config.json holds it."""

    preset: str = "paper"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SECTIONS = ("data", "model", "loss", "train")

# The adversarial game as notebook 10 found it to settle: a quick discriminator without momentum and with a small slope.
# Without that, with Adam as here, the modalities run away from each other; the paper's SGD was not tried there.
_STEADIED_LOSS = LossConfig(adversarial_input="unit", gradient_penalty=10.0, label_smoothing=0.0)
_STEADIED: dict[str, Any] = {
    "discriminator_optimizer": "adamw", "discriminator_lr": 5e-3, "discriminator_momentum": 0.0,
    "discriminator_steps": 4,
}  # fmt: skip

# A small TIMAM whose pretrained parts need no hub, sized for minutes on two CPU cores [ours].
_QUICK = Config(
    preset="quick",
    data=DataConfig(batch_size=32, horizontal_flip=False),
    model=ModelConfig(
        backbone="mobilenet_v2", image_height=128, image_width=64, language_model=MINILM, max_tokens=48,
        lstm_hidden=256, embedding_dim=256, discriminator_hidden=128,
    ),
    loss=_STEADIED_LOSS,
    train=TrainConfig(
        **_STEADIED, epochs=10, image_optimizer="adamw", text_optimizer="adamw",
        image_lr=1e-3, text_lr=2e-3, schedule="cosine", warmup_epochs=0.5,
        unfreeze_epoch=10, unfreeze_patience=None, gradient_clip=10.0, early_stop=None,
    ),
)  # fmt: skip

PRESETS: dict[str, Config] = {
    # The quick preset shrunk until a run takes seconds; its numbers mean nothing.
    "smoke": dataclasses.replace(
        _QUICK,
        preset="smoke",
        data=dataclasses.replace(_QUICK.data, batch_size=8),
        model=dataclasses.replace(_QUICK.model, image_height=64, image_width=32, max_tokens=16, lstm_hidden=32,
                                  embedding_dim=32, discriminator_hidden=16),
        train=dataclasses.replace(_QUICK.train, epochs=2, max_steps=4, unfreeze_epoch=2),
    ),
    "quick": _QUICK,
    "paper": Config(),  # the paper's architecture and schedule: the defaults above
    # What later work found better; `departures("modern")` names every difference from `paper`.
    "modern": Config(
        preset="modern",
        data=DataConfig(pad_crop=10, random_erasing=0.5),
        model=ModelConfig(backbone_weights="IMAGENET1K_V2", image_height=384, image_width=128),
        loss=_STEADIED_LOSS,
        train=TrainConfig(
            **_STEADIED, image_optimizer="adamw", text_optimizer="adamw", image_lr=1e-4,
            schedule="cosine", warmup_epochs=5.0, unfreeze_epoch=6, unfreeze_patience=None, gradient_clip=10.0,
            weight_decay=0.02,
        ),
    ),
}  # fmt: skip


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def fingerprint(config: Config) -> str:
    """8 hex digits that differ where any setting differs: names the run's directory."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def departures(preset: str, base: str = "paper") -> dict[str, tuple[Any, Any]]:
    """Settings in which one preset differs from another: {"section.field": (base value, preset value)}."""
    ours, theirs = to_dict(PRESETS[preset]), to_dict(PRESETS[base])
    pairs = {f"{s}.{k}": (theirs[s][k], ours[s][k]) for s in SECTIONS for k in ours[s]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` from JSON or from a command line as `kind`; a string stands for any kind. Raises ValueError."""
    if isinstance(kind, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if kind is int and isinstance(value, str):
            return int(value)
        if kind is float and isinstance(value, (str, int)) and not isinstance(value, bool):
            return float(value)
    except (KeyError, OverflowError, ValueError):
        pass
    if type(value) is not kind:
        raise ValueError(f"{name} = {reprlib.repr(value)}: expected {kind.__name__}")
    return value


def _fields(section: str) -> dict[str, Any]:
    return typing.get_type_hints(type(getattr(PRESETS["paper"], section)))


def _replace(config: Config, section: str, values: dict[str, Any]) -> Config:
    kinds = _fields(section)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ValueError(f"unknown setting {section}.{unknown[0]}; {section} has: {', '.join(kinds)}")
    converted = {k: _convert(f"{section}.{k}", v, kinds[k]) for k, v in values.items()}
    new_section = dataclasses.replace(getattr(config, section), **converted)
    return dataclasses.replace(config, **{section: new_section})


def override(config: Config, assignments: list[str]) -> Config:
    """The config with `SECTION.FIELD=VALUE` (or `FIELD=VALUE`) applied in order.

    Raises:
        ValueError: an unknown setting, a value of the wrong type or out of bounds, or no "=".
    """
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r}: expected KEY=VALUE, for example train.epochs=3")
        section, dot, name = key.strip().rpartition(".")
        if not dot:  # field names are unique over the sections
            section = next((s for s in SECTIONS if name in _fields(s)), "")
        if section not in SECTIONS:
            every = ", ".join(f"{s}.{k}" for s in SECTIONS for k in _fields(s))
            raise ValueError(f"unknown setting {key.strip()!r}; the settings are: {every}")
        config = _replace(config, section, {name: value.strip()})
    return config


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; absent settings keep the defaults of `paper`. Raises ValueError as `override`."""
    unknown = sorted(set(values) - {"preset", *SECTIONS})
    if unknown:
        raise ValueError(f"unknown section {unknown[0]!r}; a config has: preset, {', '.join(SECTIONS)}")
    config = dataclasses.replace(Config(), preset=_convert("preset", values.get("preset", "paper"), str))
    for section in SECTIONS:
        entries = values.get(section, {})
        if not isinstance(entries, dict):
            raise ValueError(f"{section} = {reprlib.repr(entries)}: expected an object of settings")
        config = _replace(config, section, entries)
    return config


def load(path: Path) -> Config:
    """Reads a config.json. Raises ValueError naming the file and what is wrong with it."""
    values = read_json(path)
    try:
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, found {type(values).__name__}")
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
