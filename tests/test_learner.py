"""timam.learner: progress, optimizers, schedules, and checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from timam.config import PRESETS, Config, LossConfig, TrainConfig
from timam.learner import Learner, Progress, build_optimizers, build_schedulers


def progress_of(scores: list[float], unfrozen_at: int | None = None) -> Progress:
    return Progress([{"val_text_to_image_rank_1": s} for s in scores], unfrozen_at)


@pytest.mark.parametrize(
    ("scores", "unfrozen_at", "best", "waited"),
    [
        ([], None, 0, 0),
        ([0.0, 0.0], None, 1, 1),  # the first of the highest
        ([0.1, 0.3, 0.2, 0.3], None, 2, 2),
        ([0.1, 0.3, 0.2, 0.3], 4, 2, 1),  # waiting begins anew with unfreezing: epoch 4 is the first after it
    ],
)
def test_best_epoch_and_how_long_ago_it_was(scores, unfrozen_at, best, waited):
    progress = progress_of(scores, unfrozen_at)
    assert (progress.best_epoch, progress.waited()) == (best, waited)


@pytest.mark.parametrize(("patience", "epochs"), [(2, 3), (None, 6)])
def test_early_stop(patience, epochs):
    config, scores = TrainConfig(epochs=6, early_stop=patience), [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert next(n for n in range(1, 9) if progress_of(scores[:n]).is_over(config)) == epochs


@pytest.mark.parametrize(
    ("epoch", "patience", "scores", "expected"),
    [
        (3, None, [0.1] * 5, "ffttt"),
        (None, 1, [0.1, 0.2, 0.3, 0.3, 0.4], "fffft"),  # epoch 4 was the first without a better score
        (None, 2, [0.3, 0.2, 0.1, 0.4, 0.4], "ffftt"),  # epochs 2 and 3 were not better than epoch 1
        (None, 3, [0.3, 0.2, 0.1, 0.4, 0.1], "fffff"),  # epoch 4 came in time
        (2, 3, [0.1, 0.1, 0.1], "ftt"),  # whichever comes first
    ],
)
def test_unfreezing_epoch_by_epoch(epoch, patience, scores, expected):
    """In the order of `fit`: decide, train, add the score; f: frozen, t: the language model trains."""
    config, state, found = TrainConfig(unfreeze_epoch=epoch, unfreeze_patience=patience), Progress(), ""
    for number, score in enumerate(scores, start=1):
        if state.unfreezes(config):
            state.unfrozen_at = number
        found += "ft"[state.unfrozen_at is not None]
        state.history.append({"val_text_to_image_rank_1": score})
    assert found == expected


def rates(config: TrainConfig, scores: list[float], epoch_steps: int = 1) -> list[float]:
    """The rate of one optimizer at each step of epochs that end with the given validation scores."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizers, found = {"image": optimizer}, []
    learner = Learner(None, optimizers, build_schedulers(optimizers, config, epoch_steps))
    for score in scores:
        for _ in range(epoch_steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            learner.end_step(config)
        learner.end_epoch({"total": -score, "val_text_to_image_rank_1": score}, config)
    return found


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1.0] * 8),
        ("constant", 2.0, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # Two steps of warm-up, then half a cosine: (1 + cos a) / 2 of 0, 30, 60, 90, 120 and 150 degrees.
        ("cosine", 1.0, [0.5, 1.0, 1.0, (2 + math.sqrt(3)) / 4, 0.75, 0.5, 0.25, (2 - math.sqrt(3)) / 4]),
        ("cosine", 0.0, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ],
)
def test_rates_with_warmup(schedule, warmup, expected):
    config = TrainConfig(schedule=schedule, epochs=4, warmup_epochs=warmup)
    assert rates(config, [0.0] * 4, epoch_steps=2) == pytest.approx(expected, abs=1e-12)


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
    optimizers = build_optimizers(tiny_model(), PRESETS["paper"].train)
    assert [type(o) for o in optimizers.values()] == [torch.optim.SGD, torch.optim.Adam, torch.optim.SGD]
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [*[(2e-4, 4e-4)] * 2, (2e-5, 4e-4), (2e-4, 4e-4)]
    assert groups[0]["momentum"] == groups[-1]["momentum"] == 0.9
    schedulers = build_schedulers(optimizers, PRESETS["paper"].train, 10)
    assert {m for s in schedulers.values() for m in s.min_lrs} == {2e-6}  # of ReduceLROnPlateau


@pytest.mark.parametrize("fields", [{}, {"text_head": "pooled"}, {"language_model": "none"}], ids=str)
def test_every_parameter_is_in_one_optimizer_at_its_rate(tiny_model, fields):
    model = tiny_model(**fields)
    config = TrainConfig(image_lr=1e-3, text_lr=1e-4, language_model_lr=1e-5, new_layers_factor=5)
    groups = [group for optimizer in build_optimizers(model, config).values() for group in optimizer.param_groups]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    expected = {
        "image_encoder.backbone": 1e-3, "image_encoder.projection": 5e-3, "text_encoder.language_model": 1e-5,
        "text_encoder.lstm": 5e-4, "text_encoder.projection": 5e-4, "class": 5e-4, "discriminator": 2e-4,
    }  # fmt: skip
    if fields.get("language_model"):  # words that are learned start from nothing, as the text encoder's other layers
        expected["text_encoder.language_model"] = 5e-4
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(next(v for k, v in expected.items() if name.startswith(k))), name


def test_progress_and_the_learned_temperature_survive_a_checkpoint(tiny_model, tmp_path):
    config = Config(loss=LossConfig(matching="infonce", temperature=0.07))
    learner, other = (Learner.build(tiny_model(), config, epoch_steps=1) for _ in range(2))
    assert float(learner.log_temperature.detach().exp()) == pytest.approx(0.07)
    learner.log_temperature.grad = torch.ones(())
    learner.optimizers["text"].step()
    learner.progress = Progress(
        [{"val_text_to_image_rank_1": 0.5}], 1, "data", ["code"], {"best": "sum"}, 2, {"a": 1.5}, 3
    )
    learner.save(tmp_path / "last")
    other.load(tmp_path / "last")
    assert other.progress == learner.progress
    assert torch.equal(other.log_temperature, learner.log_temperature)
    assert not torch.isclose(other.log_temperature.exp(), torch.tensor(0.07), rtol=1e-6)
