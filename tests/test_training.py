"""timam.training: selection on validation, the run directory, and resuming to the same result."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import pickle
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from layouts import tiny_config, write_person_search
from running import assert_same_best, assert_same_history, assert_same_run, interrupted, signalled_step
from safetensors.torch import load_file

from timam import config as configs
from timam import training
from timam.collapse import training_warnings
from timam.config import PRESETS
from timam.data import load_dataset
from timam.evaluation import embed_split, evaluate, gap
from timam.interruption import Interrupted
from timam.learner import Learner
from timam.models import TIMAM
from timam.run import Run, RunError
from timam.stores import StoredSplit, open_pixels
from timam.training import fit

GOLDEN = Path(__file__).with_name("golden_tiny_run.json")


def quiet_fit(config: configs.Config, output: Path, resume: bool = False) -> dict[str, Any]:
    return fit(config, output, resume=resume, progress=False)


@pytest.fixture(scope="module")
def observed(language_model, tmp_path_factory) -> SimpleNamespace:
    """A run of three epochs, frozen, frozen and unfrozen, and what was seen while it trained; tests only read it.

    Its attributes: `config`, `run`, `metrics`; `events`, the name of each split that is embedded and "saved" after an
    epoch; `modes`, whether all modules were in train mode in a step; `states` of the language model at validations;
    `rows`, the epochs of each history that is handed over.
    """
    folder = tmp_path_factory.mktemp("observed")
    root = write_person_search(folder / "data", val=10, test=11)
    config = tiny_config(
        root, f"model.language_model={language_model}", "train.epochs=3", "train.unfreeze_epoch=3",
        "train.weight_decay=0.1", "train.language_model_lr=1e-3", "train.early_stop=none",
    )  # fmt: skip
    seen = SimpleNamespace(config=config, run=Run(folder / "run"), events=[], modes=[], states=[], rows=[])
    step, validate, embed, save = training.train_step, training._validate, training.embed_split, Run.save_epoch

    def train_step(learner, *arguments):
        model = learner.model
        frozen = set(model.text_encoder.language_model.modules()) if model.text_encoder.frozen else set()
        seen.modes.append(all(m.training != (m in frozen) for m in model.modules()))
        return step(learner, *arguments)

    def validate_and_keep(model, data):
        seen.states.append({n: t.clone() for n, t in model.text_encoder.language_model.state_dict().items()})
        return validate(model, data)

    def embed_and_leave_eval_mode(model, stored, **options):
        seen.events.append(stored.split.name)
        embeddings = embed(model, stored, **options)
        model.eval()
        return embeddings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", train_step)
        patch.setattr(training, "_validate", validate_and_keep)
        patch.setattr(training, "embed_split", embed_and_leave_eval_mode)
        patch.setattr(Run, "save_epoch", lambda *a: seen.events.append("saved") or save(*a))
        after_epoch = lambda rows: seen.rows.append([row["epoch"] for row in rows])  # noqa: E731
        seen.metrics = fit(config, seen.run.folder, progress=False, after_epoch=after_epoch)
    return seen


def test_after_each_epoch_the_history_so_far_is_handed_over(observed):
    assert observed.rows == [[1], [1, 2], [1, 2, 3]]


def test_frozen_language_model_is_bit_identical_then_moves(observed):
    """Weight decay and a pending optimizer do not touch it while it is frozen; unfrozen, it learns."""
    first, second, third = observed.states
    assert [n for n in first if not torch.equal(first[n], second[n])] == []
    assert sum(not torch.equal(second[n], third[n]) for n in first) > 10
    assert observed.run.history()["language_model_frozen"].tolist() == [True, True, False]


def test_run_keeps_what_the_gap_over_training_needs(observed):
    """The validation split before training, after the frozen stage and at the best epoch, and the gap of each epoch."""
    run, history = observed.run, observed.run.history()
    assert run.moments() == ["before", "frozen", "best"]
    kept = {moment: run.val_embeddings(moment) for moment in run.moments()}
    for moment, epoch in {"frozen": 2, "best": observed.metrics["best_epoch"]}.items():
        for name, value in gap(kept[moment]).items():
            assert history.iloc[epoch - 1][f"val_{name}"] == pytest.approx(value, abs=1e-3), (moment, name)
    assert not torch.allclose(kept["before"].images, kept["frozen"].images)


def test_every_training_step_is_in_train_mode(observed):
    assert observed.modes == [True] * 9  # 12 pictures in batches of 4, three epochs: also after the first evaluation


def test_metrics_are_those_of_the_best_model_on_the_test_split(observed):
    split = load_dataset("cuhk-pedes", observed.config.data.root).split("test")
    pixels = open_pixels(split.image_paths, 64, 32, progress=False)
    validation = observed.run.val_embeddings("best")
    results = evaluate(embed_split(observed.run.best_model(), StoredSplit(split, pixels)), validation=validation)
    assert {key: observed.metrics[key] for key in results} == results
    chosen = evaluate(validation)["open_set"]["text_to_image"]["threshold"]  # not on the test split
    assert observed.metrics["open_set"]["threshold"] == chosen
    assert observed.run.metrics() == observed.metrics


def test_test_split_is_read_only_at_the_end_and_chooses_nothing(observed, tmp_path, monkeypatch):
    """Replacing every test result leaves the run as it is; nothing embeds the test split before the last epoch."""
    frozen = ["val", "train", "saved"]
    assert observed.events == ["val", *frozen, *frozen, "val", *frozen, "val", "test"]
    original = training.embed_split

    def mirrored_test(model, stored, **kwargs):
        embeddings, test = original(model, stored, **kwargs), stored.split.name == "test"
        return dataclasses.replace(embeddings, images=-embeddings.images) if test else embeddings

    monkeypatch.setattr(training, "embed_split", mirrored_test)
    second = quiet_fit(observed.config, tmp_path / "run")
    assert second["text_to_image"] != observed.metrics["text_to_image"]  # the test did change
    assert second["best_epoch"] == observed.metrics["best_epoch"]
    assert_same_best(observed.run.folder, tmp_path / "run")
    assert_same_history(observed.run.folder, tmp_path / "run")


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
    assert not (tmp_path / "run" / "metrics.json").exists()


def scripted_scores(monkeypatch, scores: list[float]) -> None:
    """The first validations give these values of rank-1 in turn, later ones their own."""
    original, rest = training._validate, iter(scores)

    def wrapped(model, data):
        row = original(model, data)
        return row | {"val_text_to_image_rank_1": next(rest, row["val_text_to_image_rank_1"])}

    monkeypatch.setattr(training, "_validate", wrapped)


def test_training_stops_early_and_keeps_the_first_best_epoch(people, tmp_path, monkeypatch):
    """Epoch 3 is as good as epoch 2, and not better: two epochs without a better score."""
    scripted_scores(monkeypatch, [0.1, 0.5, 0.5, 0.2, 0.9])
    weights, original = [], Learner.save

    def spy(learner, folder):
        weights.append({n: t.clone() for n, t in learner.model.state_dict().items()})
        return original(learner, folder)

    monkeypatch.setattr(Learner, "save", spy)
    settings = ["train.epochs=6", "train.early_stop=2", "train.unfreeze_epoch=none", "train.unfreeze_patience=none"]
    metrics = quiet_fit(tiny_config(people, *settings), tmp_path / "run")
    assert (len(weights), metrics["best_epoch"]) == (4, 2)
    kept = load_file(tmp_path / "run" / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(kept[n], weights[1][n]) for n in kept.keys() - {"modality_means"})
    assert any(not torch.equal(kept[n], weights[2][n]) for n in kept)


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


@pytest.mark.parametrize("max_steps", [2, 5])
def test_too_few_pictures_for_the_recipe_are_told(people, tmp_path, capsys, max_steps):
    config = tiny_config(people, "train.epochs=1", f"train.max_steps={max_steps}")
    fit(config, tmp_path / "run")
    steps = len(load_dataset("cuhk-pedes", people).split("train").image_paths) // config.data.batch_size
    assert 2 <= steps < 5
    told = f"{steps} steps in all, as there are few pictures; the preset is made for 5, which --set train.epochs="
    assert (f"{told}{math.ceil(5 / steps)} gives" in capsys.readouterr().out) == (max_steps > steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], None),
        (["train.weight_decay=300"], "all text embeddings are nearly alike"),  # a third of each weight in each step
        (["loss.gradient_penalty=0"], "the discriminator is always right"),
    ],
)
def test_collapse_is_printed_and_kept(people, tmp_path, capsys, settings, expected):
    """The image encoder starts from random weights and hardly changes, so its own warning is always there."""
    metrics = fit(tiny_config(people, "train.warmup_epochs=0", *settings), tmp_path / "run")
    lines = [line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines()]
    for beginning in ("all text", "the discriminator"):
        said = any(line.startswith(beginning) for line in lines)
        assert said == (expected is not None and expected.startswith(beginning)), lines
    row = Run(tmp_path / "run").history().iloc[metrics["best_epoch"] - 1]
    penalty = 0.0 if "loss.gradient_penalty=0" in settings else 10.0
    kept = [w for w in metrics["warnings"] if not w.startswith("rank-1 on validation is")]
    assert kept == training_warnings(row.to_dict(), penalty)


@pytest.mark.slow
@pytest.mark.parametrize(("rank_1", "told"), [(0.4, True), (0.7, False)])
def test_a_run_that_ends_near_chance_says_so(people, tmp_path, monkeypatch, capsys, rank_1, told):
    val = load_dataset("cuhk-pedes", people).split("val")
    found = [sum(val.image_labels == label) for label in val.caption_labels]
    chance = sum(found) / len(found) / len(val.image_paths)
    assert 0.4 < 2 * chance < 0.7
    original = training._validate
    with_score = lambda *a: original(*a) | {"val_text_to_image_rank_1": rank_1}  # noqa: E731
    monkeypatch.setattr(training, "_validate", with_score)
    metrics = fit(tiny_config(people), tmp_path / "run")
    line = f"rank-1 on validation is {rank_1:.1%} and chance {chance:.1%}"
    assert (line in capsys.readouterr().out, any(line in w for w in metrics["warnings"])) == (told, told)


@pytest.mark.slow
def test_rank_1_on_training_people_is_that_of_a_fixed_sample(people, tmp_path, monkeypatch):
    """As many identities as the validation split has; the model of the last epoch is still there as "best"."""
    scripted_scores(monkeypatch, [0.1, 0.2])
    run = Run(tmp_path / "run")
    quiet_fit(tiny_config(people), run.folder)
    dataset = load_dataset("cuhk-pedes", people)
    train, identities = dataset.split("train"), len(dataset.split("val").identities)
    stored = StoredSplit(train, open_pixels(train.image_paths, 64, 32, progress=False)).sample(identities)
    assert len(np.unique(stored.split.image_labels)) == identities < len(train.identities)
    found = evaluate(embed_split(run.best_model(), stored))["text_to_image"]["rank_1"]
    assert run.history()["train_text_to_image_rank_1"].iloc[-1] == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("augmented", [False, True])
def test_frozen_blocks_are_stored_unless_pictures_are_augmented(people, tmp_path, monkeypatch, augmented):
    settings = ["model.backbone=squeezenet1_1", "train.frozen_blocks=4", f"data.horizontal_flip={augmented}"]
    config, channels, original = tiny_config(people, *settings), set(), training.train_step

    def spy(learner, inputs, *args):
        channels.add(inputs["images"].shape[1])
        return original(learner, inputs, *args)

    monkeypatch.setattr(training, "train_step", spy)
    metrics = quiet_fit(config, tmp_path / "run")
    assert channels == {3 if augmented else 128}  # of SqueezeNet's first fire module
    # The finished model reads pictures: what it found of the validation split is as in the last row but for rounding.
    run, row = Run(tmp_path / "run"), Run(tmp_path / "run").history().iloc[metrics["best_epoch"] - 1]
    found = gap(run.val_embeddings("best"))
    assert found["centroid_distance"] == pytest.approx(row["val_centroid_distance"], abs=1e-2)
    before = load_file(run.last / "model.safetensors")
    interrupted(config, tmp_path / "again", steps=4)
    quiet_fit(config, tmp_path / "again", resume=True)
    after = load_file(Run(tmp_path / "again").last / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_warm_start_takes_the_encoders_and_not_the_classifier(people, tmp_path, capsys):
    """Another number of training identities: the classifier starts anew, everything else from the first run."""
    first = Run(tmp_path / "first")
    quiet_fit(tiny_config(people), first.folder)
    few = write_person_search(tmp_path / "few", train=3)
    settings = ["train.epochs=1", "train.max_steps=1", "model.embedding_dim=16"]
    trained = first.best_model().state_dict()
    config = tiny_config(few, f"train.init={first.folder}", *settings)
    model = TIMAM.pretrained(config.model, 3, load_dataset("cuhk-pedes", few).split("train").captions)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.warm_start(model, str(first.folder))
    for name, value in model.state_dict().items():
        fits = not name.startswith("class_") and before[name].shape == trained[name].shape
        assert torch.equal(value, trained[name] if fits else before[name]), name
    assert "started from" in capsys.readouterr().out
    fit(config, tmp_path / "second", progress=True)
    assert f"started from {first.folder}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of its tensors"):
        training.warm_start(torch.nn.Linear(1, 1), str(first.folder), show=False)


def test_a_run_goes_on_without_the_model_that_it_started_from(people, tmp_path, monkeypatch):
    first, config = tmp_path / "first", tiny_config(people, f"train.init={tmp_path / 'first'}")
    with monkeypatch.context() as patch:
        patch.setattr(TIMAM, "pretrained", lambda *_: pytest.fail("fetched weights"))
        with pytest.raises(FileNotFoundError, match="first: no such folder"):
            quiet_fit(config, tmp_path / "run")
    quiet_fit(tiny_config(people, "train.epochs=1", "train.max_steps=1"), first)
    interrupted(config, tmp_path / "run", steps=4)
    quiet_fit(config, tmp_path / "undisturbed")
    shutil.rmtree(first)
    quiet_fit(config, tmp_path / "run", resume=True)
    assert_same_history(tmp_path / "undisturbed", tmp_path / "run")


# -- resuming ---------------------------------------------------------------------------------------------------


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
    config = tiny_config(
        people, f"model.language_model={language_model}", "train.epochs=4", "train.unfreeze_epoch=3",
        "train.early_stop=none", "data.horizontal_flip=true", "data.pad_crop=2", "data.random_erasing=0.5",
        "loss.adversarial_weight=0.5", *SCHEDULES[schedule],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        if schedule == "plateau":
            scripted_scores(patch, [0.5] * 9)
        return quiet_fit(config, output, resume)


@pytest.fixture(scope="module")
def undisturbed(people, language_model, tmp_path_factory):
    """undisturbed(schedule) -> a finished run of 4 epochs, made once."""

    @functools.cache
    def run(schedule: str) -> Path:
        output = tmp_path_factory.mktemp(schedule) / "run"
        resumable_fit(people, language_model, schedule, output)
        history = Run(output).history()  # or resuming it would prove little
        assert history["language_model_frozen"].tolist() == [True, True, False, False]
        assert schedule == "cosine" or history["image_lr"].tolist() == pytest.approx([5e-4, 5e-4, 5e-4, 5e-5])
        return output

    return run


def test_same_config_gives_the_same_run(undisturbed, people, language_model, tmp_path):
    resumable_fit(people, language_model, "cosine", tmp_path / "run")
    assert_same_run(undisturbed("cosine"), tmp_path / "run")


# Event at which the process is killed: (schedule, owner, its function, the nth call of it, epochs saved by then).
# There are 3 steps in an epoch. test_faults.py kills at random moments, too.
KILLS = {
    "first step": ("cosine", training, "train_step", 1, 0),
    "step 2 of epoch 4": ("plateau", training, "train_step", 11, 3),
    "validation of epoch 2": ("cosine", training, "_validate", 2, 1),
    "history of epoch 2, whose model is saved": ("cosine", Run, "write_history", 2, 1),
    "checkpoint of the last epoch": ("plateau", Learner, "save", 4, 3),
    # Renamings under this schedule, where epoch 1 stays the best: best 1, last 2, old last away 3, new last in 4.
    "new checkpoint moved in": ("plateau", Path, "rename", 4, 1),
    "results": ("cosine", Run, "complete", 1, 4),
}


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_signal_outside_the_steps_does_not_wait(people, tmp_path, monkeypatch):
    """Building the stores and the last test may take long; nothing of them is lost that is finished."""
    monkeypatch.setattr(Run, "complete", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    with pytest.raises(Interrupted):
        quiet_fit(tiny_config(people), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2


def test_data_that_moved_do_not_stop_a_run(people, tmp_path):
    """The fingerprint of the data decides, not their place."""
    moved = shutil.copytree(people, tmp_path / "elsewhere")
    run = tmp_path / "run"
    interrupted(tiny_config(people), run, steps=5)
    quiet_fit(tiny_config(moved), run, resume=True)
    assert Run(run).config().data.root == str(moved)
    quiet_fit(tiny_config(people), tmp_path / "undisturbed")
    assert_same_history(run, tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["", "é" * 125])
def test_a_run_of_one_step_and_the_largest_seed_in_the_working_folder_or_under_250_bytes(
    people, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    steps = signalled_step(monkeypatch, 0)  # counts them, and signals in none
    quiet_fit(tiny_config(people, "train.epochs=1", "train.max_steps=1", f"train.seed={2**32 - 1}"), Path(name))
    run = Run(tmp_path / name)
    assert (run.finished, steps) == (True, [1])
    run.beside("{}.failed.txt").write_text("why")  # of a study
    run.beside("{}.failed.txt").unlink()


def test_surroundings_change_nothing(people, tmp_path, monkeypatch):
    """Accelerate reads environment variables that config.json does not know of."""
    config = tiny_config(people, "train.epochs=1", "train.image_optimizer=sgd", "train.text_optimizer=sgd")
    quiet_fit(config, tmp_path / "plain")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    quiet_fit(config, tmp_path / "surrounded")
    assert_same_run(tmp_path / "plain", tmp_path / "surrounded")


def test_a_test_split_of_one_identity_has_metrics_but_no_probe(tmp_path):
    people = write_person_search(tmp_path / "data", val=1, test=1)
    metrics = quiet_fit(tiny_config(people, "train.epochs=1"), tmp_path / "run")
    assert metrics["text_to_image"]["rank_1"] == 1.0  # every picture is right
    assert metrics["modality_gap"] == {}


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


class Tracker(GeneralTracker):
    """Keeps what it is given, in place of a tracker's package."""

    name, requires_logging_directory, tracker, calls = "trackio", False, None, []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.calls.append(("open", project, options))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_tracker_gets_the_settings_and_each_row_of_the_history(people, tmp_path, monkeypatch, stopped):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Tracker)
    monkeypatch.setattr(Tracker, "calls", [])
    config = tiny_config(people, "train.epochs=2", "train.tracker=trackio")
    if stopped:
        interrupt(monkeypatch, training, "_validate", 2)
    with pytest.raises(Stop) if stopped else nullcontext():
        quiet_fit(config, tmp_path / "mine")
    opened, settings, *rows, end = Tracker.calls
    assert (opened, end) == (("open", "timam", {"name": "mine"}), ("finish",))
    assert settings[1]["train.epochs"] == 2
    assert str(people) not in str(settings)
    history = Run(tmp_path / "mine").history().to_dict("records")
    assert [step for step, _ in rows] == [row["epoch"] for row in history] == [1, 2][: 2 - stopped]
    assert [row for _, row in rows] == [pytest.approx(row) for row in history]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(people, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(RunError, match="'wandb' is not installed: pip install wandb"):
        quiet_fit(tiny_config(people, "train.tracker=wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["clip", "paper"])
def test_preset_takes_its_first_steps_on_a_cpu_at_full_size(tmp_path, tokenizer, monkeypatch, preset):
    """With random weights, for which no hub is needed; a folder stands in for CLIP's configuration."""
    people = write_person_search(tmp_path / "people", train=6, val=2, test=2)
    settings = ["backbone_weights=none", "language_model_weights=false", "max_steps=2", "batch_size=2"]
    settings += ["dataset=cuhk-pedes", f"root={people}"]
    if preset == "clip":  # ViT-B/16 at 384x128; the rest of its configuration is transformers' default
        transformers.CLIPConfig(vision_config={"patch_size": 16}).save_pretrained(tmp_path / "clip")
        tokenizer.save_pretrained(tmp_path / "clip")
        settings += [f"{part}={tmp_path / 'clip'}" for part in ("backbone", "language_model")]
    learners, original = [], training.train_step
    monkeypatch.setattr(training, "train_step", lambda *args: learners.append(args[0]) or original(*args))
    interrupt(monkeypatch, training, "_validate", 1)  # before gigabytes are saved
    with pytest.raises(Stop):
        quiet_fit(configs.override(PRESETS[preset], settings), tmp_path / "run")
    learner, state = learners[1], learners[1].model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    if preset == "paper":  # torchvision's and Devlin et al.'s counts, without the heads; the LSTM adds 5.3 M
        assert 42.5e6 + 108.9e6 + 5.2e6 < sum(t.numel() for t in state.values()) < 160e6
        return
    # CLIP ViT-B/16 has 149,620,737 parameters, its learned temperature included; the classifier has 6 rows here.
    ours = sum(t.numel() for n, t in state.items() if n.startswith(("image_encoder", "text_encoder")))
    assert ours - 6 == 149_620_736  # without the two buffers that change the pixels' scale
    assert state["class_weights"].shape == (1, 6, 512)
    rates = [group["initial_lr"] for group in learner.optimizers["text"].param_groups]
    assert rates == pytest.approx([1e-5, 5e-5, 1e-5])  # projection, classifier, language model
