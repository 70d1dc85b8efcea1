"""timam.training: selection on validation, the run directory, and resuming to the same result."""

from __future__ import annotations

import dataclasses
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
from unittest import mock

import accelerate
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from accelerate.utils import LoggerType
from layouts import tiny_config, write_person_search
from running import FOUR_EPOCHS, assert_same_best, assert_same_history, assert_same_run, interrupted, signalled_step
from safetensors.torch import load_file

from timam import config as configs
from timam import training
from timam.collapse import training_warnings
from timam.config import PRESETS
from timam.data import Split, load_dataset
from timam.evaluation import embed_split, evaluate, gap
from timam.interruption import Interrupted
from timam.job import Job
from timam.learner import Learner
from timam.models import TIMAM
from timam.run import Run, RunError
from timam.stores import StoredSplit, open_pixels
from timam.training import fit

GOLDEN = Path(__file__).with_name("golden_tiny_run.json")


def quiet_fit(config: configs.Config, output: Path, resume: bool = False) -> dict[str, Any]:
    return fit(config, output, resume=resume, progress=False)


def stored(split: Split) -> StoredSplit:
    return StoredSplit(split, open_pixels(split.image_paths, 64, 32, progress=False))


@pytest.fixture(scope="module")
def observed(language_model, tmp_path_factory) -> SimpleNamespace:
    """A run of three epochs, frozen, frozen and unfrozen, and what was seen while it trained; tests only read it.

    Its attributes: `config`, `run`, `metrics`; `events`, the name of each split that is embedded and "saved" after an
    epoch; `modes`, whether all modules were in train mode in a step; `states` of the language model at validations;
    `rows`, the epochs of each history that is handed over.
    """
    folder = tmp_path_factory.mktemp("observed")
    root = write_person_search(folder / "data", train=12, val=10, test=11)
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


def test_every_step_is_in_train_mode_and_each_epoch_is_handed_over(observed):
    assert observed.modes == [True] * 3 * 6  # 24 pictures in batches of 4: also after the first evaluation
    assert observed.rows == [[1], [1, 2], [1, 2, 3]]


def test_metrics_are_those_of_the_best_model_on_the_test_split(observed):
    split = load_dataset("cuhk-pedes", observed.config.data.root).split("test")
    validation = observed.run.val_embeddings("best")
    results = evaluate(embed_split(observed.run.best_model(), stored(split)), validation=validation)
    assert {key: observed.metrics[key] for key in results} == results
    chosen = evaluate(validation)["open_set"]["text_to_image"]["threshold"]  # not on the test split
    assert observed.metrics["open_set"]["threshold"] == chosen
    assert observed.run.metrics() == observed.metrics


def test_rank_1_on_training_people_is_that_of_a_fixed_sample(observed):
    """Of as many identities as the validation split has."""
    sample = stored(load_dataset("cuhk-pedes", observed.config.data.root).split("train")).sample(10)
    assert len(np.unique(sample.split.image_labels)) == 10
    found = evaluate(embed_split(observed.run.best_model(), sample))["text_to_image"]["rank_1"]
    row = observed.run.history().iloc[observed.metrics["best_epoch"] - 1]
    assert row["train_text_to_image_rank_1"] == pytest.approx(found, abs=1e-12)


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


def interrupt(monkeypatch, owner: Any, name: str, nth: int) -> None:
    """The nth call of owner.name raises before it does anything."""
    original, count = getattr(owner, name), itertools.count(1)

    def wrapped(*args, **kwargs):
        if next(count) == nth:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(("term", "value"), [("matching", float("nan")), ("adversarial", float("inf"))])
def test_non_finite_loss_stops_with_its_name_and_keeps_the_last_epoch(people, tmp_path, monkeypatch, term, value):
    original, steps = training.train_step, itertools.count(1)

    def broken(*args):  # from the second step of epoch 2
        return original(*args) | ({term: torch.tensor(value)} if next(steps) >= 5 else {})

    monkeypatch.setattr(training, "train_step", broken)
    with pytest.raises(RunError, match=rf"epoch 2, step 3: {term} is not finite.*learning rate"):
        quiet_fit(tiny_config(people, "train.epochs=3"), tmp_path / "run")
    assert len(Run(tmp_path / "run").history()) == 1
    assert not Run(tmp_path / "run").finished
    before = Run(tmp_path / "run").last.stat().st_ino
    signalled_step(monkeypatch, 2)  # does not save the broken step
    with pytest.raises(RunError, match=rf"epoch 2, step 2: {term} is not finite"):
        quiet_fit(tiny_config(people, "train.epochs=3"), tmp_path / "run", resume=True)
    assert Run(tmp_path / "run").last.stat().st_ino == before


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
        weights.append({n: t.detach().cpu().clone() for n, t in learner.model.state_dict().items()})
        return original(learner, folder)

    monkeypatch.setattr(Learner, "save", spy)
    settings = ["train.epochs=6", "train.early_stop=2", "train.unfreeze_epoch=none", "train.unfreeze_patience=none"]
    metrics = quiet_fit(tiny_config(people, *settings), tmp_path / "run")
    assert (len(weights), metrics["best_epoch"]) == (4, 2)
    kept = load_file(tmp_path / "run" / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(kept[n], weights[1][n]) for n in kept.keys() - {"modality_means"})
    assert any(not torch.equal(kept[n], weights[2][n]) for n in kept)


@pytest.mark.parametrize("max_steps", [2, 5])
def test_too_few_pictures_for_the_recipe_are_told(people, tmp_path, capsys, max_steps):
    config = tiny_config(people, "train.epochs=1", f"train.max_steps={max_steps}")
    fit(config, tmp_path / "run")
    steps = len(load_dataset("cuhk-pedes", people).split("train").image_paths) // config.data.batch_size
    assert 2 <= steps < 5
    recipe = PRESETS["smoke"].train
    wanted = recipe.epochs * recipe.max_steps
    told = f"{steps} steps in all. The preset is made for {wanted}; train.epochs={math.ceil(wanted / steps)} gives"
    assert (told in capsys.readouterr().out) == (max_steps > steps)
    enough = configs.override(config, [f"train.epochs={math.ceil(wanted / steps)}"])
    fit(enough, tmp_path / "long")
    assert "few pictures" not in capsys.readouterr().out  # what was told is enough


def test_a_run_names_the_commit_at_which_it_began(people, tmp_path, monkeypatch):
    monkeypatch.setenv("TIMAM_COMMIT", "first")
    later = lambda _: monkeypatch.setenv("TIMAM_COMMIT", "later")  # noqa: E731
    metrics = fit(tiny_config(people, "train.epochs=1"), tmp_path / "run", after_epoch=later)
    assert metrics["provenance"]["commit"] == "first"


@pytest.mark.slow
def test_collapse_is_printed_and_kept(people, tmp_path, capsys):
    metrics = fit(tiny_config(people, "train.warmup_epochs=0", "loss.gradient_penalty=0"), tmp_path / "run")
    row = Run(tmp_path / "run").history().iloc[metrics["best_epoch"] - 1]
    expected = list(training_warnings(row.to_dict(), gradient_penalty=0))
    assert any(warning.startswith("the discriminator is always right") for warning in expected)
    assert metrics["warnings"][: len(expected)] == expected
    assert f"warning: {expected[-1]}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("rank_1", "told"), [(0.4, True), (0.7, False)])
def test_a_run_that_ends_near_chance_says_so(people, tmp_path, monkeypatch, capsys, rank_1, told):
    val = load_dataset("cuhk-pedes", people).split("val")
    found = [sum(val.image_labels == label) for label in val.caption_labels]
    chance = sum(found) / len(found) / len(val.image_paths)
    assert 0.4 < 2 * chance < 0.7
    scripted_scores(monkeypatch, [rank_1, 0.0])
    metrics = fit(tiny_config(people), tmp_path / "run")
    line = f"rank-1 on validation is {rank_1:.1%} and chance {chance:.1%}"
    assert (line in capsys.readouterr().out, any(line in w for w in metrics["warnings"])) == (told, told)


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


def test_warm_start_takes_the_encoders_and_not_the_classifier(people, tmp_path, capsys):
    """Another number of training identities: the classifier starts anew, everything else from the first run."""
    first, few = Run(tmp_path / "first"), write_person_search(tmp_path / "few", train=3)
    quiet_fit(tiny_config(people), first.folder)
    trained = first.best_model(torch.device("cpu")).state_dict()
    config = tiny_config(few, f"train.init={first.folder}", "train.epochs=1", "train.max_steps=1")
    model = TIMAM.pretrained(config.model, 6, load_dataset("cuhk-pedes", few).split("train").captions)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.warm_start(model, str(first.folder), show=False)
    for name, value in model.state_dict().items():
        fits = not name.startswith("class_") and before[name].shape == trained[name].shape
        assert torch.equal(value, trained[name] if fits else before[name]), name
    fit(config, tmp_path / "second")
    told = capsys.readouterr().out
    assert f"started from {first.folder}" in told
    assert "; new: class_bias, class_weights" in told
    with pytest.raises(ValueError, match="none of its tensors"):
        training.warm_start(torch.nn.Linear(1, 1), str(first.folder))


def test_a_run_goes_on_without_the_model_that_it_started_from_and_with_data_that_moved(people, tmp_path, monkeypatch):
    """The fingerprint of the data decides, not their place."""
    first, run = tmp_path / "first", tmp_path / "run"
    config = tiny_config(people, f"train.init={first}")
    with monkeypatch.context() as patch:
        patch.setattr(TIMAM, "pretrained", lambda *_: pytest.fail("fetched weights"))
        with pytest.raises(FileNotFoundError, match="first: no such folder"):
            quiet_fit(config, run)
    quiet_fit(tiny_config(people, "train.epochs=1", "train.max_steps=1"), first)
    interrupted(config, run, steps=4)
    quiet_fit(config, tmp_path / "undisturbed")
    shutil.rmtree(first)
    moved = shutil.copytree(people, tmp_path / "elsewhere")
    quiet_fit(tiny_config(moved, f"train.init={first}"), run, resume=True)
    assert Run(run).config().data.root == str(moved)
    assert_same_history(tmp_path / "undisturbed", run)


# -- resuming ---------------------------------------------------------------------------------------------------


def resumable_fit(people: Path, language_model: Path, output: Path, resume: bool = False) -> dict[str, Any]:
    """Every validation gives the same score, so that the fourth epoch has a tenth of the rate. Momentum, Adam's moments
    and the patience must all come back. Other optimizers and the cosine are resumed in test_faults.py.
    """
    config = tiny_config(
        people, f"model.language_model={language_model}", *FOUR_EPOCHS, "loss.adversarial_weight=0.5",
        "train.schedule=plateau", "train.plateau_patience=1", "train.image_optimizer=sgd", "train.text_optimizer=adam",
        "train.discriminator_optimizer=sgd",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        scripted_scores(patch, [0.5] * 9)
        return quiet_fit(config, output, resume)


@pytest.fixture(scope="module")
def undisturbed(people, language_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    resumable_fit(people, language_model, output)
    history = Run(output).history()  # or resuming it would prove little
    assert history["language_model_frozen"].tolist() == [True, True, False, False]
    assert history["image_lr"].tolist() == pytest.approx([5e-4, 5e-4, 5e-4, 5e-5])
    return output


# Event at which the process is killed: (owner, its function, the nth call of it, epochs saved by then).
# There are 3 steps in an epoch, and epoch 1 stays the best. test_faults.py kills at random moments, too.
KILLS = {
    "history of epoch 1, whose model is saved": (Run, "write_history", 1, 0),
    "step 2 of epoch 4": (training, "train_step", 11, 3),
    "checkpoint of the last epoch": (Learner, "save", 4, 3),
    "new checkpoint moved in": (Path, "rename", 4, 1),  # after best 1, last 2, old last away 3
    "results": (Run, "complete", 1, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "nth", "saved"), KILLS.values(), ids=KILLS)
def test_killed_and_resumed_equals_undisturbed(
    undisturbed, people, language_model, tmp_path, monkeypatch, owner, name, nth, saved
):
    with monkeypatch.context() as patched:
        interrupt(patched, owner, name, nth)
        with pytest.raises(Stop):
            resumable_fit(people, language_model, tmp_path / "run")
    assert not Run(tmp_path / "run").finished
    with monkeypatch.context() as patched:  # nothing pickled is read
        for module, function in [(torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")]:
            patched.setattr(module, function, lambda *_, **__: pytest.fail("unpickled something"))
        steps = signalled_step(patched, 0)  # counts them, and signals in none
        resumable_fit(people, language_model, tmp_path / "run", resume=True)
    assert len(steps) == 3 * (4 - saved)  # what was finished is not done again
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 5])
def test_interrupted_after_every_few_steps_equals_undisturbed(
    undisturbed, people, language_model, tmp_path, monkeypatch, every
):
    """Model, optimizers, schedulers, sums and draws of an epoch that is begun all come back."""
    for done in range(every, 13, every):  # 4 epochs of 3 steps
        with monkeypatch.context() as patched:
            steps = signalled_step(patched, every)
            with pytest.raises(Interrupted) as caught:
                resumable_fit(people, language_model, tmp_path / "run", resume=True)
        assert len(steps) == every
        epoch, step = divmod(done, 3)
        moment = f"in epoch {epoch + 1} after step {step} of 3" if step else f"after epoch {epoch}"
        assert f"run: interrupted {moment}, which is saved; go on with --resume" in str(caught.value)
    resumable_fit(people, language_model, tmp_path / "run", resume=True)
    assert_same_run(undisturbed, tmp_path / "run")


def test_signal_outside_the_steps_does_not_wait(people, tmp_path, monkeypatch):
    """Building the stores and the last test may take long; nothing of them is lost that is finished."""
    monkeypatch.setattr(Run, "complete", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    with pytest.raises(Interrupted):
        quiet_fit(tiny_config(people), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2


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
    assert Job("bf16").accelerator.mixed_precision == "bf16"  # nor does the precision of an earlier run


def test_a_test_split_of_one_identity_has_metrics_but_no_probe(tmp_path):
    people = write_person_search(tmp_path / "data", val=1, test=1)
    metrics = quiet_fit(tiny_config(people, "train.epochs=1"), tmp_path / "run")
    assert metrics["text_to_image"]["rank_1"] == 1.0  # every picture is right
    assert metrics["modality_gap"] == {}


def test_golden_tiny_run(tmp_path, monkeypatch):
    """The total loss of 7 CPU steps on the same 12 pictures of 6 persons as it was; SqueezeNet and learned words.

    Plain SGD and no batch normalisation: a relative change of the first weights by 1e-5 moves these losses by less
    than 4e-4, and other convolution kernels (mkldnn off) by 1e-7. With Adam or ResNet-18 it is up to 5e-2. To store
    new ones, in a commit of its own: TIMAM_WRITE_GOLDEN=1 pytest tests/test_training.py -k golden
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_config(
        write_person_search(tmp_path / "data"), "model.backbone=squeezenet1_1", "data.batch_size=12", "train.epochs=7",
        "train.schedule=constant", "train.warmup_epochs=0", "train.image_optimizer=sgd", "train.text_optimizer=sgd",
        "train.image_lr=1e-2", "train.discriminator_optimizer=sgd", "train.text_lr=5e-2", "train.discriminator_lr=1e-2",
        "train.discriminator_momentum=0.9", "train.discriminator_steps=1", "loss.adversarial_input=raw",
        "loss.gradient_penalty=0", "loss.label_smoothing=0.1",
    )  # fmt: skip
    quiet_fit(config, tmp_path / "run")
    losses = Run(tmp_path / "run").history()["total"].tolist()
    if os.environ.get("TIMAM_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"device": "x86-64 CPU, float32, one thread", "total": losses}, indent=2) + "\n")
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["total"], rel=1e-3)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_tracker_gets_the_settings_and_each_row_of_the_history(people, tmp_path, monkeypatch, stopped):
    tracker = mock.Mock(requires_logging_directory=False)  # in place of a tracker's package
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", tracker)
    if stopped:
        interrupt(monkeypatch, training, "_validate", 2)
    with pytest.raises(Stop) if stopped else nullcontext():
        quiet_fit(tiny_config(people, "train.epochs=2", "train.tracker=trackio"), tmp_path / "mine")
    tracker.assert_called_once_with("timam", name="mine")
    opened, history = tracker.return_value, Run(tmp_path / "mine").history().to_dict("records")
    opened.finish.assert_called_once_with()
    (settings,) = opened.store_init_configuration.call_args.args
    assert settings["train.epochs"] == 2
    assert str(people) not in str(settings)
    assert [row["epoch"] for row in history] == [1, 2][: 2 - stopped]
    assert opened.log.call_args_list == [mock.call(pytest.approx(row), step=row["epoch"]) for row in history]


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
    state = learners[1].model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    encoders = sum(t.numel() for n, t in state.items() if n.startswith(("image_encoder", "text_encoder")))
    if preset == "paper":  # torchvision's and Devlin et al.'s counts, without the heads; the LSTM adds 5.3 M
        assert 42.5e6 + 108.9e6 + 5.2e6 < encoders < 160e6
    else:  # 149,620,737 parameters without the learned temperature, and two buffers that change the pixels' scale
        assert encoders == 149_620_736 + 6
        rates = [group["initial_lr"] for group in learners[1].optimizers["text"].param_groups]
        assert rates == pytest.approx([1e-5, 5e-5, 1e-5])  # projection, classifier, language model
