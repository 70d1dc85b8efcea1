"""timam.training, with timam.learner and timam.interruption: what a run selects, keeps, tells and goes on from.

That a killed or interrupted run comes to the same result is in test_faults.py and test_determinism.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
from running import assert_same_history, interrupted, killed_at, scripted_scores, signalled_step

from timam import training
from timam.collapse import chance_warnings, training_warnings
from timam.config import PRESETS, Config, LossConfig, TrainConfig, override
from timam.data import Split, load_dataset
from timam.evaluation import embed_split, evaluate, gap
from timam.interruption import Interrupted, interruptible
from timam.job import Job
from timam.learner import Learner, Progress, build_optimizers, build_schedulers
from timam.models import TIMAM
from timam.provenance import code_fingerprint
from timam.run import Run, RunError
from timam.stores import StoredSplit, open_pixels
from timam.training import fit

GOLDEN = Path(__file__).with_name("golden_tiny_run.json")


def quiet_fit(config: Config, output: Path, resume: bool = False) -> dict[str, Any]:
    return fit(config, output, resume=resume, progress=False)


def stored(split: Split) -> StoredSplit:
    return StoredSplit(split, open_pixels(split.image_paths, 64, 32, progress=False))


@pytest.fixture(scope="module")
def observed(language_model, tmp_path_factory) -> SimpleNamespace:
    """A run of three epochs, frozen, frozen and unfrozen, and what was seen while it trained; tests only read it.

    Its attributes: `config`, `run`, `metrics`; `events`, the name of each split that is embedded and "saved" after an
    epoch; `modes`, whether all modules were in train mode in a step; `states` of the language model after an epoch;
    `rows`, the epochs of each history that is handed over. The commit changes meanwhile.
    """
    folder = tmp_path_factory.mktemp("observed")
    root = write_person_search(folder / "data", train=12, val=10, test=11)
    config = tiny_config(
        root, f"model.language_model={language_model}", "train.epochs=3", "train.unfreeze_epoch=3",
        "train.weight_decay=0.1", "train.language_model_lr=1e-3", "train.early_stop=none",
    )  # fmt: skip
    seen = SimpleNamespace(config=config, run=Run(folder / "run"), events=[], modes=[], states=[], rows=[])
    step, embed, save = training.train_step, training.embed_split, Run.save_epoch

    def train_step(learner, *arguments):
        model = learner.model
        frozen = set(model.text_encoder.language_model.modules()) if model.text_encoder.frozen else set()
        seen.modes.append(all(m.training != (m in frozen) for m in model.modules()))
        return step(learner, *arguments)

    def embed_and_leave_eval_mode(model, stored, **options):
        seen.events.append(stored.split.name)
        embeddings = embed(model, stored, **options)
        model.eval()
        return embeddings

    def save_epoch(run, learner):
        seen.events.append("saved")
        language_model = learner.model.text_encoder.language_model
        seen.states.append({n: t.clone() for n, t in language_model.state_dict().items()})
        save(run, learner)

    with pytest.MonkeyPatch.context() as patch:

        def after_epoch(rows):
            seen.rows.append([row["epoch"] for row in rows])
            patch.setenv("TIMAM_COMMIT", "later")

        patch.setenv("TIMAM_COMMIT", "first")
        patch.setattr(training, "train_step", train_step)
        patch.setattr(training, "embed_split", embed_and_leave_eval_mode)
        patch.setattr(Run, "save_epoch", save_epoch)
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


def test_every_step_is_in_train_mode_each_epoch_is_handed_over_and_the_commit_is_that_of_the_start(observed):
    assert observed.modes == [True] * 3 * 6  # 24 pictures in batches of 4: also after the first evaluation
    assert observed.rows == [[1], [1, 2], [1, 2, 3]]
    assert observed.metrics["provenance"]["commit"] == "first"


def test_metrics_are_those_of_the_best_model_on_the_test_split_and_on_a_fixed_sample_of_training_people(observed):
    """The sample is of as many identities as the validation split has."""
    dataset, model = load_dataset("cuhk-pedes", observed.config.data.root), observed.run.best_model()
    validation = observed.run.val_embeddings("best")
    results = evaluate(embed_split(model, stored(dataset.split("test"))), validation=validation)
    assert {key: observed.metrics[key] for key in results} == results
    chosen = evaluate(validation)["open_set"]["text_to_image"]["threshold"]  # not on the test split
    assert observed.metrics["open_set"]["threshold"] == chosen
    assert observed.run.metrics() == observed.metrics
    sample = stored(dataset.split("train")).sample(10)
    assert len(np.unique(sample.split.image_labels)) == 10
    found = evaluate(embed_split(model, sample))["text_to_image"]["rank_1"]
    row = observed.run.history().iloc[observed.metrics["best_epoch"] - 1]
    assert row["train_text_to_image_rank_1"] == pytest.approx(found, abs=1e-12)


def test_the_test_split_is_embedded_once_when_all_is_chosen_and_saved(observed):
    epoch = ["val", "train", "saved"]
    assert observed.events == ["val", *epoch, *epoch, "val", *epoch, "val", "test"]


@pytest.mark.parametrize(("term", "value"), [("matching", float("nan")), ("adversarial", float("inf"))])
def test_non_finite_loss_stops_with_its_name_and_keeps_the_last_epoch(people, tmp_path, monkeypatch, term, value):
    original, steps = training.train_step, itertools.count(1)

    def broken(*args):  # from the second step of epoch 2
        return original(*args) | ({term: torch.tensor(value)} if next(steps) >= 5 else {})

    config, run = tiny_config(people, "train.epochs=3"), Run(tmp_path / "run")
    monkeypatch.setattr(training, "train_step", broken)
    with pytest.raises(RunError, match=rf"epoch 2, step 3: {term} is not finite.*learning rate"):
        quiet_fit(config, run.folder)
    assert (len(run.history()), run.finished) == (1, False)
    before = run.last.stat().st_ino
    signalled_step(monkeypatch, 2)  # does not save the broken step
    with pytest.raises(RunError, match=rf"epoch 2, step 2: {term} is not finite"):
        quiet_fit(config, run.folder, resume=True)
    assert run.last.stat().st_ino == before


def test_training_stops_early_and_keeps_the_first_best_epoch(people, tmp_path, monkeypatch):
    """Epoch 3 is as good as epoch 2, and not better: two epochs without a better score."""
    scripted_scores(monkeypatch, [0.1, 0.5, 0.5, 0.2, 0.9])
    settings = ["train.epochs=6", "train.early_stop=2", "train.unfreeze_epoch=none", "train.unfreeze_patience=none"]
    quiet_fit(tiny_config(people, *settings), tmp_path / "run")
    run = Run(tmp_path / "run")
    kept = pytest.approx(gap(run.val_embeddings("best"))["centroid_distance"], rel=1e-6)
    assert [value == kept for value in run.history()["val_centroid_distance"]] == [False, True, False, False]


@pytest.mark.parametrize(("epochs", "max_steps", "told"), [(1, 2, False), (1, 5, True), (3, 5, False)])
def test_too_few_pictures_for_the_recipe_are_told(people, tmp_path, capsys, epochs, max_steps, told):
    """Three steps in an epoch, of 12 pictures in batches of 4; the preset `smoke` has 2 x 4, so 3 epochs are enough."""
    fit(tiny_config(people, f"train.epochs={epochs}", f"train.max_steps={max_steps}"), tmp_path / "run")
    printed = capsys.readouterr().out
    advice = "few pictures give 3 steps in all. The preset is made for 8, which train.epochs=3 gives"
    assert (advice in printed, "few pictures" in printed) == (told, told)


@pytest.mark.parametrize(
    ("rank_1", "chance", "says"),
    [(0.03, 0.02, "carry over to other identities. What usually helps"), (0.05, 0.02, ""), (0.9, 0.2, "too few")],
)
def test_a_run_near_chance_says_so_unless_there_are_too_few_identities_to_tell(rank_1, chance, says):
    warnings = list(chance_warnings(rank_1, chance))
    assert [says in warning for warning in warnings] == [True] * bool(says)


@pytest.mark.slow
def test_collapse_and_an_end_near_chance_are_printed_and_kept(people, tmp_path, monkeypatch, capsys):
    """Two of the six validation pictures show the person of a sentence."""
    scripted_scores(monkeypatch, [0.6, 0.0])
    metrics = fit(tiny_config(people, "train.warmup_epochs=0", "loss.gradient_penalty=0"), tmp_path / "run")
    *collapse, chance = metrics["warnings"]
    assert collapse == list(training_warnings(Run(tmp_path / "run").history().iloc[0], gradient_penalty=0))
    assert any(warning.startswith("the discriminator is always right") for warning in collapse)
    assert chance.startswith("rank-1 on validation is 60.0% and chance 33.3%")
    printed = capsys.readouterr().out
    assert all(f"warning: {warning}" in printed for warning in metrics["warnings"])


@pytest.mark.parametrize("augmented", [False, True])
def test_frozen_blocks_are_stored_unless_pictures_are_augmented(people, tmp_path, monkeypatch, augmented):
    settings = ["model.backbone=squeezenet1_1", "train.frozen_blocks=4", f"data.horizontal_flip={augmented}"]
    config, channels, original = tiny_config(people, *settings), set(), training.train_step

    def spy(learner, inputs, *args):
        channels.add(inputs["images"].shape[1])
        return original(learner, inputs, *args)

    monkeypatch.setattr(training, "train_step", spy)
    metrics, run = quiet_fit(config, tmp_path / "run"), Run(tmp_path / "run")
    assert channels == {3 if augmented else 128}  # of SqueezeNet's first fire module
    # The finished model reads pictures: what it found of the validation split is as in its row but for rounding.
    expected = run.history()["val_centroid_distance"][metrics["best_epoch"] - 1]
    assert gap(run.val_embeddings("best"))["centroid_distance"] == pytest.approx(expected, abs=1e-2)


def test_warm_start_takes_what_fits_and_not_the_classifier(observed):
    trained = observed.run.best_model(torch.device("cpu")).state_dict()
    model = TIMAM.pretrained(dataclasses.replace(observed.config.model, discriminator_hidden=3), 12, [])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.warm_start(model, str(observed.run.folder))
    for name, value in model.state_dict().items():
        fits = not name.startswith("class_") and before[name].shape == trained[name].shape
        assert torch.equal(value, trained[name] if fits else before[name]), name
    with pytest.raises(ValueError, match="none of its tensors"):
        training.warm_start(torch.nn.Linear(1, 1), str(observed.run.folder))


def test_a_run_goes_on_without_the_model_that_it_started_from_and_with_data_that_moved(
    people, tmp_path, monkeypatch, capsys
):
    """The fingerprint of the data decides, not their place."""
    first, run = tmp_path / "first", tmp_path / "run"
    config = tiny_config(people, f"train.init={first}")
    with monkeypatch.context() as patch:
        patch.setattr(TIMAM, "pretrained", lambda *_: pytest.fail("fetched weights"))
        with pytest.raises(FileNotFoundError, match="first: no such folder"):
            quiet_fit(config, run)
    quiet_fit(tiny_config(people, "train.epochs=1", "train.max_steps=1"), first)
    with monkeypatch.context() as patch:
        patch.setattr(training, "code_fingerprint", lambda: "01234567")  # an older version
        interrupted(config, run, steps=4)
    fit(config, tmp_path / "undisturbed")
    told = capsys.readouterr().out
    assert re.search(rf"started from {first}: \d+ of \d+ tensors; new: class_bias, class_weights\n", told)
    shutil.rmtree(first)
    for split in ("val", "train"):  # another number of training people is another shape of the model, too
        others = write_person_search(tmp_path / split, **{split: 4})
        with pytest.raises(RunError, match="was begun on other data"):
            quiet_fit(tiny_config(others, f"train.init={first}"), run, resume=True)
    moved = shutil.copytree(people, tmp_path / "elsewhere")
    metrics = quiet_fit(tiny_config(moved, f"train.init={first}"), run, resume=True)
    assert metrics["provenance"]["code"] == f"01234567+{code_fingerprint()}"
    assert Run(run).config().data.root == str(moved)
    assert_same_history(tmp_path / "undisturbed", run)


def test_signal_outside_the_steps_does_not_wait(people, tmp_path, monkeypatch):
    """Building the stores and the last test may take long; nothing of them is lost that is finished."""
    monkeypatch.setattr(Run, "complete", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    with pytest.raises(Interrupted):
        quiet_fit(tiny_config(people), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2


@pytest.mark.parametrize("name", ["", "é" * 125])
def test_one_step_and_the_largest_seed_in_the_working_folder_or_under_250_bytes(people, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    steps = signalled_step(monkeypatch, 0)  # counts them, and signals in none
    quiet_fit(tiny_config(people, "train.epochs=1", "train.max_steps=1", f"train.seed={2**32 - 1}"), Path(name))
    run = Run(tmp_path / name)
    assert (run.finished, steps) == (True, [1])
    run.beside("{}.failed.txt").write_text("why")  # of a study
    run.beside("{}.failed.txt").unlink()


def test_each_run_of_a_process_has_its_own_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # Accelerate reads it, config.json is silent
    assert [Job(precision).accelerator.mixed_precision for precision in ("no", "bf16")] == ["no", "bf16"]


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
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # Accelerate reads it, config.json is silent
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


def test_a_tracker_gets_the_settings_and_each_row_of_the_history_and_is_closed_after_a_failure(
    people, tmp_path, monkeypatch
):
    tracker = mock.Mock(requires_logging_directory=False)  # in place of a tracker's package
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TRACKIO])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", tracker)
    config = tiny_config(people, "train.epochs=4", "train.tracker=trackio")
    killed_at(config, tmp_path / "mine", training, "_validate", 3)
    tracker.assert_called_once_with("timam", name="mine")
    opened, history = tracker.return_value, Run(tmp_path / "mine").history().to_dict("records")
    opened.finish.assert_called_once_with()
    (settings,) = opened.store_init_configuration.call_args.args
    assert settings["train.epochs"] == 4
    assert str(people) not in str(settings)
    assert [row["epoch"] for row in history] == [1, 2]
    assert opened.log.call_args_list == [mock.call(pytest.approx(row), step=row["epoch"]) for row in history]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(people, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(RunError, match="'wandb' is not installed: pip install wandb"):
        quiet_fit(tiny_config(people, "train.tracker=wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# CLIP has 149,620,737 parameters, one of them the learned temperature; two buffers of three change the pixels' scale.
# Of the paper's: torchvision's and Devlin et al.'s counts, without the heads; the LSTM adds 5.3 million.
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "least", "most"), [("clip", 149_620_742, 149_620_742), ("paper", 156.6e6, 160e6)])
def test_preset_takes_its_first_steps_on_a_cpu_at_full_size(tmp_path, tokenizer, monkeypatch, preset, least, most):
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
    config = override(PRESETS[preset], settings)
    killed_at(config, tmp_path / "run", training, "_validate", 1)  # before gigabytes are saved
    state = learners[1].model.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert least <= sum(t.numel() for n, t in state.items() if n.startswith(("image_enc", "text_enc"))) <= most


# -- timam.learner ----------------------------------------------------------------------------------------------------


def test_waiting_counts_from_the_first_of_the_highest_and_anew_from_unfreezing():
    rows = [{"val_text_to_image_rank_1": score} for score in (0.1, 0.3, 0.2, 0.3)]
    assert Progress(rows).waited() == 2
    assert Progress(rows, unfrozen_at=4).waited() == 1  # epoch 4 is the first after it


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
        ("constant", 2.0, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # Two steps of warm-up, then half a cosine: (1 + cos a) / 2 of 0, 30, 60, 90, 120 and 150 degrees.
        ("cosine", 1.0, [0.5, 1.0, 1.0, (2 + math.sqrt(3)) / 4, 0.75, 0.5, 0.25, (2 - math.sqrt(3)) / 4]),
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
    rising = [0.5 + 1e-6 * i for i in range(8)]  # a relative threshold would take these for a plateau
    assert rates(config, rising) == [1.0] * 8


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
    model.class_centers = torch.nn.Parameter(torch.zeros(2))  # as a loss of one's own may add
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


def test_the_learned_temperature_begins_as_it_is_set(tiny_model):
    learner = Learner.build(tiny_model(), Config(loss=LossConfig(matching="infonce", temperature=0.07)), epoch_steps=1)
    assert float(learner.log_temperature.detach().exp()) == pytest.approx(0.07)


# -- timam.interruption -----------------------------------------------------------------------------------------------


send = partial(os.kill, os.getpid())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_raises_and_handlers_are_put_back(number, code):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        send(number)
    assert (caught.value.exit_code, signal.getsignal(number)) == (code, before)


def test_held_signal_waits_and_the_second_interrupt_does_not(monkeypatch):
    monkeypatch.setattr(os, "write", mock.Mock(side_effect=BrokenPipeError))  # nobody reads the message any more
    with interruptible() as signals:
        signals.held = True
        for _ in range(3):  # batch systems repeat it
            send(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
    with interruptible(several=True) as signals:  # several processes hold what their launcher passes on
        signals.held = True
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert signals.number == signal.SIGINT


def test_other_threads_change_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        pool.submit(interruptible().__enter__).result()  # Python's signal.signal raises there
    assert signal.getsignal(signal.SIGTERM) == before


def test_interrupted_survives_pickling():
    """As a Ray task's does."""
    copy = pickle.loads(pickle.dumps(Interrupted("saved", signal.SIGTERM)))
    assert (str(copy), copy.exit_code) == ("saved", 143)
