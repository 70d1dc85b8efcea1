"""Two processes with half a batch each do what one process does with the whole batch."""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as multiprocessing
from accelerate.state import PartialState
from conftest import build_tiny
from layouts import tiny_config, write_person_search
from running import ROOT, assert_same_history, finished, interrupted, started, train_command, wait_until
from torch.distributed.elastic.utils.distributed import get_free_port

from timam import job, training
from timam.config import Config, LossConfig, TrainConfig
from timam.job import Job
from timam.learner import Learner
from timam.objective import train_step
from timam.run import Run, RunError

BATCH = 8


def in_process(rank: int, count: int, port: str, work, results) -> None:
    PartialState._reset_state()  # what this process had when it was forked
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_PORT": port,
                       "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    results[rank] = work(rank, count)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on(count: int, work) -> list:
    """What `work(rank, count)` returns in each of `count` forked processes."""
    with multiprocessing.get_context("fork").Manager() as manager:
        results = manager.dict()
        arguments = (count, str(get_free_port()), work, results)
        context = multiprocessing.start_processes(in_process, arguments, count, join=False, start_method="fork")
        deadline = time.monotonic() + 300
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                pytest.fail("the processes wait for each other")
        return [results[rank] for rank in range(count)]


CASES = [("alternating", 0.0, False), ("alternating", 0.5, True), ("gradient_reversal", 0.0, True)]


def every_case(rank: int, count: int) -> list[dict]:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    job = Job("no")
    return [steps(job, *case) for case in CASES]


def steps(job: Job, form: str, clip: float, language: bool) -> dict:
    """Three steps in float64 on this process's part, from other weights; losses and the parameters afterwards."""
    model = build_tiny(seed=job.index, dropout=0.0, shared_classifier=False)
    model.double().train()
    model.text_encoder.freeze(not language)
    job.share_weights(model)
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
        inputs = {"images": images[part], "words": token_ids[part], "attention_mask": mask[part]}
        labels = torch.arange(BATCH) % 4
        regularised = {"adversarial_input": "unit", "gradient_penalty": 1.0} if form == "gradient_reversal" else {}
        loss = LossConfig(adversarial_form=form, **regularised)
        terms = train_step(learner, inputs, labels[part], Config(loss=loss, train=train), job)
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


@pytest.mark.slow
def test_launched_processes_give_the_run_of_one(people, tmp_path):
    """One step: float32's rounding grows fast through BatchNorm over a few values. Above, in float64, three agree."""
    settings = "train.epochs=1", "train.max_steps=1"
    training.fit(tiny_config(people, *settings), tmp_path / "1", progress=False)
    out = finished(train_command(people, tmp_path / "2", *settings, processes=2))
    assert out.count("text_to_image") == 1  # one process prints
    one, two = (pd.read_csv(tmp_path / n / "history.csv") for n in "12")
    losses = ["total", "matching", "identification_image", "identification_text", "adversarial", "discriminator"]
    for column in [*losses, "val_centroid_distance"]:
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4), column
    files = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")) for n in "12"]
    assert files[0] == files[1]


NOTEBOOK = ROOT / "notebooks" / "02_training.ipynb"
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
exec(next(cell for cell in cells if "import notebook_launcher" in cell))
from layouts import tiny_config
from timam.run import Run
config, run = tiny_config(Path(sys.argv[2]), "train.epochs=1", "train.max_steps=1"), Run(Path(sys.argv[3]))
exec(next(cell for cell in cells if "notebook_launcher(" in cell).split("data = load_dataset")[0])
"""


@pytest.mark.slow
def test_notebook_starts_as_many_processes_as_gpus_share_the_batch_and_no_cuda_before(people, tmp_path):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    out = finished([sys.executable, "-c", IN_A_NOTEBOOK, NOTEBOOK, people, tmp_path / "run"], PYTHONPATH=path)
    assert "Launching training on 2 " in out  # of three: a batch of four cannot be shared by three
    assert (tmp_path / "run" / "metrics.json").exists()


SLOW_STEPS = """
import os, sys, time
if os.environ.get("RANK"):
    import timam.training as training
    step = training.train_step
    def slow(*arguments, **options):
        found = step(*arguments, **options)
        open(sys.argv[sys.argv.index("--output") + 1] + "/step", "w").close()
        time.sleep(0.5)
        return found
    training.train_step = slow
"""


@pytest.mark.slow
def test_sigterm_to_the_job_saves_the_step_on_which_all_processes_agree(tmp_path):
    """As a batch system sends it, to the launcher, which passes it on. They look at every tenth step."""
    people, run = write_person_search(tmp_path / "data", train=20), tmp_path / "run"
    settings = "train.epochs=1", "data.batch_size=2"
    # A step takes long enough to be interrupted in the middle of the epoch.
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS)
    command = train_command(people, run, *settings, processes=2)
    job = started(command, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    wait_until((run / "step").exists, job)
    job.send_signal(signal.SIGTERM)
    errors = job.communicate(timeout=120)[1]
    assert job.returncode != 0
    assert errors.count("interrupted: the step is finished and saved") == 2
    progress = json.loads((run / "checkpoints/last/training_state.json").read_text())["progress"]
    assert (progress["history"], progress["step"]) == ([], 10)
    interrupted(Run(run).config(), shutil.copytree(run, tmp_path / "alone"), steps=1)  # one process can go on, too
    # All by the launcher, which gives each process one thread: with another number sums are rounded otherwise.
    finished(command)
    finished(train_command(people, tmp_path / "undisturbed", *settings, processes=2))
    assert_same_history(run, tmp_path / "undisturbed")


def seeds_of_steps(rank: int, count: int, people: Path, output: Path) -> list[int]:
    os.environ.pop("ACCELERATE_USE_CPU", None)  # processes find each other without it
    with pytest.raises(RunError, match="a batch of 3 pictures cannot be shared evenly by 2 processes"):
        training.fit(tiny_config(people, "data.batch_size=3"), output, progress=False)
    assert not output.exists()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    step, seeds = training.train_step, []
    training.train_step = lambda *arguments: seeds.append(torch.initial_seed()) or step(*arguments)
    training.fit(tiny_config(people, "train.epochs=1", "train.max_steps=2"), output, progress=False)
    return seeds


@pytest.mark.slow
def test_processes_refuse_a_batch_that_they_cannot_share_and_draw_their_own_augmentations(people, tmp_path):
    drawn, also_drawn = on(2, partial(seeds_of_steps, people=people, output=tmp_path / "run"))
    assert len({*drawn, *also_drawn}) == 2 * 2  # of two steps


def test_a_lost_process_ends_the_others_with_what_to_do():
    """torch's own error, after its patience with a process that does not answer, does not say it."""
    place = job.Job("no")
    place.index, place.count = 1, 2
    with pytest.raises(RunError, match=r"process 1 of 2 cannot go on: timed out\n.*--resume"), place.running():
        raise RuntimeError("timed out")
