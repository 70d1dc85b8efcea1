"""timam_lab.studies: each run once, failures listed at the end, processes, resumed after a kill, Ray, tables."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from layouts import person_search_records, tiny_config, write_person_search
from running import interrupted, started, wait_until

from timam.cli import cli
from timam.config import Config
from timam.evaluation import Embeddings
from timam.files import write_sums
from timam.images import read_image
from timam.provenance import code_fingerprint
from timam.run import BusyError, Run, RunError
from timam.training import fit
from timam_lab import studies
from timam_lab.studies import Experiment, StudyError, grid, hits, results, run_grid, table, versions

VARIANTS = {"full": "", "alone": "loss.adversarial_weight=0"}


@pytest.fixture
def experiments(people) -> list[Experiment]:
    return grid(tiny_config(people), VARIANTS, range(2))


@pytest.fixture
def fake_fit(monkeypatch):
    """Stands in for training: notes who was asked for, fails where `fails` says so."""
    calls: list[tuple[float, int]] = []
    fails: dict[tuple[float, int], Exception] = {}

    def fake(config, output, resume, progress):
        key = config.loss.adversarial_weight, config.train.seed
        if (output / "metrics.json").exists():
            return
        calls.append(key)
        if key in fails:
            raise fails[key]
        (output / "checkpoints").mkdir(parents=True)
        (output / "metrics.json").write_text("{}")

    monkeypatch.setattr(studies, "fit", fake)
    fake.calls, fake.fails = calls, fails
    return fake


# -- grids ------------------------------------------------------------------------------------------------------


def test_grid_is_variants_by_seeds_in_balanced_order_and_no_run_has_two_names(experiments, people):
    found = [(e.variant, e.config.train.seed, e.config.loss.adversarial_weight) for e in experiments]
    assert found == [("full", 0, 1), ("alone", 0, 0), ("full", 1, 1), ("alone", 1, 0)]
    with pytest.raises(ValueError, match="'a' and 'b' have the same config"):
        grid(tiny_config(people), {"a": "", "b": ["loss.adversarial_weight=1"]}, [0])
    with pytest.raises(ValueError, match="unknown setting"):
        grid(tiny_config(people), {"a": "loss.adverserial_weight=1"}, [0])


def test_each_variant_gets_the_rates_that_are_best_for_it_on_validation(people, tmp_path):
    base = tiny_config(people)
    trials = studies.rate_trials(base, VARIANTS, [0.5, 1], 7)
    lr = base.train.text_lr
    assert [(e.variant, e.config.train.text_lr) for e in trials] == [(v, f * lr) for f in (0.5, 1) for v in VARIANTS]
    assert trials[2:] == grid(base, VARIANTS, [7])  # a factor of 1 is the grid's own run
    for e, scores in zip(trials, ([0.2, 0.6], [0.3], [0.5], [0.4]), strict=True):
        e.folder(tmp_path).mkdir()
        history = pd.DataFrame({"epoch": range(1, 1 + len(scores)), "val_text_to_image_rank_1": scores})
        history.to_csv(e.folder(tmp_path) / "history.csv", index=False)
    with pytest.raises(StudyError, match="not finished: "):
        studies.best_rates(trials, tmp_path, [7, 8])
    for e in trials:
        (e.folder(tmp_path) / "metrics.json").touch()
    best = studies.best_rates(trials, tmp_path, [7, 8])
    found = [(e.variant, e.config.train.seed, e.config.train.text_lr) for e in best]
    assert found == [("full", 7, lr / 2), ("alone", 7, lr), ("full", 8, lr / 2), ("alone", 8, lr)]
    assert best[0] == trials[0]  # which is trained already
    curves = studies.curves(trials, tmp_path)
    assert list(curves["variant"]) == ["full", "full", "alone", "full", "alone"]
    assert list(curves["text_lr_set"]) == pytest.approx([lr / 2] * 3 + [lr] * 2)
    tried = studies.rate_table(trials, base, tmp_path)
    assert (list(tried.index), list(tried.columns)) == (list(VARIANTS), [0.5, 1])
    assert tried.to_numpy().tolist() == [[0.6, 0.5], [0.3, 0.4]]


# -- running ----------------------------------------------------------------------------------------------------


def test_each_run_once_and_none_again(experiments, fake_fit, tmp_path):
    seen = []  # what needs the model is done before its checkpoints go
    run_grid([*experiments, *experiments], tmp_path, progress=False, then=lambda run: seen.append(run.last.parent))
    assert sorted(fake_fit.calls) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert seen == [e.run(tmp_path).last.parent for e in experiments]
    run_grid(experiments, tmp_path, progress=False, then=lambda run: pytest.fail("its model may be gone"))
    assert len(fake_fit.calls) == 4
    assert not list(tmp_path.glob("*/checkpoints"))
    studies.failure_file(experiments[0].run(tmp_path)).write_text("its `then` failed")  # is tried again
    run_grid(experiments, tmp_path, progress=False, then=lambda run: seen.append(run.folder))
    assert seen[4:] == [experiments[0].folder(tmp_path)]
    with pytest.raises(FileNotFoundError, match="the study that made this run removed its model"):
        experiments[0].run(tmp_path).best_model()
    run_grid(experiments[:1], tmp_path / "kept", keep_models=True, progress=False)
    assert len(list(tmp_path.glob("kept/*/checkpoints"))) == 1


@pytest.mark.parametrize("error", [RunError("matching is not finite"), MemoryError()])
def test_a_failed_run_stops_no_other_and_is_said_at_the_end(experiments, fake_fit, tmp_path, error):
    fake_fit.fails[(1, 0)] = error
    with pytest.raises(StudyError) as caught:
        run_grid(experiments, tmp_path, progress=False)
    assert len(list(tmp_path.glob("*/metrics.json"))) == 3
    expected = f"full, seed 0 ({experiments[0].folder(tmp_path)}): {type(error).__name__}: {error}".strip()
    assert str(caught.value) == f"1 of 4 runs did not finish:\n  {expected}"
    fake_fit.fails.clear()
    run_grid(experiments, tmp_path, progress=False)  # tried again, and only this one
    assert len(fake_fit.calls) == 5
    assert not list(tmp_path.glob("*.failed.txt"))


def test_a_full_disk_stops_no_other_run_but_an_interrupt_does(experiments, fake_fit, tmp_path, monkeypatch):
    fake_fit.fails[(1, 0)] = full = OSError(28, "No space left on device")
    monkeypatch.setattr(studies, "write_text", Mock(side_effect=full))  # not even for the reason is there room
    with pytest.raises(StudyError, match=r"1 of 4 runs did not finish:\n  full, seed 0 .*or the disk was full"):
        run_grid(experiments, tmp_path, progress=False)
    assert len(list(tmp_path.glob("*/metrics.json"))) == 3
    fake_fit.fails[(1, 0)] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_grid(experiments, tmp_path, progress=False)
    with pytest.raises(ValueError, match="expected one of local, ray"):
        run_grid(experiments, tmp_path, engine="slurm")


def test_a_busy_run_is_waited_for(experiments, fake_fit, tmp_path, monkeypatch):
    """Another process is at the first run: the others are done meanwhile, and the first is left to it."""
    monkeypatch.setattr(studies, "POLL_SECONDS", 0.01)
    fake_fit.fails[(1, 0)] = BusyError("another process")
    first = experiments[0].folder(tmp_path)

    def finish_the_first(_):
        assert len(list(tmp_path.glob("*/metrics.json"))) == 3
        first.mkdir()
        (first / "metrics.json").write_text("{}")

    monkeypatch.setattr(studies.time, "sleep", finish_the_first)
    run_grid(experiments, tmp_path, progress=False)
    assert fake_fit.calls == [(1, 0), (0, 0), (1, 1), (0, 1), (1, 0)]


# -- one run at a time, on the data that it was begun on ----------------------------------------------------------


def test_a_run_that_another_process_is_at_is_refused(people, tmp_path):
    with FileLock(tmp_path / ".run.lock"), pytest.raises(BusyError, match="another process is at this run"):
        fit(tiny_config(people), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def with_another_caption(root):
    records = person_search_records()
    records[0]["captions"][0] += " and a hat"
    (root / "reid_raw.json").write_text(json.dumps(records))


@pytest.fixture
def changing(tmp_path) -> Config:
    """Of data that `change` gives another caption."""
    return tiny_config(write_person_search(tmp_path / "data"))


def change(config: Config) -> None:
    records = person_search_records()
    records[0]["captions"][0] += " and a hat"
    (Path(config.data.root) / "reid_raw.json").write_text(json.dumps(records))


def test_an_interrupted_run_does_not_go_on_with_other_data(changing, tmp_path):
    interrupted(changing, tmp_path / "run", steps=4)
    change(changing)
    with pytest.raises(RunError, match="was begun on other data"):
        fit(changing, tmp_path / "run", resume=True, progress=False)


def test_a_run_that_two_versions_trained_says_so(people, tmp_path, monkeypatch):
    config = tiny_config(people)
    with monkeypatch.context() as patch:
        patch.setattr("timam.training.code_fingerprint", lambda: "01234567")
        interrupted(config, tmp_path / "run", steps=4)
    metrics = fit(config, tmp_path / "run", resume=True, progress=False)
    assert metrics["provenance"]["code"] == f"01234567+{code_fingerprint()}"


# -- results ----------------------------------------------------------------------------------------------------


def test_results_hold_a_row_a_run_with_its_provenance_and_refuse_data_that_have_changed(changing, tmp_path):
    experiments, runs = grid(changing, VARIANTS, range(2)), tmp_path / "runs"
    run_grid(experiments[:3], runs, progress=False)
    frame = results(experiments, runs)
    assert frame[["variant", "seed"]].to_numpy().tolist() == [["full", 0], ["alone", 0], ["full", 1]]
    metrics = json.loads((experiments[1].folder(runs) / "metrics.json").read_text())
    assert frame.loc[1, "image_to_text_mAP"] == metrics["image_to_text"]["mAP"]
    assert frame.loc[1, "probe_accuracy"] == metrics["modality_gap"]["probe_accuracy"]
    assert frame["code"].unique().tolist() == [code_fingerprint()]
    assert versions(frame)["runs"].tolist() == [3]
    change(changing)
    with pytest.raises(StudyError, match=f"runs on other data:\n  {experiments[0].folder(runs)}"):
        results(experiments, runs)


def write_embeddings(experiment, runs, rows, labels=(0, 1)):
    folder = experiment.folder(runs)
    folder.mkdir(parents=True)
    images, labels = torch.eye(2), torch.tensor(labels)
    Embeddings(images, images[rows], labels, labels.clone()).save(folder / "test_embeddings.safetensors")


def test_hits_are_those_of_each_seed_in_order(experiments, tmp_path):
    for experiment, rows in zip(experiments, ([0, 1], [1, 0], [0, 0], [1, 1]), strict=True):
        write_embeddings(experiment, tmp_path, rows)
    found, identities = hits(experiments[::-1], tmp_path)
    assert identities.tolist() == [0, 1]
    assert {k: v.tolist() for k, v in found.items()} == {"alone": [[0, 0], [0, 1]], "full": [[1, 1], [1, 0]]}
    assert hits(experiments, tmp_path, k=2)[0]["alone"].all()
    write_embeddings(experiments[1], tmp_path / "other", [0, 1], labels=(0, 0))
    shutil.copytree(experiments[0].folder(tmp_path), experiments[0].folder(tmp_path / "other"))
    with pytest.raises(StudyError, match="its queries are not those of the other runs"):
        hits(experiments[:2], tmp_path / "other")
    with pytest.raises(StudyError, match="no experiments"):
        hits([], tmp_path)


# -- the table of a folder of runs --------------------------------------------------------------------------------


def finished(config, runs, rank_1, data="0123", commit="abc"):
    """A run directory with made-up results."""
    folder = Run.named(runs, config).folder
    folder.mkdir(parents=True)
    measures = {"chance": 0.04, "rank_1": rank_1, "rank_10": 2 * rank_1, "mAP": rank_1 / 2}
    metrics = {"dataset": "csv", "best_epoch": 1, "seconds": 1.0, "text_to_image": measures, "image_to_text": measures,
               "modality_gap": {}, "provenance": {"commit": commit, "data_fingerprint": data}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_sums(folder)
    return folder


def test_table_by_hand(people, tmp_path):
    """Mean 0.3, deviation 0.1; t(2) at 97.5 % is 4.303 (any table): 0.3 +- 4.303 x 0.1 / sqrt(3)."""
    variants = {"": [0.2, 0.3, 0.4], "loss.adversarial_weight=0": [0.1, 0.1], "train.epochs=7": [0.5]}
    for settings, values in variants.items():
        for seed, value in enumerate(values):
            config = tiny_config(people, *settings.split(), f"train.seed={seed}")
            finished(config, tmp_path, value, commit="abc" if seed < 2 else "def")
    (tmp_path / "unfinished").mkdir()
    result = CliRunner().invoke(cli, ["studies", "table", str(tmp_path), "--csv", str(tmp_path / "t.csv"),
                                      "--figure", str(tmp_path / "t.png")])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_image(tmp_path / "t.png").width > 500
    assert CliRunner().invoke(cli, ["studies", "table", str(tmp_path), "--figure", "t"]).exit_code == 2
    assert "30.0 ± 24.8" in result.output
    assert " 4.00 " in result.output  # chance
    frame = pd.read_csv(tmp_path / "t.csv").set_index("variant")
    assert set(frame.index) == {"base", "adversarial_weight=0", "epochs=7"}
    base = frame.loc["base"]
    assert (base["seeds"], base["commit"], base["data_fingerprint"]) == ("0, 1, 2", "abc, def", 123)
    found = [base[f"text_to_image_rank_1{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([0.3, 0.3 - 0.2484, 0.3 + 0.2484], abs=1e-4)
    assert base["text_to_image_mAP"] == pytest.approx(0.15)
    assert np.isnan(frame.loc["epochs=7", "text_to_image_rank_1_low"])


def test_table_names_both_of_two_variants_and_follows_moved_data(people, tmp_path):
    for settings, rank_1 in (("", 0.2), ("train.seed=1 data.root=/elsewhere", 0.2), ("train.epochs=9", 0.4)):
        finished(tiny_config(people, *settings.split()), tmp_path, rank_1)
    frame = table(tmp_path)
    epochs = tiny_config(people).train.epochs
    assert dict(zip(frame["variant"], frame["seeds"], strict=True)) == {f"epochs={epochs}": "0, 1", "epochs=9": "0"}


def test_table_refuses_what_does_not_belong_in_one_row(people, tmp_path):
    with pytest.raises(StudyError, match="no finished run"):
        table(tmp_path)
    first = finished(tiny_config(people), tmp_path, 0.2)
    second = finished(tiny_config(people, "train.seed=1"), tmp_path, 0.3, data="4567")
    with pytest.raises(StudyError, match=f"different data(.|\n)*{first}: seed 0, data 0123\n.*{second}"):
        table(tmp_path)
    shutil.rmtree(second)
    finished(tiny_config(people, "data.root=/elsewhere"), tmp_path, 0.2)
    assert table(tmp_path)["seeds"].tolist() == ["0"]  # the same run under another name
    finished(tiny_config(people, "data.root=/nowhere"), tmp_path, 0.3)
    with pytest.raises(StudyError, match="a seed twice"):
        table(tmp_path)


# -- several processes ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_leaves_its_run_to_the_others(people, experiments, tmp_path, monkeypatch):
    """One of two worker processes is killed in the middle of a run; the other one resumes it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs, long = tmp_path / "runs", grid(tiny_config(people, "train.epochs=10"), VARIANTS, range(1))
    killed = []

    def kill_one():
        wait_until(lambda: list(runs.glob("*/checkpoints/last")))
        killed.append(multiprocessing.active_children()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    run_grid(long, runs, workers=2, progress=False)
    killer.join()
    assert killed
    assert [len(h.read_text().splitlines()) - 1 for h in runs.glob("*/history.csv")] == [10, 10]


@pytest.mark.slow
def test_workers_end_with_a_killed_study_and_no_run_counts_as_failed(people, tmp_path):
    config = tiny_config(people, "train.epochs=5000", "train.early_stop=none")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    (tmp_path / "study.py").write_text(
        "import json, os, sys\n"
        "from timam import config\n"
        "from timam_lab.studies import grid, run_grid\n"
        "if __name__ == '__main__':\n"
        "    os.chdir(sys.argv[1])\n"
        "    base = config.from_dict(json.load(open('config.json')))\n"
        "    run_grid(grid(base, {'plain': ''}, range(2)), 'runs', workers=2)\n"
    )
    study = started([sys.executable, tmp_path / "study.py", tmp_path], OMP_NUM_THREADS="1")
    wait_until(lambda: len(list(tmp_path.glob("runs/*/checkpoints/last"))) == 2, study)
    workers = psutil.Process(study.pid).children(recursive=True)
    study.kill()
    study.wait()
    for pipe in (study.stdout, study.stderr):
        pipe.close()  # workers that write to it get an error
    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert not list(tmp_path.glob("runs/*.failed.txt"))
