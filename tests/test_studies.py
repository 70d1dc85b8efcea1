"""timam_lab.studies: each run once, failures listed at the end, processes, resumed after a kill, tables.

And studies and galleries on a Ray cluster of two machines, one of which is lost in the middle.
"""

import json
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import build_tiny
from filelock import FileLock
from layouts import tiny_config, write_person_search, write_picture, write_table
from running import forked, wait_until

from timam.data import load_dataset
from timam.evaluation import Embeddings
from timam.images import read_image
from timam.provenance import code_fingerprint
from timam.run import BusyError, Run
from timam.search import Gallery
from timam.training import fit
from timam_lab import galleries, studies
from timam_lab.galleries import KeptGallery, build_in_shards, encode_on_ray
from timam_lab.studies import Experiment, StudyError, grid, hits, results, run_grid, table, versions

VARIANTS = {"full": "", "alone": "loss.adversarial_weight=0"}


@pytest.fixture
def experiments(people) -> list[Experiment]:
    return grid(tiny_config(people), VARIANTS, range(2))


@pytest.fixture
def fake_fit(monkeypatch) -> SimpleNamespace:
    """Stands in for training: notes (adversarial weight, seed) of its `calls`, and raises what `fails` has for them."""
    seen = SimpleNamespace(calls=[], fails={})

    def fit(config, output, resume, progress):
        if (output / "metrics.json").exists():
            return
        seen.calls.append((config.loss.adversarial_weight, config.train.seed))
        if error := seen.fails.get(seen.calls[-1]):
            raise error
        (output / "checkpoints").mkdir(parents=True)
        (output / "metrics.json").write_text("{}")

    monkeypatch.setattr(studies, "fit", fit)
    return seen


def test_grid_is_variants_by_seeds_in_balanced_order_and_no_run_has_two_names(experiments, people):
    found = [(e.variant, e.config.train.seed, e.config.loss.adversarial_weight) for e in experiments]
    assert found == [("full", 0, 1), ("alone", 0, 0), ("full", 1, 1), ("alone", 1, 0)]
    with pytest.raises(ValueError, match="'a' and 'b' have the same config"):
        grid(tiny_config(people), {"a": "", "b": ["loss.adversarial_weight=1"]}, [0])
    with pytest.raises(ValueError, match="expected one of local, ray"):
        run_grid(experiments, "runs", engine="slurm")


def test_each_variant_gets_the_rates_that_are_best_for_it_on_validation(people, tmp_path):
    base = tiny_config(people)
    trials = studies.rate_trials(base, VARIANTS, [0.5, 1], 7)
    lr = base.train.text_lr
    assert [(e.variant, e.config.train.text_lr) for e in trials] == [(v, f * lr) for f in (0.5, 1) for v in VARIANTS]
    assert trials[2:] == grid(base, VARIANTS, [7])  # a factor of 1 is the grid's own run
    with pytest.raises(StudyError, match="not finished: "):
        studies.best_rates(trials, tmp_path, [7, 8])
    for e, scores in zip(trials, ([0.2, 0.6], [0.3], [0.5], [0.4]), strict=True):
        e.folder(tmp_path).mkdir()
        pd.DataFrame({"val_text_to_image_rank_1": scores}).to_csv(e.folder(tmp_path) / "history.csv")
        (e.folder(tmp_path) / "metrics.json").touch()
    best = studies.best_rates(trials, tmp_path, [7, 8])
    found = [(e.variant, e.config.train.seed, e.config.train.text_lr) for e in best]
    assert found == [("full", 7, lr / 2), ("alone", 7, lr), ("full", 8, lr / 2), ("alone", 8, lr)]
    assert best[0] == trials[0]  # which is trained already
    tried = studies.rate_table(trials, base, tmp_path)
    assert tried.to_dict() == {0.5: {"full": 0.6, "alone": 0.3}, 1: {"full": 0.5, "alone": 0.4}}
    assert [studies.at_lowest(t)[:33] for t in (tried, tried[[1]])] == ["Best with the lowest rates: full.", ""]


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
    run_grid(experiments[:1], tmp_path / "kept", then=studies.keep_model, progress=False)
    assert len(list(tmp_path.glob("kept/*/checkpoints"))) == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_failed_run_stops_no_other_and_is_said_at_the_end(experiments, fake_fit, tmp_path, monkeypatch, full):
    """On a full disk there is not even room for the reason."""
    fake_fit.fails[(1, 0)], reason = MemoryError("too large"), "MemoryError: too large"
    if full:
        monkeypatch.setattr(studies, "write_text", Mock(side_effect=OSError(28, "No space left on device")))
        reason = "no reason was left: its process was killed, or the disk was full"
    with pytest.raises(StudyError) as caught:
        run_grid(experiments, tmp_path, progress=False)
    assert len(list(tmp_path.glob("*/metrics.json"))) == 3
    expected = f"full, seed 0 ({experiments[0].folder(tmp_path)}): {reason}"
    assert str(caught.value) == f"1 of 4 runs did not finish:\n  {expected}"
    fake_fit.fails[(1, 0)] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_grid(experiments, tmp_path, progress=False)
    fake_fit.fails.clear()
    run_grid(experiments, tmp_path, progress=False)  # tried again, and only this one
    assert len(fake_fit.calls) == 6
    assert not list(tmp_path.glob("*.failed.txt"))


def test_a_busy_run_is_waited_for(experiments, fake_fit, tmp_path, monkeypatch):
    """Another process is at the first run: the others are done meanwhile, and the first is left to it."""
    fake_fit.fails[(1, 0)] = BusyError("another process")
    first = experiments[0].folder(tmp_path)

    def finish_the_first(_):
        assert len(list(tmp_path.glob("*/metrics.json"))) == 3
        first.mkdir()
        (first / "metrics.json").write_text("{}")

    monkeypatch.setattr(studies.time, "sleep", finish_the_first)
    run_grid(experiments, tmp_path, progress=False)
    assert fake_fit.calls == [(1, 0), (0, 0), (1, 1), (0, 1), (1, 0)]


def test_a_run_that_another_process_is_at_is_refused(people, tmp_path):
    with FileLock(tmp_path / ".run.lock"), pytest.raises(BusyError, match="another process is at this run"):
        fit(tiny_config(people), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_results_hold_a_row_a_run_with_its_provenance_and_refuse_data_that_have_changed(tmp_path):
    people, runs = write_person_search(tmp_path / "data"), tmp_path / "runs"
    experiments = grid(tiny_config(people), VARIANTS, range(2))
    run_grid(experiments[:3], runs, progress=False)
    frame = results(experiments, runs)
    assert frame[["variant", "seed"]].to_numpy().tolist() == [["full", 0], ["alone", 0], ["full", 1]]
    metrics = json.loads((experiments[1].folder(runs) / "metrics.json").read_text())
    assert frame.loc[1, "image_to_text_mAP"] == metrics["image_to_text"]["mAP"]
    assert frame.loc[1, "probe_accuracy"] == metrics["modality_gap"]["probe_accuracy"]
    assert frame["code"].unique().tolist() == [code_fingerprint()]
    assert versions(frame)["runs"].tolist() == [3]
    write_person_search(people, val=4)
    with pytest.raises(StudyError, match=f"runs on other data:\n  {experiments[0].folder(runs)}"):
        results(experiments, runs)


def write_embeddings(folder: Path, rows, labels=(0, 1)):
    folder.mkdir(exist_ok=True)
    images, labels = torch.eye(2), torch.tensor(labels)
    Embeddings(images, images[rows], labels, labels.clone()).save(folder / "test_embeddings.safetensors")


def test_hits_are_those_of_each_seed_in_order(experiments, tmp_path):
    for experiment, rows in zip(experiments, ([0, 1], [1, 0], [0, 0], [1, 1]), strict=True):
        write_embeddings(experiment.folder(tmp_path), rows)
    found, identities = hits(experiments[::-1], tmp_path)
    assert identities.tolist() == [0, 1]
    assert {k: v.tolist() for k, v in found.items()} == {"alone": [[0, 0], [0, 1]], "full": [[1, 1], [1, 0]]}
    assert hits(experiments, tmp_path, k=2)[0]["alone"].all()
    write_embeddings(experiments[1].folder(tmp_path), [0, 1], labels=(0, 0))
    with pytest.raises(StudyError, match="its queries are not those of the other runs"):
        hits(experiments[:2], tmp_path)


def finished(config, runs, rank_1, data="0123", commit="abc"):
    """A run directory with made-up results."""
    run = Run.named(runs, config)
    run.create(config)
    measures = {"chance": 0.04, "rank_1": rank_1, "rank_10": 2 * rank_1, "mAP": rank_1 / 2}
    metrics = {"best_epoch": 1, "seconds": 1.0, "text_to_image": measures, "image_to_text": measures,
               "modality_gap": {},
               "provenance": {"commit": commit, "code": commit, "data_fingerprint": data}}  # fmt: skip
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    return run.folder


def test_table_by_hand(people, tmp_path, call):
    """Mean 0.3, deviation 0.1; t(2) at 97.5 % is 4.303 (any table): 0.3 +- 4.303 x 0.1 / sqrt(3)."""
    variants = {"": [0.2, 0.3, 0.4], "loss.adversarial_weight=0": [0.1, 0.9], "train.epochs=7": [0.5]}
    for settings, values in variants.items():
        for seed, value in enumerate(values):
            config = tiny_config(people, *settings.split(), f"train.seed={seed}")
            finished(config, tmp_path, value, commit="abc" if seed < 2 else "def-dirty")
    (tmp_path / "unfinished/checkpoints/last").mkdir(parents=True)
    assert call("studies", "table", tmp_path, "--figure", "t").code == 2
    result = call("studies", "table", tmp_path, "--csv", tmp_path / "t.csv", "--figure", tmp_path / "t.png")
    assert result.code == 0, result.err
    assert "30.0 (5.2 to 54.8)" in result.out
    assert " 4.00 " in result.out  # chance
    assert read_image(tmp_path / "t.png").width > 500
    frame = pd.read_csv(tmp_path / "t.csv", index_col="variant")
    assert set(frame.index) == {"base", "adversarial_weight=0", "epochs=7"}
    base = frame.loc["base"]
    assert (base["seeds"], base["commit"], base["data_fingerprint"]) == ("0, 1, 2", "abc, def-dirty", 123)
    found = [base[f"text_to_image_rank_1{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([0.3, 0.3 - 0.2484, 0.3 + 0.2484], abs=1e-4)
    assert np.isnan(frame.loc["epochs=7", "text_to_image_rank_1_low"])
    ends = [frame.loc["adversarial_weight=0", f"text_to_image_rank_1_{end}"] for end in ("low", "high")]
    assert ends == [0, 1]  # 0.5 +- 5
    with pytest.warns(match="not finished, and not counted: unfinished"), pytest.warns(match="base: the code differed"):
        table(tmp_path)


def test_results_of_a_grid_over_the_columns_that_are_read(tmp_path):
    write_table(tmp_path, [["image_path", "en", "de"], *([f"p/{i}.png", f"red {i}", f"rot {i}"] for i in range(6))])
    columns = {name: f"data.columns=caption={name}" for name in ("en", "de")}
    experiments = grid(tiny_config(tmp_path, "data.dataset=csv"), columns, [0])
    for e in experiments:
        finished(e.config, tmp_path, 0.2, load_dataset("csv", tmp_path, columns=e.config.data.renamed).fingerprint())
    assert len(results(experiments, tmp_path)) == 2


def test_table_names_both_of_two_variants_and_follows_moved_data(people, tmp_path):
    for settings in ("train.epochs=2", "train.epochs=2 train.seed=1 data.root=/elsewhere", "train.epochs=9"):
        finished(tiny_config(people, *settings.split()), tmp_path, 0.2)
    frame = table(tmp_path)
    assert dict(zip(frame["variant"], frame["seeds"], strict=True)) == {"epochs=2": "0, 1", "epochs=9": "0"}


def test_table_refuses_what_does_not_belong_in_one_row(people, tmp_path):
    with pytest.raises(StudyError, match="no finished run"):
        table(tmp_path)
    first = finished(tiny_config(people), tmp_path, 0.2)
    second = finished(tiny_config(people, "train.seed=1"), tmp_path, 0.3, data="4567")
    with pytest.raises(StudyError, match=f"different data(.|\n)*{first}: seed 0, data 0123, code abc\n.*{second}"):
        table(tmp_path)
    shutil.rmtree(second)
    finished(tiny_config(people, "data.root=/elsewhere"), tmp_path, 0.2)
    with pytest.warns(UserWarning, match="repeats another run of base"):
        assert table(tmp_path)["seeds"].tolist() == ["0"]  # the same run under another name
    finished(tiny_config(people, "data.root=/nowhere"), tmp_path, 0.3)
    with pytest.raises(StudyError, match="a seed twice"):
        table(tmp_path)


@pytest.mark.slow
def test_a_killed_worker_leaves_its_run_to_the_others(people, experiments, tmp_path, monkeypatch):
    """One of two worker processes is killed in the middle of a run; the other one resumes it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs, long = tmp_path / "runs", grid(tiny_config(people, "train.epochs=10"), VARIANTS, range(1))

    def kill_one():
        wait_until(lambda: list(runs.glob("*/checkpoints/last")))
        multiprocessing.active_children()[0].kill()

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_one)
        run_grid(long, runs, workers=2, progress=False)
        killing.result()
    assert [len(h.read_text().splitlines()) - 1 for h in runs.glob("*/history.csv")] == [10, 10]


@pytest.mark.slow
def test_workers_end_with_a_killed_study_and_no_run_counts_as_failed(people, tmp_path):
    experiments = grid(tiny_config(people, "train.epochs=5000", "train.early_stop=none"), {"plain": ""}, range(2))
    study = forked(run_grid, experiments, tmp_path / "runs", 2)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/checkpoints/last"))) == 2)
    workers = psutil.Process(study.pid).children(recursive=True)
    study.kill()
    study.join()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert not list(tmp_path.glob("runs/*.failed.txt"))


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(galleries.__file__).parents[1]))
        patch.setenv("RAY_worker_niceness", "0")  # else any other process starves them
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
        try:
            ray.init(address=started.address, log_to_driver=False)
            yield started
        finally:
            ray.shutdown()
            started.shutdown()


@contextmanager
def losing_a_node(cluster, when):
    """Inside, the cluster has a second node, which is killed once `when()` is true."""
    node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()

    def kill():
        wait_until(when)
        cluster.remove_node(node, allow_graceful=False)

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill)
        yield
        killing.result()


@pytest.mark.slow
def test_a_lost_run_is_resumed_elsewhere_and_every_run_ends_up_in_one_folder(cluster, people, tmp_path):
    # Before the other test: both nodes are cold. A node whose worker has imported torch finishes all runs alone.
    runs, experiments = tmp_path / "runs", grid(tiny_config(people, "train.epochs=16"), VARIANTS, range(2))
    # Both are in the middle of a run when one is lost.
    with losing_a_node(cluster, lambda: len(list(runs.glob("*/checkpoints/last"))) >= 2):
        run_grid(experiments, runs, engine="ray", progress=False)
    assert [len(h.read_text().splitlines()) - 1 for h in runs.glob("*/history.csv")] == [16] * 4
    plain = fit(experiments[0].config, tmp_path / "undisturbed", progress=False)
    assert np.isclose(experiments[0].run(runs).metrics()["text_to_image"]["mAP"], plain["text_to_image"]["mAP"])


@pytest.mark.slow
def test_every_picture_is_encoded_and_no_finished_shard_twice(cluster, tmp_path, monkeypatch):
    model, album, shards = build_tiny(), tmp_path / "album", tmp_path / "shards"
    for i in range(48):
        write_picture(album / f"{i:02}.png", seed=i)
    (album / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(galleries, "SHARD", 4)
    finished = {}

    def one_is_written():
        finished.update({path: path.stat().st_ino for path in shards.glob("[!.]*")})
        return finished

    with losing_a_node(cluster, one_is_written):
        gallery = build_in_shards(model, album, shards, encode_parts=encode_on_ray)
    assert 0 < len(finished) < 13
    assert {path: path.stat().st_ino for path in finished} == finished  # those of before, not written anew
    held = [path for shard in shards.glob("[!.]*") for path in KeptGallery.load(shard).paths]
    assert sorted(held) == gallery.paths == [f"{i:02}.png" for i in range(48)]  # none lost, none twice
    assert len(gallery.problems) == 1
    np.testing.assert_allclose(gallery.embeddings, Gallery.build(model, album).embeddings, atol=1e-6)
