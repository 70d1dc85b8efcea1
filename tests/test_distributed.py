"""Two processes with half a batch each do what one process does with the whole batch."""

import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.multiprocessing as multiprocessing
from conftest import tiny_language_model, word_piece_tokenizer
from layouts import TINY_SETTINGS, tiny_config, write_person_search

from timam import job, learner, training
from timam.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig
from timam.data.batches import epoch_batches
from timam.job import Job, synchronize_batch_norm
from timam.learner import Learner, build_optimizers
from timam.models import TIMAM
from timam.models.weights import load_backbone
from timam.objective import Inputs, train_step
from timam.run import RunError

BATCH = 8
BACKBONE = "shufflenet_v2_x0_5"  # small, with BatchNorm


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_process(rank: int, count: int, port: int, work, results) -> None:
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": str(port),
                       "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    torch.set_num_threads(1)
    results[rank] = work(rank, count)
    if count > 1:
        torch.distributed.destroy_process_group()


def on(count: int, work) -> list:
    """What `work(rank, count)` returns in each of `count` fresh processes."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(in_process, (count, free_port(), work, results), nprocs=count)
        return [results[rank] for rank in range(count)]


CASES = [("alternating", 0.0, False), ("alternating", 0.5, True), ("gradient_reversal", 0.0, True)]


def every_case(rank: int, count: int) -> list[dict]:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    job = Job("no")
    return [steps(job, *case) for case in CASES]


def steps(job: Job, form: str, clip: float, language: bool) -> dict:
    """Three steps in float64 on this process's part; losses and the parameters afterwards."""
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BACKBONE, backbone_weights="none", image_height=64, image_width=32, language_model="tiny-bert",
        max_tokens=16, lstm_hidden=8, embedding_dim=16, discriminator_hidden=8, shared_classifier=False,
    )  # fmt: skip
    tokenizer = word_piece_tokenizer()
    model = TIMAM(config, 4, tokenizer, load_backbone(BACKBONE, "none"), tiny_language_model(len(tokenizer), 0.0))
    model.double().train()
    model.text_encoder.freeze(not language)
    synchronize_batch_norm(model)
    train = TrainConfig(
        image_lr=0.01, text_lr=0.01, discriminator_lr=0.1, text_optimizer="sgd", gradient_clip=clip,
        discriminator_steps=2,
    )  # fmt: skip
    learner = Learner.build(model, Config(train=train), epoch_steps=3)
    part = slice(job.index * BATCH // job.count, (job.index + 1) * BATCH // job.count)
    history = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(BATCH, 3, 64, 32, dtype=torch.float64, generator=generator)
        captions = [f"a {('red', 'green', 'blue', 'white')[i % 4]} coat" for i in range(BATCH)]
        token_ids, mask = model.tokenize(captions)
        text = {"token_ids": token_ids[part], "attention_mask": mask[part]}
        labels = torch.arange(BATCH) % 4
        loss = LossConfig(adversarial_form=form)
        if form == "gradient_reversal":
            loss = dataclasses.replace(loss, adversarial_input="unit", gradient_penalty=1.0)
        terms = train_step(learner, Inputs(images[part], text, labels[part]), Config(loss=loss, train=train), job)
        history.append({name: float(value) for name, value in terms.items()})
    return {"history": history, "state": {n: t.numpy() for n, t in model.state_dict().items()}}


@pytest.mark.slow
def test_two_processes_train_as_one():
    (alone,), pair = on(1, every_case), on(2, every_case)
    for rank, case in itertools.product(range(2), range(len(CASES))):
        found, expected = pair[rank][case], alone[case]
        for ours, theirs in zip(found["history"], expected["history"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9), CASES[case]
        for name, value in expected["state"].items():
            assert np.abs(found["state"][name] - value).max() < 1e-8, (CASES[case], name)


def test_parts_of_a_batch_are_the_batch():
    labels = np.arange(23) // 2
    of_image = [np.array([i]) for i in range(23)]
    split = SimpleNamespace(image_labels=labels, captions_of_image=of_image)
    pixels = np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1).repeat(3, axis=1)
    config = DataConfig(batch_size=6, images_per_identity=2)
    whole = list(epoch_batches(split, pixels, config, 0, 1))
    parts = [list(epoch_batches(split, pixels, config, 0, 1, (i, 3))) for i in range(3)]
    for batch, *its in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([p.pixels for p in its]), batch.pixels)
        assert torch.equal(torch.cat([p.identity_labels for p in its]), batch.identity_labels)
        assert np.concatenate([p.captions for p in its]).tolist() == batch.captions.tolist()


# -- whole runs -------------------------------------------------------------------------------------------------


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def launch(people: Path, output: Path, processes: int, *more: str) -> list:
    # The command of docs/gpu.md. With --cpu in place of --multi_gpu, Accelerate starts one process only.
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, "--main_process_port",
                  free_port(), "-m"]  # fmt: skip
    settings = [part for setting in (*TINY_SETTINGS, *more) for part in ("--set", setting)]
    return [*map(str, start), "timam", "train", "--preset", "smoke", "--dataset", "cuhk-pedes", "--root", str(people),
            "--output", str(output), "--resume", *settings]  # fmt: skip


@pytest.mark.slow
def test_launched_processes_give_the_run_of_one(people, tmp_path):
    for processes in (1, 2):
        # One step: float32's rounding grows fast through BatchNorm over a few values; above, in float64, three agree.
        command = launch(people, tmp_path / str(processes), processes, "train.epochs=1", "train.max_steps=1")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("text_to_image") == 1  # one process prints
    one, two = (pd.read_csv(tmp_path / n / "history.csv") for n in "12")
    losses = ["total", "matching", "identification_image", "identification_text", "adversarial", "discriminator"]
    for column in [*losses, "val_centroid_distance"]:
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4), column
    files = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")) for n in "12"]
    assert files[0] == files[1]


NOTEBOOK = Path(training.__file__).parents[1] / "notebooks" / "02_training.ipynb"
IN_A_NOTEBOOK = """
import json, os, sys
from pathlib import Path
import torch
launching = os.getpid()

def started(*_):  # Accelerate and transformers ask so that CUDA is not started
    assert os.getpid() != launching or os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") == "1", "CUDA was started"
    return False

torch.cuda.is_available, torch.cuda._lazy_init, torch.cuda.device_count = started, started, lambda: 3
cells = ["".join(c["source"]) for c in json.load(open(sys.argv[1]))["cells"] if c["cell_type"] == "code"]
exec(cells[1])  # imports
from layouts import tiny_config
from timam.run import Run
config, run = tiny_config(Path(sys.argv[2]), "train.epochs=1", "train.max_steps=1"), Run(Path(sys.argv[3]))
exec(next(cell for cell in cells if "notebook_launcher(" in cell).split("data = load_dataset")[0])
"""


@pytest.mark.slow
def test_notebook_starts_as_many_processes_as_gpus_share_the_batch_and_no_cuda_before(people, tmp_path):
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(NOTEBOOK.parents[1]), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", IN_A_NOTEBOOK, NOTEBOOK, people, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Launching training on 2 " in done.stdout  # of three: a batch of four cannot be shared by three
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_another_number_resumes(people, tmp_path):
    run = tmp_path / "run"
    command = launch(people, run, 2, "train.epochs=400", "train.early_stop=none")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as job:
        wait_until(lambda: (run / "history.csv").exists(), job)
        workers = psutil.Process(job.pid).children()
        assert len(workers) == 2
        workers[1].kill()
        _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGKILL" in errors or "Signal 9" in errors
    finished = len(pd.read_csv(run / "history.csv"))
    assert not (run / "metrics.json").exists()
    config = json.loads((run / "config.json").read_text())
    config["train"]["epochs"] = finished + 1
    (run / "config.json").write_text(json.dumps(config))
    last = launch(people, run, 1, f"train.epochs={finished + 1}", "train.early_stop=none")
    done = subprocess.run(last, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(pd.read_csv(run / "history.csv")) == finished + 1


SLOW_STEPS = """
import os, sys, time
if os.environ.get("RANK"):
    import timam.training as training
    step = training.train_step
    def slow(*arguments, **options):
        found = step(*arguments, **options)
        open(sys.argv[sys.argv.index("--output") + 1] + "/step", "w").close()
        time.sleep(0.2)
        return found
    training.train_step = slow
"""


@pytest.mark.slow
def test_sigterm_to_the_job_saves_the_step_on_which_all_processes_agree(tmp_path):
    """As a batch system sends it, to the launcher, which passes it on. They look at every tenth step."""
    people = write_person_search(tmp_path / "data", train=20)
    run, settings = tmp_path / "run", ("train.epochs=1", "data.batch_size=2")
    command = launch(people, run, 2, *settings)
    script = tmp_path / "sitecustomize.py"  # a step takes long enough to be interrupted in the middle of the epoch
    script.write_text(SLOW_STEPS)
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(NOTEBOOK.parents[1])])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as job:
        wait_until(lambda: (run / "step").exists(), job)
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    assert errors.count("interrupted: the step is finished and saved") == 2
    progress = json.loads((run / "checkpoints/last/training_state.json").read_text())["progress"]
    assert progress["history"] == []
    assert progress["step"] == 10
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    undisturbed = launch(people, tmp_path / "undisturbed", 2, *settings)
    subprocess.run(undisturbed, capture_output=True, check=True, env=ENVIRONMENT)
    one, two = (
        pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (run, tmp_path / "undisturbed")
    )
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def two_draws(rank: int, count: int, people: Path, output: Path) -> list[float]:
    """A parameter of each network after a run in which the processes began with different weights."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    seeds, models = training.set_seed, []
    training.set_seed = lambda seed: seeds(seed + rank)
    learner.build_optimizers = lambda model, config: models.append(model) or build_optimizers(model, config)
    training.fit(tiny_config(people, "train.epochs=1", "train.max_steps=2"), output, progress=False)
    parts = models[0].image_encoder, models[0].text_encoder, models[0].discriminator
    return [float(next(part.parameters()).double().sum()) for part in parts]


@pytest.mark.slow
def test_processes_begin_with_the_weights_of_the_first(people, tmp_path):
    one, two = on(2, partial(two_draws, people=people, output=tmp_path / "run"))
    assert one == two


def test_a_lost_process_ends_the_others_with_what_to_do():
    """torch's own error, after its patience with a process that does not answer, does not say it."""
    place = job.Job("no")
    place.index, place.count = 1, 2
    with pytest.raises(RunError, match=r"process 1 of 2 cannot go on: timed out\n.*--resume"), place.running():
        raise RuntimeError("timed out")
    # Building a store of 600,000 captions, read by BERT-base on a CPU, takes 7 hours; the others wait for it.
    assert timedelta(hours=12) <= job.PATIENCE


def wait_until(condition, job) -> None:
    for _ in range(600):
        if condition():
            return
        assert job.poll() is None, job.stderr.read()[-3000:]
        time.sleep(0.2)
    pytest.fail("too slow")


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(people, tmp_path):
    done = subprocess.run(
        launch(people, tmp_path / "run", 2, "data.batch_size=3"), capture_output=True, text=True, check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode != 0
    assert "a batch of 3 pictures cannot be shared evenly by 2 processes" in done.stderr


@pytest.mark.slow
def test_processes_that_do_not_know_of_each_other_are_refused(people, tmp_path):
    alone = {name: value for name, value in ENVIRONMENT.items() if name != "ACCELERATE_USE_CPU"}
    if torch.cuda.is_available():
        pytest.skip("there they would find each other")
    command = launch(people, tmp_path / "run", 2)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode != 0
    assert "ACCELERATE_USE_CPU" in done.stderr
    assert not (tmp_path / "run").exists()
