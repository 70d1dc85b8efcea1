"""timam.training: schedules, who moves whom in a step, selection, and resuming to the same result."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from layouts import tiny_config, write_language_model, write_person_search
from safetensors.torch import load_file

from timam import checkpoints, training
from timam import config as configs
from timam.checkpoints import Progress, RunError
from timam.collapse import training_warnings
from timam.config import PRESETS, LossConfig, TrainConfig
from timam.evaluation import Embeddings, gap
from timam.interruption import Interrupted
from timam.losses import cmpm_loss, discriminator_loss, norm_softmax_loss
from timam.models import TIMAM
from timam.training import (
    build_optimizers,
    build_schedulers,
    cosine_factor,
    fit,
    should_unfreeze,
    train_step,
    warmup_factor,
)

GOLDEN = Path(__file__).with_name("golden_tiny_run.json")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return write_person_search(tmp_path_factory.mktemp("people") / "data")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language_model"))


def quiet_fit(config: configs.Config, output: Path, resume: bool = False) -> dict[str, Any]:
    return fit(config, output, resume=resume, progress=False)


# -- schedules --------------------------------------------------------------------------------------------------


def progress_of(scores: list[float], unfrozen_at: int | None = None) -> Progress:
    return Progress([{"val_text_to_image_rank_1": s} for s in scores], unfrozen_at)


def test_best_epoch_is_the_first_of_the_highest():
    assert progress_of([]).best_epoch == 0
    assert progress_of([0.0, 0.0]).best_epoch == 1
    assert progress_of([0.1, 0.3, 0.2, 0.3]).best_epoch == 2
    assert progress_of([0.1, 0.3, 0.2, 0.4]).best_epoch == 4


def test_waited_counts_from_the_best_epoch_and_from_unfreezing():
    assert progress_of([]).waited() == 0
    assert progress_of([0.1, 0.3, 0.2, 0.3]).waited() == 2
    # unfrozen in epoch 4, the best was epoch 2: epoch 4 is the first after the change
    assert progress_of([0.1, 0.3, 0.2, 0.3], unfrozen_at=4).waited() == 1
    assert progress_of([0.1, 0.3, 0.2, 0.3, 0.4], unfrozen_at=4).waited() == 0


def unfrozen_epochs(scores: list[float], config: TrainConfig) -> list[bool]:
    """Whether each epoch would train the language model, stepping as `fit` does; scores come epoch by epoch."""
    state, found = Progress(), []
    for epoch, score in enumerate(scores, start=1):
        if should_unfreeze(state, config):
            state.unfrozen_at = epoch
        found.append(state.unfrozen_at is not None)
        state.history.append({"val_text_to_image_rank_1": score})
    return found


@pytest.mark.parametrize(
    ("epoch", "patience", "scores", "expected"),
    [
        (None, None, [0.1] * 5, "fffff"),
        (1, None, [0.1] * 3, "ttt"),
        (3, None, [0.1] * 5, "ffttt"),
        (None, 1, [0.1, 0.2, 0.3, 0.3, 0.4], "fffft"),  # epoch 4 was the first without a better score
        (None, 2, [0.3, 0.2, 0.1, 0.4, 0.4], "ffftt"),  # epochs 2 and 3 were not better than epoch 1
        (None, 3, [0.3, 0.2, 0.1, 0.4, 0.1], "fffff"),  # epoch 4 came in time
        (2, 3, [0.1, 0.1, 0.1], "ftt"),  # whichever comes first
        (9, 2, [0.1, 0.1, 0.1, 0.1], "ffft"),
    ],
)
def test_unfreezing_epoch_by_epoch(epoch, patience, scores, expected):
    config = TrainConfig(unfreeze_epoch=epoch, unfreeze_patience=patience)
    assert "".join("ft"[unfrozen] for unfrozen in unfrozen_epochs(scores, config)) == expected


def test_warmup_starts_above_zero_and_ends_at_one():
    assert [warmup_factor(s, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [warmup_factor(s, 0) for s in range(2)] == [1.0, 1.0]


def test_cosine_step_by_step():
    root = math.sqrt(0.5)
    expected = [0.5, 1.0, 1.0, (1 + root) / 2, 0.5, (1 - root) / 2, 0.0, 0.0]  # cos of 0, 45, 90, 135, 180 degrees
    assert [cosine_factor(s, 2, 6) for s in range(8)] == pytest.approx(expected, abs=1e-12)
    assert cosine_factor(0, 0, 4) == 1.0


def rates(config: TrainConfig, scores: list[float], epoch_steps: int = 1) -> list[float]:
    """The rate of one optimizer at each step of epochs that end with the given validation scores."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = build_schedulers({"image": optimizer}, config, epoch_steps)["image"]
    found = []
    for score in scores:
        for _ in range(epoch_steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if config.schedule != "plateau":
                scheduler.step()
        if config.schedule == "plateau":
            scheduler.step(score)
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        # total 6 steps, 4 of warm-up: then cos of 0 and of 90 degrees
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.5]),
    ],
)
def test_rates_with_warmup(schedule, expected):
    config = TrainConfig(schedule=schedule, epochs=3, warmup_epochs=2.0)
    found = rates(config, [0.0] * 3, epoch_steps=2)
    assert found == pytest.approx(expected, abs=1e-12)
    assert min(found) > 0


def test_constant_without_warmup_is_constant():
    assert rates(TrainConfig(schedule="constant", epochs=3), [0.0] * 3, 2) == [1.0] * 6


def test_plateau_divides_by_ten_when_patience_is_over_and_stops_at_the_minimum():
    config = TrainConfig(schedule="plateau", plateau_patience=2, minimum_lr=0.005)
    # Epoch 1 is the best; 2, 3 and 4 are not better: more than 2, so epoch 5 has a tenth. Equal is not better.
    # Epoch 5 is better; 6, 7, 8 are not: epoch 9 has a hundredth; 9, 10, 11 are not: 0.001 is below the minimum.
    scores = [0.5, 0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    expected = [1.0] * 4 + [0.1] * 4 + [0.01] * 3 + [0.005]
    assert rates(config, scores) == pytest.approx(expected, rel=1e-9)


def test_plateau_takes_the_smallest_improvement():
    scores = [0.5 + 1e-6 * i for i in range(8)]  # a relative threshold would take these for a plateau
    assert rates(TrainConfig(schedule="plateau", plateau_patience=1), scores) == [1.0] * 8


def test_paper_preset_has_the_recalled_optimizers(tiny_model):
    model = tiny_model()
    optimizers = build_optimizers(model, PRESETS["paper"].train)
    assert {n: type(o) for n, o in optimizers.items()} == {
        "image": torch.optim.SGD, "text": torch.optim.Adam, "discriminator": torch.optim.SGD,
    }  # fmt: skip
    for name in ("image", "discriminator"):
        (group,) = optimizers[name].param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (2e-4, 0.9, 4e-4)
    text, words = optimizers["text"].param_groups
    assert (text["lr"], text["weight_decay"]) == (2e-4, 4e-4)
    assert words["lr"] == PRESETS["paper"].train.language_model_lr == 2e-5
    schedulers = build_schedulers(optimizers, PRESETS["paper"].train, 10)
    assert {type(s) for s in schedulers.values()} == {torch.optim.lr_scheduler.ReduceLROnPlateau}
    assert {m for s in schedulers.values() for m in s.min_lrs} == {2e-6}


@pytest.mark.parametrize("words", ["tiny-bert", "none"])
def test_every_parameter_is_in_one_optimizer(tiny_model, words):
    model = tiny_model(language_model=words)
    config = TrainConfig(text_lr=3e-4, language_model_lr=7e-5)
    optimizers = build_optimizers(model, config)
    owned = [id(p) for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    # learned word embeddings start from nothing, so they learn at the text encoder's rate
    assert optimizers["text"].param_groups[1]["lr"] == (3e-4 if words == "none" else 7e-5)


# -- one step ---------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 2, 3, 0])
PLAIN_SGD = TrainConfig(
    image_optimizer="sgd", text_optimizer="sgd", discriminator_optimizer="sgd", image_lr=0.1, text_lr=0.1,
    language_model_lr=0.1, discriminator_lr=0.1, weight_decay=0.0,
)  # fmt: skip
ENCODERS = ("image_encoder", "text_encoder", "class_")


def batch_of(model: TIMAM) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images = torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    captions = ["a man", "the woman in a red dress", "black boots", "white shoes and a hat", "a bag", "blue jacket"]
    token_ids, mask = model.tokenize(captions)
    return images, {"token_ids": token_ids, "attention_mask": mask}


def still(model: TIMAM) -> TIMAM:
    """The same model with dropout off, so that two forward passes are alike; batch normalisation still trains."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def step(model: TIMAM, config: LossConfig, train: TrainConfig = PLAIN_SGD, gradient_clip: float = 0.0,
         discriminator_steps: int = 1, **replaced: Any):  # fmt: skip
    """One training step; returns its terms. `replaced` optimizers stand in for the model's own."""
    images, text = batch_of(model)
    optimizers = {**build_optimizers(model, train), **replaced}
    model.train()
    accelerator = Accelerator(cpu=True)
    return train_step(model, images, text, LABELS, optimizers, config, accelerator, gradient_clip, discriminator_steps)


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_reads_nothing_back_from_the_device(stored, tiny_model, monkeypatch):
    """On a GPU each such read would wait for all that was queued; what the host needs to know, it has before."""
    model = tiny_model()
    images, text = batch_of(model)
    text["lengths"] = text["attention_mask"].sum(dim=1)
    if stored:
        text["word_states"] = model.text_encoder.word_states(text.pop("token_ids"), text["attention_mask"]).detach()
    optimizers, accelerator = build_optimizers(model, TrainConfig()), Accelerator(cpu=True)
    model.train()
    for name in ("cpu", "item", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    train_step(model, images, text, LABELS, optimizers, LossConfig(), accelerator)
    with pytest.raises(TypeError, match="not callable"):  # as without the lengths
        train_step(model, images, {**text, "lengths": None}, LABELS, optimizers, LossConfig(), accelerator)


def test_lengths_from_the_host_change_nothing(tiny_model):
    model = tiny_model().eval()
    images, text = batch_of(model)
    lengths = text["attention_mask"].sum(dim=1)
    assert len(lengths.unique()) > 1
    for with_them, without in zip(model(images, **text, lengths=lengths), model(images, **text), strict=True):
        assert torch.equal(with_them, without)


def parameters(model: TIMAM, *prefixes: str) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith(prefixes)}


def moved(before: dict[str, torch.Tensor], model: TIMAM) -> set[str]:
    now = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, now[name])}


def assert_same_parameters(first: TIMAM, second: TIMAM, *prefixes: str, **tolerance: float) -> None:
    others = parameters(second, *prefixes)
    for name, value in parameters(first, *prefixes).items():
        torch.testing.assert_close(value, others[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


class Recorder:
    """An optimizer that moves nothing and keeps the gradients that it was given."""

    def __init__(self, model: TIMAM, prefixes: tuple[str, ...]) -> None:
        self.named = {n: p for n, p in model.named_parameters() if n.startswith(prefixes)}
        self.param_groups = [{"params": list(self.named.values())}]
        self.gradients: list[dict[str, torch.Tensor | None]] = []

    def step(self) -> None:
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in self.named.items()})

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.named.values():
            p.grad = None


def recorders(model: TIMAM) -> dict[str, Recorder]:
    return {
        "image": Recorder(model, ("image_encoder",)),
        "text": Recorder(model, ("text_encoder", "class_")),
        "discriminator": Recorder(model, ("discriminator",)),
    }


def test_discriminators_move_follows_its_own_loss_alone(tiny_model):
    """The discriminator gets the gradient of L_D on detached embeddings, once; the encoders get nothing from it."""
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    terms = step(model, LossConfig(label_smoothing=0.1), **played)
    assert len(played["discriminator"].gradients) == 1  # moved once: the encoders' move does not move it
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    d = reference.discriminator
    loss = discriminator_loss(d(image_embeddings.detach()), d(text_embeddings.detach()), 0.1)
    loss.backward()
    torch.testing.assert_close(terms["discriminator"], loss.detach())
    for name, p in reference.named_parameters():
        if name.startswith("discriminator"):
            torch.testing.assert_close(played["discriminator"].gradients[0][name], p.grad)


def test_discriminator_loss_moves_only_the_discriminator(tiny_model):
    model = tiny_model()
    before = parameters(model, "")
    nothing = LossConfig(identification_weight=0, matching_weight=0, adversarial_weight=0)
    step(model, nothing)
    changed = moved(before, model)
    assert changed == {n for n in before if n.startswith("discriminator")}


def test_encoders_adversarial_loss_leaves_the_discriminator_alone(tiny_model):
    """With its own optimizer standing still, nothing of the discriminator changes, and no gradient is left on it."""
    model = tiny_model()
    before = parameters(model, "")
    frozen = Recorder(model, ("discriminator",))
    step(model, LossConfig(identification_weight=0, matching_weight=0), discriminator=frozen)
    changed = moved(before, model)
    assert not any(name.startswith("discriminator") for name in changed)
    assert any(name.startswith("image_encoder") for name in changed)
    assert any(name.startswith("text_encoder") for name in changed)
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.requires_grad for p in model.discriminator.parameters())  # it must move in the next step


def test_encoders_play_against_the_discriminator_as_it_now_is(tiny_model):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    terms = step(model, LossConfig())
    reference.train()
    images, text = batch_of(reference)
    with torch.no_grad():
        image_embeddings, text_embeddings = reference(images, **text)
        moved_logits = model.discriminator(image_embeddings), model.discriminator(text_embeddings)
    # the non-saturating form, written out: images are to be taken for text and text for images
    expected = -torch.log(1 - moved_logits[0].sigmoid()).mean() - torch.log(moved_logits[1].sigmoid()).mean()
    torch.testing.assert_close(terms["adversarial"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_weight_zero_moves_the_encoders_as_without_a_discriminator(tiny_model, form):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    terms = step(model, LossConfig(adversarial_weight=0.0, adversarial_form=form))
    assert terms["adversarial"] == 0
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    loss = cmpm_loss(image_embeddings, text_embeddings, LABELS)
    for embeddings in (image_embeddings, text_embeddings):
        loss = loss + norm_softmax_loss(embeddings, reference.class_weights[0], reference.class_bias[0], LABELS)
    loss.backward()
    torch.testing.assert_close(terms["total"], loss.detach())
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if name.startswith(ENCODERS) and p.grad is not None:
                p -= 0.1 * p.grad  # SGD's first step
    assert_same_parameters(model, reference, *ENCODERS, rtol=1e-5, atol=1e-6)
    assert moved(parameters(reference, "discriminator"), model)  # it watches, and learns


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_weights_scale_their_terms_in_the_total(tiny_model, form):
    config = LossConfig(identification_weight=2.0, matching_weight=3.0, adversarial_weight=0.5, adversarial_form=form)
    terms = step(tiny_model(), config)
    expected = (
        2 * (terms["identification_image"] + terms["identification_text"])
        + 3 * terms["matching"]
        + 0.5 * terms["adversarial"]
    )
    torch.testing.assert_close(terms["total"], expected)
    assert not any(t.requires_grad for t in terms.values())
    assert all(t.ndim == 0 for t in terms.values())


def test_discriminators_move_with_penalty_and_unit_length_by_hand(tiny_model):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    step(model, LossConfig(adversarial_input="unit", gradient_penalty=3.0, label_smoothing=0.1), **played)
    reference.train()
    images, text = batch_of(reference)
    with torch.no_grad():
        sides = [e / e.norm(dim=1, keepdim=True) * 4 for e in reference(images, **text)]  # D = 16: the length is 4
    both = torch.cat(sides).requires_grad_()
    logits = reference.discriminator(both)
    (slope,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
    loss = discriminator_loss(logits[:6], logits[6:], 0.1) + 3.0 / 2 * slope.norm(dim=1).square().mean()
    loss.backward()
    for name, p in reference.discriminator.named_parameters():
        torch.testing.assert_close(played["discriminator"].gradients[0][f"discriminator.{name}"], p.grad)


def test_a_discriminator_that_sees_unit_length_does_not_see_the_scale(tiny_model):
    """Ten times as long picture embeddings are the same to it; without the option they are not."""
    for view, same in (("unit", True), ("raw", False)):
        model = still(tiny_model())
        found = []
        for scale in (1.0, 10.0):
            scaled = copy.deepcopy(model)
            with torch.no_grad():
                for p in scaled.image_encoder.projection.parameters():
                    p *= scale
            found.append(float(step(scaled, LossConfig(adversarial_input=view))["discriminator"]))
        assert (found[0] == pytest.approx(found[1], rel=1e-5)) == same


def test_the_discriminator_moves_so_many_times_and_the_encoders_once(tiny_model):
    model = still(tiny_model())
    played = recorders(model)
    step(model, LossConfig(), discriminator_steps=3, **played)
    assert {name: len(player.gradients) for name, player in played.items()} == {
        "image": 1, "text": 1, "discriminator": 3,
    }  # fmt: skip


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_gradient_reversal_equals_gradients_by_hand(tiny_model, weight):
    model = still(tiny_model())
    reference = copy.deepcopy(model)
    played = recorders(model)
    config = LossConfig(
        identification_weight=0, matching_weight=0, adversarial_weight=weight, adversarial_form="gradient_reversal"
    )
    step(model, config, **played)
    reference.train()
    images, text = batch_of(reference)
    image_embeddings, text_embeddings = reference(images, **text)
    d = reference.discriminator
    discriminator_loss(d(image_embeddings), d(text_embeddings), config.label_smoothing).backward()
    for name, player in played.items():
        assert len(player.gradients) == 1
        sign = 1.0 if name == "discriminator" else -weight  # the discriminator descends in full, the encoders ascend
        for key, found in player.gradients[0].items():
            plain = reference.get_parameter(key).grad
            if plain is None:
                assert found is None or not found.any()
            else:
                torch.testing.assert_close(found, sign * plain, rtol=1e-4, atol=1e-6)


def test_two_classifiers_learn_from_their_own_modality(tiny_model):
    model = tiny_model(shared_classifier=False)
    played = recorders(model)
    config = LossConfig(matching_weight=0, adversarial_weight=0)
    step(model, config, **played)
    weights = played["text"].gradients[0]["class_weights"]
    assert weights.shape[0] == 2
    assert weights[0].any()
    assert weights[1].any()
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("form", ["alternating", "gradient_reversal"])
def test_clipping_bounds_the_gradient_of_each_move(tiny_model, form):
    model = tiny_model()
    played = recorders(model)
    step(model, LossConfig(adversarial_form=form), gradient_clip=0.01, **played)

    def squares(name: str) -> float:
        return sum(float(g.square().sum()) for g in played[name].gradients[0].values() if g is not None)

    for names in (["image", "text"], ["discriminator"]):
        assert math.sqrt(sum(squares(n) for n in names)) == pytest.approx(0.01, rel=1e-3)


def test_step_keeps_no_gradient_between_steps(tiny_model):
    model = tiny_model()
    step(model, LossConfig())
    assert all(p.grad is None for p in model.parameters())


# -- one run ----------------------------------------------------------------------------------------------------


def language_state(model: TIMAM) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.text_encoder.language_model.state_dict().items()}


def test_frozen_language_model_is_bit_identical_then_moves(people, language_model, tmp_path, monkeypatch):
    """Weight decay and a pending optimizer do not touch it while it is frozen; unfrozen, it learns."""
    config = tiny_config(
        people, f"model.language_model={language_model}", "train.epochs=3", "train.unfreeze_epoch=3",
        "train.weight_decay=0.1", "train.language_model_lr=1e-3",
    )  # fmt: skip
    seen = []
    original = training._train_epoch

    def train_epoch(model, *args):
        before = language_state(model)
        assert model.training
        assert model.text_encoder.language_model.training == (not model.text_encoder.frozen)
        row = original(model, *args)
        after = language_state(model)
        seen.append((model.text_encoder.frozen, [n for n in before if not torch.equal(before[n], after[n])]))
        return row

    monkeypatch.setattr(training, "_train_epoch", train_epoch)
    quiet_fit(config, tmp_path / "run")
    assert [frozen for frozen, _ in seen] == [True, True, False]
    assert seen[0][1] == seen[1][1] == []
    assert len(seen[2][1]) > 10
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["language_model_frozen"].tolist() == [True, True, False]


def test_run_keeps_what_the_gap_over_training_needs(people, language_model, tmp_path):
    """The validation split before training, after the frozen stage and at the best epoch, and the gap of each epoch."""
    config = tiny_config(people, f"model.language_model={language_model}", "train.epochs=3", "train.unfreeze_epoch=3")
    metrics = quiet_fit(config, tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    kept = {p.stem: Embeddings.load(p) for p in (tmp_path / "run" / "val_embeddings").iterdir()}
    assert set(kept) == {"before", "frozen", "best"}
    epochs = {"frozen": 2, "best": metrics["best_epoch"]}
    for moment, epoch in epochs.items():
        found, row = gap(kept[moment]), history.iloc[epoch - 1]
        for name, value in found.items():
            assert row[f"val_{name}"] == pytest.approx(value, abs=1e-3), (moment, name)
    assert not torch.allclose(kept["before"].images, kept["frozen"].images)


def test_every_training_step_is_in_train_mode(people, language_model, tmp_path, monkeypatch):
    modes = []
    original = training.train_step

    def spy(model, *args, **kwargs):
        frozen = set(model.text_encoder.language_model.modules()) if model.text_encoder.frozen else set()
        modes.append(all(m.training != (m in frozen) for m in model.modules()))
        return original(model, *args, **kwargs)

    def evaluation_that_leaves_its_mode(model, *args, **kwargs):
        embeddings = embed(model, *args, **kwargs)
        model.eval()
        return embeddings

    embed = training.embed_split
    monkeypatch.setattr(training, "embed_split", evaluation_that_leaves_its_mode)
    monkeypatch.setattr(training, "train_step", spy)
    quiet_fit(tiny_config(people, f"model.language_model={language_model}"), tmp_path / "run")
    assert modes == [True] * 6  # 12 pictures in batches of 4, two epochs: also after the first evaluation


class Stop(BaseException):
    """Stands for a kill: no handler of the package catches it."""


def interrupt(monkeypatch, owner: Any, name: str, nth: int, error: type[BaseException] = Stop) -> None:
    """The nth call of owner.name raises before it does anything."""
    original, count = getattr(owner, name), iter(range(1, 10_000))

    @functools.wraps(original)
    def wrapped(*args, **kwargs):
        if next(count) == nth:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def broken_term(monkeypatch, name: str, value: float, from_step: int) -> None:
    original, count = training.train_step, iter(range(1, 10_000))

    def wrapped(*args, **kwargs):
        terms = original(*args, **kwargs)
        return {**terms, name: torch.tensor(value)} if next(count) >= from_step else terms

    monkeypatch.setattr(training, "train_step", wrapped)


@pytest.mark.parametrize(("term", "value"), [("matching", float("nan")), ("adversarial", float("inf"))])
def test_non_finite_loss_stops_with_its_name_and_keeps_the_last_epoch(people, tmp_path, monkeypatch, term, value):
    broken_term(monkeypatch, term, value, from_step=5)  # the second of epoch 2
    config = tiny_config(people, "train.epochs=3")
    with pytest.raises(RunError, match=rf"epoch 2, step 3: {term} is not finite") as caught:
        quiet_fit(config, tmp_path / "run")
    assert "learning rate" in str(caught.value)  # what to do
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 1
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "training_state.json").read_text())
    assert len(state["progress"]["history"]) == 1
    assert not (tmp_path / "run" / "metrics.json").exists()


def scripted_scores(monkeypatch, scores: list[float]) -> None:
    """The first calls of `evaluate` give these values of rank-1 in turn, later ones their own."""
    original, rest = training.evaluate, iter(scores)

    def wrapped(embeddings, *protocol):
        results = original(embeddings, *protocol)
        score = next(rest, None)
        if score is not None:
            results["text_to_image"]["rank_1"] = score
        return results

    monkeypatch.setattr(training, "evaluate", wrapped)


@pytest.mark.parametrize(
    ("scores", "best"), [([0.1, 0.5, 0.5, 0.2], 2), ([0.0, 0.0, 0.0, 0.0], 1), ([0.1, 0.2, 0.3, 0.4], 4)]
)
def test_saved_and_tested_is_the_first_best_epoch(people, tmp_path, monkeypatch, scores, best):
    scripted_scores(monkeypatch, scores)
    weights = []
    original = training.save_checkpoint

    def spy(folder, model, *args):
        weights.append({n: t.clone() for n, t in model.state_dict().items()})
        return original(folder, model, *args)

    monkeypatch.setattr(training, "save_checkpoint", spy)
    metrics = quiet_fit(tiny_config(people, "train.epochs=4"), tmp_path / "run")
    assert metrics["best_epoch"] == best
    kept = load_file(tmp_path / "run" / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(kept[n], weights[best - 1][n]) for n in kept)
    assert any(not torch.equal(kept[n], weights[best % 4][n]) for n in kept)  # another epoch's are others


def test_test_split_is_read_only_at_the_end_and_chooses_nothing(people, tmp_path, monkeypatch):
    """Replacing every test result leaves the run as it is; nothing embeds the test split before the last epoch."""
    events: list[str] = []
    embed, epoch = training.embed_split, training._train_epoch
    monkeypatch.setattr(
        training, "embed_split", lambda m, split, *a, **k: events.append(split.name) or embed(m, split, *a, **k)
    )
    monkeypatch.setattr(training, "_train_epoch", lambda *a: events.append("epoch") or epoch(*a))
    config = tiny_config(people, "train.epochs=3", "train.early_stop=none")
    first = quiet_fit(config, tmp_path / "a")
    assert events == ["val"] + ["epoch", "val"] * 3 + ["val", "test"]
    original = training.embed_split

    def mirrored_test(model, split, *args, **kwargs):
        embeddings = original(model, split, *args, **kwargs)
        return dataclasses.replace(embeddings, images=-embeddings.images) if split.name == "test" else embeddings

    monkeypatch.setattr(training, "embed_split", mirrored_test)
    second = quiet_fit(config, tmp_path / "b")
    assert second["text_to_image"] != first["text_to_image"]  # the test did change
    assert second["best_epoch"] == first["best_epoch"]
    assert_same_best(tmp_path / "a", tmp_path / "b")
    assert_same_history(tmp_path / "a", tmp_path / "b")


def test_metrics_are_those_of_the_best_model_on_the_test_split(people, tmp_path):
    from timam.data import load_dataset
    from timam.evaluation import embed_split, evaluate
    from timam.stores import open_pixels

    metrics = quiet_fit(tiny_config(people), tmp_path / "run")
    model = TIMAM.from_pretrained(tmp_path / "run" / "checkpoints" / "best")
    split = load_dataset("cuhk-pedes", people).split("test")
    results = evaluate(embed_split(model, split, open_pixels(split.image_paths, 64, 32, progress=False)))
    assert {d: metrics[d] for d in results} == results
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_plateau_is_one_of_the_validation_score(people, tmp_path, monkeypatch):
    """The score rises in every epoch while the loss that is to be maximised in its place would only fall."""
    scripted_scores(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    original, steps = training.train_step, itertools.count()
    monkeypatch.setattr(
        training, "train_step", lambda *a, **k: {**original(*a, **k), "total": torch.tensor(-float(next(steps)))}
    )
    config = tiny_config(people, "train.epochs=4", "train.schedule=plateau", "train.plateau_patience=1")
    quiet_fit(config, tmp_path / "run")
    assert pd.read_csv(tmp_path / "run" / "history.csv")["image_lr"].tolist() == [config.train.image_lr] * 4


@pytest.mark.parametrize(
    ("scores", "settings", "epochs"),
    [
        ([0.3, 0.2, 0.1, 0.9], ["train.early_stop=2"], 3),
        ([0.3, 0.3, 0.4, 0.1, 0.1, 0.9], ["train.early_stop=2"], 5),  # equal is not better
        ([0.3, 0.2, 0.1, 0.1, 0.1, 0.1], ["train.early_stop=none"], 6),
    ],
)
def test_early_stop(people, tmp_path, monkeypatch, scores, settings, epochs):
    scripted_scores(monkeypatch, scores)
    fixed = ["train.epochs=6", "train.unfreeze_epoch=none", "train.unfreeze_patience=none"]
    metrics = quiet_fit(tiny_config(people, *fixed, *settings), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == epochs
    assert metrics["best_epoch"] == scores[:epochs].index(max(scores[:epochs])) + 1


def test_history_holds_plain_numbers(people, tmp_path, monkeypatch):
    kept = []
    original = training.save_checkpoint
    monkeypatch.setattr(training, "save_checkpoint", lambda *args: kept.append(args[-1]) or original(*args))
    quiet_fit(tiny_config(people), tmp_path / "run")
    values = [value for row in kept[-1].history for value in row.values()]
    assert {type(v) for v in values} <= {int, float, bool}  # a live tensor would keep its graph


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], []),
        (["train.weight_decay=300"], ["all text embeddings are nearly alike"]),  # a third of each weight in each step
        # a thousand times too fast; and the encoders outrun the discriminator
        (["train.text_lr=1", "model.embedding_dim=512", "model.lstm_hidden=64", "loss.adversarial_input=raw",
          "loss.gradient_penalty=0", "loss.label_smoothing=0.1", "train.discriminator_steps=1",
          "train.discriminator_lr=2e-4", "train.discriminator_momentum=0.9"],
         ["text embeddings have exploded", "the discriminator is wrong on every embedding"]),
        (["loss.gradient_penalty=0"], ["the discriminator tells every embedding"]),  # quick, and nothing holds it
    ],
)  # fmt: skip
def test_collapse_is_noticed_and_said(people, tmp_path, capsys, settings, expected):
    """The pictures' encoder begins from random weights and hardly moves, so its warning is there in all of them."""
    metrics = fit(tiny_config(people, "train.warmup_epochs=0", *settings), tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    for beginning in ("all text", "text embeddings", "the discriminator"):
        said = [line for line in lines if line.startswith(f"warning: {beginning}")]
        assert bool(said) == any(text.startswith(beginning) for text in expected), lines
    assert all(any(line.startswith(f"warning: {text}") for line in lines) for text in expected)
    row = pd.read_csv(tmp_path / "run" / "history.csv").iloc[metrics["best_epoch"] - 1]
    penalty = 0.0 if "loss.gradient_penalty=0" in settings else 10.0
    assert metrics["warnings"] == training_warnings(row.to_dict(), penalty)


def test_max_steps_bounds_the_epoch(people, tmp_path, monkeypatch):
    calls = []
    original = training.train_step
    monkeypatch.setattr(training, "train_step", lambda *a, **k: calls.append(1) or original(*a, **k))
    quiet_fit(tiny_config(people, "train.max_steps=2", "train.epochs=2"), tmp_path / "run")
    assert len(calls) == 4  # 3 full batches there would be


@pytest.mark.parametrize("seed", [123_456, 2**32 - 1])
def test_large_seed_works(people, tmp_path, seed):
    metrics = quiet_fit(tiny_config(people, f"train.seed={seed}", "train.epochs=1"), tmp_path / "run")
    assert metrics["best_epoch"] == 1


# -- resuming ---------------------------------------------------------------------------------------------------


def assert_same_history(first: Path, second: Path) -> None:
    a, b = (pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (first, second))
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def assert_same_best(first: Path, second: Path) -> None:
    a, b = (load_file(run / "checkpoints" / "best" / "model.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


def assert_same_run(first: Path, second: Path) -> None:
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (first, second))
    for key in ("best_epoch", "text_to_image", "image_to_text", "modality_gap"):
        assert a[key] == b[key], key
    assert_same_history(first, second)
    assert_same_best(first, second)
    left, right = (sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (first, second))
    # A real kill may leave a temporary file; folders of a killed writer are replaced by the next one.
    assert left == [name for name in right if not name.endswith(".tmp")]


SCHEDULES = {
    # Momentum, Adam's moments and the position in the schedule must all come back.
    "cosine": ["train.schedule=cosine", "train.warmup_epochs=1.5"],
    "plateau": [
        "train.schedule=plateau", "train.plateau_patience=1", "train.image_optimizer=sgd", "train.text_optimizer=adam",
        "train.discriminator_optimizer=sgd",
    ],
}  # fmt: skip


def resumable_fit(
    people: Path, language_model: Path, schedule: str, output: Path, resume: bool = False
) -> dict[str, Any]:
    """Four epochs with everything random switched on; the language model is unfrozen in the third.

    Under the plateau schedule every validation gives the same score, so that the fourth epoch has a tenth of the rate.
    """
    with pytest.MonkeyPatch.context() as patch:
        if schedule == "plateau":
            scripted_scores(patch, [0.5] * 9)
        return quiet_fit(resumable_config(people, language_model, schedule), output, resume)


def resumable_config(people: Path, language_model: Path, schedule: str) -> configs.Config:
    return tiny_config(
        people, f"model.language_model={language_model}", "train.epochs=4", "train.unfreeze_epoch=3",
        "train.early_stop=none", "data.horizontal_flip=true", "data.pad_crop=2", "data.random_erasing=0.5",
        "loss.adversarial_weight=0.5", *SCHEDULES[schedule],
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(people, language_model, tmp_path_factory):
    """undisturbed(schedule) -> a finished run of 4 epochs, made once."""

    @functools.cache
    def run(schedule: str) -> Path:
        output = tmp_path_factory.mktemp(schedule) / "run"
        resumable_fit(people, language_model, schedule, output)
        return output

    return run


def test_same_config_gives_the_same_run(undisturbed, people, language_model, tmp_path):
    resumable_fit(people, language_model, "cosine", tmp_path / "run")
    assert_same_run(undisturbed("cosine"), tmp_path / "run")


def test_undisturbed_runs_exercise_what_is_to_be_resumed(undisturbed):
    """The plateau run must divide its rate, or resuming it would prove little."""
    plateau = pd.read_csv(undisturbed("plateau") / "history.csv")
    assert plateau["image_lr"].tolist() == pytest.approx([5e-4, 5e-4, 5e-4, 5e-5])
    for schedule in SCHEDULES:
        history = pd.read_csv(undisturbed(schedule) / "history.csv")
        assert history["language_model_frozen"].tolist() == [True, True, False, False]
        assert history["total"].nunique() == 4


# moment of the kill: (schedule, module or class, its function that raises, in its nth call, epochs that are saved by
# then). 3 steps an epoch.
KILLS = {
    "first step": ("cosine", training, "train_step", 1, 0),
    "epoch 1, step 2": ("plateau", training, "train_step", 2, 0),
    "epoch 2, step 1": ("cosine", training, "train_step", 4, 1),
    "epoch 3, step 3": ("cosine", training, "train_step", 9, 2),
    "epoch 3, step 1": ("plateau", training, "train_step", 7, 2),
    "epoch 4, step 2": ("plateau", training, "train_step", 11, 3),
    "validation of epoch 2": ("cosine", training, "evaluate", 2, 1),
    "before the checkpoint of epoch 3": ("cosine", training, "save_checkpoint", 3, 2),
    "optimizers of epoch 2": ("cosine", checkpoints, "save_file", 2, 1),
    "first checkpoint's renaming": ("cosine", Path, "rename", 1, 0),  # of best; the second is of last
    "old checkpoint moved away": ("plateau", Path, "rename", 3, 1),  # of last: under this schedule, epoch 1 stays best
    "new checkpoint moved in": ("plateau", Path, "rename", 4, 1),
    "history of epoch 1": ("cosine", training, "write_text", 2, 0),  # the first is config.json
    "history of the last epoch": ("plateau", training, "write_text", 5, 3),
    "checkpoint of the last epoch": ("cosine", training, "save_checkpoint", 4, 3),
    "history at the end": ("cosine", training, "write_text", 6, 4),
    "metrics.json": ("cosine", training, "write_text", 7, 4),
}


@pytest.mark.parametrize(("schedule", "owner", "name", "nth", "saved"), KILLS.values(), ids=KILLS)
def test_killed_and_resumed_equals_undisturbed(
    undisturbed, people, language_model, tmp_path, monkeypatch, schedule, owner, name, nth, saved
):
    expected = undisturbed(schedule)
    with monkeypatch.context() as patched:
        interrupt(patched, owner, name, nth)
        with pytest.raises(Stop):
            resumable_fit(people, language_model, schedule, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    with monkeypatch.context() as patched:  # nothing pickled is read
        for module, function in [(torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")]:
            patched.setattr(module, function, lambda *_, **__: pytest.fail("unpickled something"))
        original, steps = training.train_step, []
        patched.setattr(training, "train_step", lambda *a, **k: steps.append(1) or original(*a, **k))
        resumable_fit(people, language_model, schedule, tmp_path / "run", resume=True)
    assert len(steps) == 3 * (4 - saved)  # what was finished is not done again
    assert_same_run(expected, tmp_path / "run")


def test_killed_twice_and_resumed(undisturbed, people, language_model, tmp_path, monkeypatch):
    for nth in (5, 5):  # epoch 2, step 2; then, having started at epoch 2, epoch 3, step 2
        with monkeypatch.context() as patched:
            interrupt(patched, training, "train_step", nth)
            with pytest.raises(Stop):
                resumable_fit(people, language_model, "cosine", tmp_path / "run", resume=True)
    resumable_fit(people, language_model, "cosine", tmp_path / "run", resume=True)
    assert_same_run(undisturbed("cosine"), tmp_path / "run")


def signalled_step(monkeypatch, nth: int, number: int = signal.SIGTERM) -> list[int]:
    """The signal comes within the nth step from here; the list grows by one for each step."""
    original, steps = training.train_step, []

    def wrapped(*args, **kwargs):
        steps.append(len(steps) + 1)
        if len(steps) == nth:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(training, "train_step", wrapped)
    return steps


@pytest.mark.parametrize(("schedule", "every"), [("cosine", 1), ("plateau", 5)])
def test_interrupted_after_every_few_steps_equals_undisturbed(
    undisturbed, people, language_model, tmp_path, monkeypatch, schedule, every
):
    """Model, optimizers, schedulers, sums and draws of an epoch that is begun all come back."""
    for done in range(every, 13, every):  # 4 epochs of 3 steps
        with monkeypatch.context() as patched:
            steps = signalled_step(patched, every)
            with pytest.raises(Interrupted) as caught:
                resumable_fit(people, language_model, schedule, tmp_path / "run", resume=True)
        assert len(steps) == every
        epoch, step = divmod(done, 3)
        moment = f"in epoch {epoch + 1} after step {step} of 3" if step else f"after epoch {epoch}"
        assert f"run: interrupted {moment}, which is saved; go on with --resume" in str(caught.value)
    assert not (tmp_path / "run" / "metrics.json").exists()
    resumable_fit(people, language_model, schedule, tmp_path / "run", resume=True)
    assert_same_run(undisturbed(schedule), tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_its_step_and_no_other(people, tmp_path, monkeypatch, number, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    steps = signalled_step(monkeypatch, 5, number)
    with pytest.raises(Interrupted) as caught:
        quiet_fit(tiny_config(people), tmp_path / "run")
    assert len(steps) == 5
    assert caught.value.exit_code == code
    state = json.loads((tmp_path / "run" / "checkpoints" / "last" / "training_state.json").read_text())["progress"]
    assert (len(state["history"]), state["step"]) == (1, 2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_signal_outside_the_steps_does_not_wait(people, tmp_path, monkeypatch):
    """Building the stores and the last test may take long; nothing of them is lost that is finished."""
    monkeypatch.setattr(training, "_finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    with pytest.raises(Interrupted):
        quiet_fit(tiny_config(people), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2


def test_finished_run_is_returned_without_work(undisturbed, people, language_model, monkeypatch):
    run = undisturbed("cosine")
    monkeypatch.setattr(training, "load_dataset", lambda *_: pytest.fail("started again"))
    metrics = json.loads((run / "metrics.json").read_text())
    for resume in (False, True):
        assert quiet_fit(resumable_config(people, language_model, "cosine"), run, resume) == metrics


def damage_state(last: Path) -> None:
    (last / "training_state.json").write_text("{")


def damage_weights(last: Path) -> None:
    content = (last / "model.safetensors").read_bytes()
    (last / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove_optimizers(last: Path) -> None:
    (last / "optimizers.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_state, damage_weights, remove_optimizers])
def test_damaged_checkpoint_is_named(people, tmp_path, monkeypatch, damage):
    config = tiny_config(people)
    with monkeypatch.context() as patched:
        interrupt(patched, training, "train_step", 5)
        with pytest.raises(Stop):
            quiet_fit(config, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "last")
    with pytest.raises(RunError, match=r"checkpoints/last is damaged"):
        quiet_fit(config, tmp_path / "run", resume=True)


SCRIPT = """
import sys
from pathlib import Path
from timam import config
from timam.training import fit
fit(config.load(Path(sys.argv[1])), sys.argv[2], progress=False)
"""


@pytest.mark.slow
def test_sigkill_and_resume_equals_undisturbed(undisturbed, people, language_model, tmp_path):
    """A real SIGKILL, some time after the first epoch was saved."""
    config = resumable_config(people, language_model, "cosine")
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(config)))
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as conftest.py's torch.set_num_threads(1)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(run)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (run / "checkpoints" / "last").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumable_fit(people, language_model, "cosine", run, resume=True)
    assert_same_run(undisturbed("cosine"), run)


# -- golden tiny run --------------------------------------------------------------------------------------------


def golden_losses(tmp_path: Path) -> list[float]:
    """The total loss of 7 steps on the same 12 pictures of 6 persons; SqueezeNet and learned words from seed 0.

    Plain SGD and no batch normalisation: a relative change of the first weights by 1e-5 moves these losses by less
    than 4e-4, and other convolution kernels (mkldnn off) by 1e-7. With Adam or ResNet-18 it is up to 5e-2.
    """
    root = write_person_search(tmp_path / "data")
    config = tiny_config(
        root, "model.backbone=squeezenet1_1", "data.batch_size=12", "train.epochs=7", "train.schedule=constant",
        "train.warmup_epochs=0", "train.image_optimizer=sgd", "train.text_optimizer=sgd", "train.image_lr=1e-2",
        "train.discriminator_optimizer=sgd", "train.text_lr=5e-2", "train.discriminator_lr=1e-2",
        "train.discriminator_momentum=0.9", "train.discriminator_steps=1", "loss.adversarial_input=raw",
        "loss.gradient_penalty=0", "loss.label_smoothing=0.1",
    )  # fmt: skip
    quiet_fit(config, tmp_path / "run")
    return pd.read_csv(tmp_path / "run" / "history.csv")["total"].tolist()


def test_golden_tiny_run(tmp_path):
    """Losses of a few CPU steps as they were. To store new ones, in a commit of its own:

    TIMAM_WRITE_GOLDEN=1 pytest tests/test_training.py -k golden
    """
    losses = golden_losses(tmp_path)
    if os.environ.get("TIMAM_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"device": "x86-64 CPU, float32, one thread", "total": losses}, indent=2) + "\n")
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.96 * losses[0]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["total"], rel=1e-3)


@pytest.mark.slow
def test_paper_preset_takes_its_first_steps_on_a_cpu(tmp_path):
    """ResNet-101 and BERT-base at full size, with random weights, as no hub is needed for those."""
    people = write_person_search(tmp_path / "people", train=6, val=2, test=2)
    settings = ["model.backbone_weights=none", "model.language_model_weights=false", "train.epochs=1"]
    settings += ["data.dataset=cuhk-pedes", f"data.root={people}", "data.batch_size=4", "train.max_steps=2"]
    metrics = quiet_fit(configs.override(PRESETS["paper"], settings), tmp_path / "run")
    assert metrics["text_to_image"]["queries"] == 8
    parameters = sum(t.numel() for t in load_file(tmp_path / "run/checkpoints/best/model.safetensors").values())
    # torchvision's and Devlin et al.'s counts, without the heads: 42.5 M and 108.9 M; the LSTM adds 5.3 M.
    assert 42.5e6 + 108.9e6 + 5.2e6 < parameters < 160e6
