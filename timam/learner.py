"""What training changes and a checkpoint holds: the model, its optimizers, their schedulers, and the progress.

A checkpoint is a saved model with optimizers.safetensors and training_state.json beside it. Nothing in it is pickled.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from timam.config import Config, TrainConfig
from timam.files import check_sums, replacing_folder, write_sums
from timam.models import TIMAM


@dataclass
class Progress:
    """How far a run is: a row of history for each finished epoch, and what cannot be derived from the rows."""

    history: list[dict[str, Any]] = field(default_factory=list)
    unfrozen_at: int | None = None  # the first epoch that trained the language model
    data_fingerprint: str = ""  # of the data set
    code: list[str] = field(default_factory=list)  # fingerprint of each version of the code that trained a part of it
    kept: dict[str, str] = field(default_factory=dict)  # moment -> SHA-256 of its validation embeddings
    # Of an epoch that a signal interrupted: finished steps, the sums of their loss terms, and their seconds.
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation score; 0 before the first."""
        scores = [row["val_text_to_image_rank_1"] for row in self.history]
        return int(np.argmax(scores)) + 1 if scores else 0

    def waited(self) -> int:
        """Epochs since the best one, or since the last epoch with a frozen language model if that came later."""
        return self.epoch - max(self.best_epoch, (self.unfrozen_at or 1) - 1)

    def is_over(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or early stopping ends the training."""
        stopped = config.early_stop is not None and self.waited() >= config.early_stop
        return self.epoch >= config.epochs or stopped

    def unfreezes(self, config: TrainConfig) -> bool:
        """Whether the next epoch is the first to train the language model: by its number or on a plateau."""
        if self.unfrozen_at is not None:
            return False
        by_epoch = config.unfreeze_epoch is not None and self.epoch + 1 >= config.unfreeze_epoch
        return by_epoch or (config.unfreeze_patience is not None and self.waited() >= config.unfreeze_patience)


@dataclass
class Learner:
    """The model in training."""

    model: TIMAM
    optimizers: dict[str, Optimizer]  # "image", "text" (with the identity classifier) and "discriminator"
    schedulers: dict[str, Any]  # one for each optimizer
    progress: Progress = field(default_factory=Progress)
    # Scalar: InfoNCE's temperature, which no model needs after training.
    log_temperature: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.zeros(())))

    @classmethod
    def build(cls, model: TIMAM, config: Config, epoch_steps: int) -> "Learner":
        """A learner that starts to train this model; `epoch_steps`, the steps in an epoch, are for the schedules."""
        optimizers = build_optimizers(model, config.train)
        log_temperature = nn.Parameter(torch.tensor(math.log(config.loss.temperature), device=model.device))
        if config.loss.matching == "infonce":  # the other losses keep their temperature
            group = {"params": [log_temperature], "lr": config.train.text_lr, "weight_decay": 0.0}
            optimizers["text"].add_param_group(group)
        schedulers = build_schedulers(optimizers, config.train, epoch_steps)
        return cls(model, optimizers, schedulers, log_temperature=log_temperature)

    def end_step(self, config: TrainConfig) -> None:
        if config.schedule != "plateau":
            for scheduler in self.schedulers.values():
                scheduler.step()

    def end_epoch(self, row: dict[str, Any], config: TrainConfig) -> None:
        """Adds a row to the history; the plateau schedule looks at its validation score."""
        self.progress.history.append({"epoch": self.progress.epoch + 1, **row})
        if config.schedule == "plateau":
            for scheduler in self.schedulers.values():
                scheduler.step(row["val_text_to_image_rank_1"])

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; replaces the previous one as a whole."""
        with replacing_folder(folder) as new:
            self.model.save_pretrained(new)
            tensors, groups = {}, {}
            for name, optimizer in self.optimizers.items():
                content = optimizer.state_dict()
                groups[name] = content["param_groups"]
                for index, slots in content["state"].items():
                    for slot, value in slots.items():
                        if value is not None:  # SGD's momentum is None before the first step
                            tensors[f"{name}/{index}/{slot}"] = torch.as_tensor(value).cpu().contiguous()
            save_file(tensors, new / "optimizers.safetensors")
            state = {
                "param_groups": groups,
                "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
                "progress": asdict(self.progress),
                "log_temperature": float(self.log_temperature.detach()),
            }
            (new / "training_state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
            write_sums(new)

    def load(self, folder: Path) -> None:
        """The inverse of `save`, the progress first. Raises ValueError where a file differs from its checksum."""
        check_sums(folder)
        state = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
        known = {f.name for f in fields(Progress)}  # checkpoints of older versions hold more
        self.progress = Progress(**{key: value for key, value in state["progress"].items() if key in known})
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        slots_of: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self.optimizers}
        for key, value in load_file(folder / "optimizers.safetensors").items():
            name, index, slot = key.split("/")
            slots_of[name].setdefault(int(index), {})[slot] = value
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict({"state": slots_of[name], "param_groups": state["param_groups"][name]})
            for parameter, slots in optimizer.state.items():  # fused optimizers need both in the same memory format
                for slot, value in slots.items():
                    if slot != "step" and value.shape == parameter.shape:
                        slots[slot] = torch.empty_like(parameter).copy_(value)
            self.schedulers[name].load_state_dict(state["schedulers"][name])
        with torch.no_grad():
            self.log_temperature.fill_(state.get("log_temperature", 0.0))


# -- optimizers and schedules -----------------------------------------------------------------------------------------


def build_optimizers(model: TIMAM, config: TrainConfig) -> dict[str, Optimizer]:
    """One optimizer each for the image encoder, the text encoder with the identity classifier, and the discriminator.

    The text optimizer has the language model's parameters from the start; while it is frozen they have no gradient.
    """
    image, text = model.image_encoder, model.text_encoder
    parts = ("image_encoder", "text_encoder", "discriminator")  # the rest: the classifier, and what a new loss adds
    classifier = [p for name, p in model.named_parameters() if name.partition(".")[0] not in parts]
    own = [p for name, p in text.named_parameters() if not name.startswith("language_model.")]
    layers = [e.projection for e in (image, text) if e.new_projection] + ([] if text.pooled else [text.lstm])
    new = {*classifier, *(p for layer in layers for p in layer.parameters())}  # they start from random values
    # Learned word embeddings start from random values, so they need the rate of the other new layers.
    new_lr = config.text_lr * config.new_layers_factor
    language_lr = new_lr if text.learns_words else config.language_model_lr
    language_model = {"params": list(text.language_model.parameters()), "lr": language_lr}
    images = _groups(list(image.parameters()), config.image_lr, new, config)
    texts = [*_groups(own + classifier, config.text_lr, new, config), language_model]
    discriminator = [{"params": list(model.discriminator.parameters()), "lr": config.discriminator_lr}]
    decay, momentum = config.weight_decay, config.discriminator_momentum
    return {
        "image": _optimizer(config.image_optimizer, images, 0.9, decay),
        "text": _optimizer(config.text_optimizer, texts, 0.9, decay),
        "discriminator": _optimizer(config.discriminator_optimizer, discriminator, momentum, decay),
    }


def _groups(parameters: list[nn.Parameter], lr: float, new: set[Any], config: TrainConfig) -> list[dict[str, Any]]:
    """One group at this rate; with `train.new_layers_factor` the new layers are a second one."""
    if config.new_layers_factor == 1:
        return [{"params": parameters, "lr": lr}]
    old, fresh = ([p for p in parameters if (p in new) is wanted] for wanted in (False, True))
    groups = [{"params": old, "lr": lr}, {"params": fresh, "lr": lr * config.new_layers_factor}]
    return [group for group in groups if group["params"]]


def _optimizer(kind: str, groups: list[dict[str, Any]], momentum: float, weight_decay: float) -> Optimizer:
    # Fused: reads and writes each parameter once a step instead of about ten times.
    if kind == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=True)
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam(groups, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def build_schedulers(optimizers: dict[str, Optimizer], config: TrainConfig, epoch_steps: int) -> dict[str, Any]:
    """A learning-rate scheduler for each optimizer. "plateau" steps once an epoch, the others once a step."""
    if config.schedule == "plateau":
        # Any higher score counts as better: a relative threshold would take slow progress for a plateau.
        options: dict[str, Any] = {"mode": "max", "factor": 0.1, "threshold": 0.0, "threshold_mode": "abs"}
        patience, lowest = config.plateau_patience, config.minimum_lr
        return {n: ReduceLROnPlateau(o, patience=patience, min_lr=lowest, **options) for n, o in optimizers.items()}
    warmup = round(config.warmup_epochs * epoch_steps)
    last = config.epochs * epoch_steps if config.schedule == "cosine" else None
    return {name: LambdaLR(o, lambda step: rate_factor(step, warmup, last)) for name, o in optimizers.items()}


def rate_factor(step: int, warmup_steps: int, total_steps: int | None) -> float:
    """Linear warm-up to 1; then half a cosine down to 0 at `total_steps`, or 1 without them. `step` counts from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps  # never 0
    if total_steps is None:
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * done))
