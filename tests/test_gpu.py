"""timam_lab.speed.gpu: what fails or is stopped costs only itself; a second call measures the rest; all of it runs."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import click
import pytest
import torch

from timam.config import PRESETS, override
from timam.interruption import Interrupted
from timam.models.weights import load_backbone
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed.gpu import NAMES, OWN_DATA, SMALLEST, STAGES, Item, Lab, Part, carry, learns, parts, schedule
from timam_lab.speed.gpu.lab import run_part

ROOT = Path(__file__).parents[1]


@pytest.fixture
def lab(tmp_path):
    for folder in ("work", "output"):
        (tmp_path / folder).mkdir()
    return Lab(tmp_path / "work", tmp_path / "output", rehearsal=True)


def part_of(calls, **works):
    """A part with an item for each work, which notes that it was called."""

    def noted(name, work):
        calls.append(name)
        yield from work()

    return Part("Title", "Text.", lambda lab: iter([Item("Table", n, lambda n=n: noted(n, works[n])) for n in works]))


def fails():
    yield {"value": 7}
    raise RuntimeError("out of luck")


def is_stopped():
    yield {"value": 8}
    raise Interrupted


def read(lab, name="some"):
    items = json.loads((lab.output / f"{name}.json").read_text())["items"]
    return {key.removeprefix("Table: "): (entry["rows"], entry["error"]) for key, entry in items.items()}


def test_what_fails_is_named_and_the_next_goes_on_and_a_second_call_measures_only_what_is_missing(lab):
    calls, seen = [], []
    works = {"first": lambda: [{"value": 1.23456}], "second": fails, "third": lambda: seen.append(read(lab)) or []}
    run_part("some", part_of(calls, **works, fourth=is_stopped, fifth=fails), lab)
    first, second = ([{"value": 1.23456}], None), ([{"value": 7}], "RuntimeError: out of luck")
    stopped = "stopped: its time was over"
    assert seen == [{"first": first, "second": second, "third": ([], stopped)}]  # as if it is killed here
    assert read(lab) == {"first": first, "second": second, "third": ([], None), "fourth": ([{"value": 8}], stopped)}
    text = (lab.output / "some.md").read_text()
    assert "| value |\n| --- |\n| 1.235 |\n| 7 |\n| 8 |" in text
    assert "- Table: second: RuntimeError: out of luck" in text
    assert f"torch {torch.__version__}" in text
    assert "its numbers mean nothing" in text
    measured = {"second": lambda: [{"other": 2}], "fourth": list, "fifth": list}
    run_part("some", part_of(calls, first=fails, third=fails, **measured), lab)
    assert calls == ["first", "second", "third", "fourth", "second", "fourth", "fifth"]
    assert [error for _, error in read(lab).values()] == [None] * 5
    assert "| value | other |\n| --- | --- |\n| 1.235 |  |\n|  | 2 |" in (lab.output / "some.md").read_text()
    content = json.loads((lab.output / "some.json").read_text())
    made = content["made"] | {"device": "another"}  # or another commit
    (lab.output / "some.json").write_text(json.dumps(content | {"made": made}))
    run_part("some", part_of(calls, first=list), lab)
    assert calls[-1] == "first"


def test_an_error_between_two_items_is_named(lab):
    def items(lab):
        yield Item("Table", "first", lambda: [])
        raise OSError("no data")

    run_part("some", Part("Title", "Text.", items), lab)
    assert read(lab)["Preparation: between two items"] == ([], "OSError: no data")


def stubborn(sign):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not os.fork():
        time.sleep(60)
    sign.send(os.getpgid(0))
    time.sleep(60)


def test_a_part_that_does_not_stop_is_ended_with_all_that_it_has_started(monkeypatch):
    monkeypatch.setattr(schedule, "GRACE", 0.1)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=schedule.lead, args=(stubborn, theirs))
    process.start()
    group = ours.recv()
    schedule.end(process, 0.1)
    assert not process.is_alive()
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # noqa: PT012
        while time.monotonic() < deadline:  # until the system has collected the orphan
            os.killpg(group, 0)
            time.sleep(0.05)


STUBS = """
import json, os, sys, time, types

def run_part(name, work, lab):
    entry = {"table": "", "rows": [], "error": "stopped", "seconds": 0}
    for outcome in (work, None):
        (lab.output / f"{name}.json").write_text(json.dumps({"made": {}, "items": {"item": entry}}))
        outcome and outcome()
        entry["error"] = None

def render(folder, *arguments, **options):
    time.sleep(1)
    folder.with_name("rendered").touch()

def rendered():
    if not os.path.exists(sys.argv[sys.argv.index("--work") + 1] + "/rendered"):
        os._exit(3)

works = {"abreast": rendered, "notebooks": lambda: 0}
works |= {"runs": lambda: 0, "step": lambda: time.sleep(60), "learning": lambda: os._exit(3), "tests": lambda: 0}
made = {"timam_lab.speed.gpu.lab": {"run_part": run_part}, "timam_lab.speed.gpu.parts": {"PARTS": works},
        "timam_lab.pedestrians": {"PedestrianSpec": dict, "render_pedestrians": render},
        "torch": {"cuda": types.SimpleNamespace(is_available=lambda: False)}}
for name, values in made.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)
"""  # parts that need no torch, so that the processes start in no time


def test_a_part_that_takes_too_long_or_dies_ends_alone_and_within_the_time(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STUBS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "timam_lab.speed.gpu", "--work", str(tmp_path), "--minutes", "0.5"]
    names = ["runs", "step", "learning", "tests"]
    refused = subprocess.run([*command, *names], env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "torch sees no GPU here" in refused.stderr
    archive, started = tmp_path / "tables.tar.gz", time.monotonic()
    command += ["--rehearse", "--archive", str(archive)]
    done = subprocess.run([*command, *names], env=environment, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 60
    for row in ("runs](runs.md) | 1 | 0", "step](step.md) | 0 | 1", "learning.md) | 0 | 1", "tests](tests.md) | 1 | 0"):
        assert row in done.stdout
    with tarfile.open(archive) as file:
        assert {"tables/summary.md", "tables/tests.json"} < set(file.getnames())


def test_what_is_timed_waits_until_the_data_of_later_parts_are_rendered(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STUBS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "timam_lab.speed.gpu", "--rehearse", "--work", str(tmp_path), "--minutes", "0.5"]
    done = subprocess.run([*command, "abreast", "notebooks"], env=environment, capture_output=True, text=True)
    assert "abreast](abreast.md) | 1 | 0" in done.stdout, done.stdout + done.stderr


def test_every_part_has_a_stage_of_the_eight_minutes_and_the_summary_a_line(lab):
    assert sorted(parts.PARTS) == sorted(NAMES)
    assert sum(STAGES.values()) == pytest.approx(8)
    run_part("runs", part_of([], first=fails, second=list), lab)
    text = schedule.summary(lab.output, ["runs", "step"])
    assert "| [runs](runs.md) | 1 | 1 | 0 |\n| step | none: see the log | | |" in text


def test_the_study_is_that_of_the_notebook_seed_after_seed_with_the_rates_that_were_chosen(lab):
    full = Lab(lab.work, lab.output, rehearsal=False)
    (lab.work / "people").mkdir()
    (lab.work / "people/reid_raw.json").write_text("[]")
    study = learns.study(full)
    names = list(dict.fromkeys(e.variant for e in study))
    assert names[0] == "matching"
    assert set(learns.RATES) < set(names)
    assert [e.config.train.seed for e in study] == [seed for seed in range(5) for _ in names]
    rates = {e.variant: e.config.train.image_lr for e in study}
    assert rates["CMPM"] == pytest.approx(0.5 * rates["SDM"], rel=1e-5)  # six digits
    quick, train = PRESETS["quick"].train, study[0].config.train
    assert train.warmup_epochs * train.max_steps == pytest.approx(quick.warmup_epochs * quick.max_steps)


def test_the_recipe_has_as_many_steps_with_any_number_of_people_that_is_not_small(lab):
    full, quick = Lab(lab.work, lab.output, rehearsal=False), PRESETS["quick"].train
    for people, steps in ((750, 40 * 35), (3_000, 10 * 140), (6_250, 5 * 280)):
        train = override(PRESETS["quick"], learns.learning_settings(full, people)).train
        assert train.epochs * train.max_steps == steps
        assert train.warmup_epochs * train.max_steps == pytest.approx(quick.warmup_epochs * quick.max_steps)
        assert train.text_lr == pytest.approx(2**0.5 * quick.text_lr)


# -- what is carried --------------------------------------------------------------------------------------------------


def test_what_travels_is_counted_and_too_much_refused(tmp_path):
    (tmp_path / "carried").mkdir()
    for name, size in ((".gitignore", 0), ("code.py", 1000), ("ignored.bin", 10_000), ("carried/wheel.whl", 2000)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / ".gitignore").write_text("/carried/\n*.bin\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    found = carry.sizes(tmp_path, tmp_path / "carried")
    assert found == {"code.py": 1000, "carried": 2000, ".gitignore": 16}
    assert carry.check_size(tmp_path, tmp_path / "carried", 3016).startswith("0.0 of 0 MiB: carried")
    with pytest.raises(click.ClickException, match="sparse-checkout"):
        carry.check_size(tmp_path, tmp_path / "carried", 3015)


@pytest.mark.slow
def test_carried_weights_are_those_of_quick_in_half_precision(tmp_path):
    from timam.config import MINILM
    from timam.models.weights import load_language_model, load_tokenizer

    carry.pack_weights(tmp_path)
    pairs = {
        load_backbone("mobilenet_v2", str(tmp_path / "mobilenet_v2.safetensors")).features: (
            load_backbone("mobilenet_v2", "IMAGENET1K_V1").features
        ),
        load_language_model(str(tmp_path / "MiniLM"), True): load_language_model(MINILM, True),
    }
    for carried, packaged in pairs.items():
        state = packaged.state_dict()
        for name, value in carried.state_dict().items():
            # Half precision has 11 bits: half a unit in the last place is 2**-12 of the value, 2**-25 below 2**-14.
            torch.testing.assert_close(value, state[name], rtol=2**-11, atol=2**-24)
    ours, theirs = (load_tokenizer(name)(["A man in a red coat."]) for name in (str(tmp_path / "MiniLM"), MINILM))
    assert ours["input_ids"] == theirs["input_ids"]
    assert sum(f.stat().st_size for f in tmp_path.rglob("*")) < 50 * 2**20


# -- a rehearsal ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runs", "step", "abreast", "learning", "evaluation", "processes"])
def test_a_part_rehearses_without_an_error(lab, name):
    """The others start pytest, papermill or pools of processes; `--rehearse` runs them all."""
    if name not in OWN_DATA:
        render_pedestrians(lab.work / "people", PedestrianSpec(**SMALLEST), 1, progress=False)
    run_part(name, parts.PARTS[name], lab)
    items = read(lab, name)
    assert items
    assert {key: error for key, (rows, error) in items.items() if error or not rows} == {}
