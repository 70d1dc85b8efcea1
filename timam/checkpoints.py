"""Checkpoints of a run: safetensors and JSON, nothing pickled; replaced as a whole, checked before they are used."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from timam.files import check_sums, read_json, replacing_folder, write_sums
from timam.models import TIMAM


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run is: a row of history for each finished epoch, and what cannot be derived from the rows."""

    history: list[dict[str, Any]] = field(default_factory=list)
    unfrozen_at: int | None = None  # the first epoch that trained the language model
    data_fingerprint: str = ""  # of what it was trained on
    code: list[str] = field(default_factory=list)  # `code_fingerprint` of every version that trained a part of it
    config: dict[str, Any] = field(default_factory=dict)  # of the run
    kept: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files in val_embeddings/, by moment
    # Of the epoch that a signal interrupted: steps done, the sums of their terms, and the seconds that they took.
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation score; 0 before any."""
        scores = [row["val_text_to_image_rank_1"] for row in self.history]
        return int(np.argmax(scores)) + 1 if scores else 0

    def waited(self) -> int:
        """Epochs since the best one or, if later, since the epoch before the language model was unfrozen."""
        return self.epoch - max(self.best_epoch, (self.unfrozen_at or 1) - 1)


def save_checkpoint(
    folder: Path, model: TIMAM, optimizers: dict[str, Any], schedulers: dict[str, Any], state: Progress
) -> None:
    """A saved model with optimizers, schedulers and progress beside it; replaces the previous one as a whole."""
    with replacing_folder(folder) as new:
        model.save_pretrained(new)
        tensors, plain = {}, {}
        for name, optimizer in optimizers.items():
            content = optimizer.state_dict()
            plain[name] = content["param_groups"]
            for index, slots in content["state"].items():
                for slot, value in slots.items():
                    if value is not None:  # SGD keeps None before its first momentum
                        tensors[f"{name}/{index}/{slot}"] = torch.as_tensor(value).cpu().contiguous()
        save_file(tensors, new / "optimizers.safetensors")
        content = {
            "param_groups": plain,
            "schedulers": {name: scheduler.state_dict() for name, scheduler in schedulers.items()},
            "progress": asdict(state),
        }
        (new / "training_state.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        write_sums(new)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: dict[str, Optimizer], schedulers: dict[str, Any]
) -> Progress:
    """The inverse of `save_checkpoint`. Raises RunError for a damaged checkpoint, naming it."""
    try:
        check_sums(folder)
        content = read_json(folder / "training_state.json", finite=False)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        tensors = load_file(folder / "optimizers.safetensors")
        for name, optimizer in optimizers.items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, index, slot = key.split("/")
                if owner == name:
                    slots.setdefault(int(index), {})[slot] = value
            built = [_settings_of(g) for g in optimizer.param_groups]
            optimizer.load_state_dict({"state": slots, "param_groups": content["param_groups"][name]})
            _check_optimizer(name, optimizer, built)
            for parameter, of_parameter in optimizer.state.items():
                for slot, value in of_parameter.items():
                    if value.shape == parameter.shape and slot != "step":  # fused steps take both in one memory order
                        of_parameter[slot] = torch.empty_like(parameter).copy_(value)
            schedulers[name].load_state_dict(content["schedulers"][name])
        progress = Progress(**content["progress"])
        _check_progress(progress)
        return progress
    except Exception as error:  # safetensors, json and torch each raise their own
        raise RunError(
            f"{folder} is damaged ({type(error).__name__}: {error}); remove the run and train again"
        ) from error


def _settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer's group computes with; not the rate, which schedules change, nor how torch computes it."""
    others = ("params", "lr", "foreach", "fused", "capturable", "differentiable")
    return {k: v for k, v in group.items() if k not in others}


def _check_optimizer(name: str, optimizer: Optimizer, built: list[dict[str, Any]]) -> None:
    """torch takes any state and fails, or goes on with other settings, at the next step. Raises ValueError."""
    for group, before in zip(optimizer.param_groups, built, strict=True):
        # Through JSON, which makes lists of tuples; another version of torch may know other settings.
        changed = [k for k in before if k in group and json.dumps(group[k]) != json.dumps(before[k])]
        if changed:
            raise ValueError(f"{name}: {', '.join(changed)} is not as config.json has it")
        if not 0 <= float(group["lr"]) <= 1:
            raise ValueError(f"{name}: lr = {group['lr']}")
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if value is not None and ((value.ndim and value.shape != parameter.shape) or not value.isfinite().all()):
                raise ValueError(f"{name}: {slot} {tuple(value.shape)} of a parameter {tuple(parameter.shape)}")


def _check_progress(progress: Progress) -> None:
    """Raises ValueError, KeyError or TypeError for what no run keeps."""
    scores = [0 <= row["val_text_to_image_rank_1"] <= 1 and row["seconds"] >= 0 for row in progress.history]
    numbers = [type(progress.step) is int, progress.step >= 0, type(progress.unfrozen_at) in (int, type(None))]
    texts = [isinstance(t, str) for t in (progress.data_fingerprint, *progress.code)]
    finite = [math.isfinite(v) for v in (*progress.sums.values(), progress.seconds)]
    if not all([isinstance(progress.code, list), *scores, *numbers, *texts, *finite]):
        raise ValueError("its progress is not that of a run")
