"""timam_lab.speed: what is timed agrees; of its gpu, what fails or is stopped costs only itself, and all of it runs."""

import json
import multiprocessing
import os
import signal
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from timam.config import MINILM, PRESETS, override
from timam.interruption import Interrupted
from timam.metrics import two_way_metrics
from timam.models.weights import load_backbone, load_language_model, load_tokenizer
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.speed import growth
from timam_lab.speed.gpu import NAMES, OWN_DATA, SMALLEST, Item, Lab, Part, carry, learns, parts, schedule
from timam_lab.speed.gpu.lab import run_part
from timam_lab.speed.metrics import embeddings, usual_two_way
from timam_lab.speed.timing import medians, turns


@pytest.mark.parametrize("loops", [True, False])
def test_the_usual_way_agrees_with_ours(loops):
    both = embeddings(40, 90, 12, 16)
    ours, usual = two_way_metrics(*both), usual_two_way(*both, loops=loops)
    for direction, values in usual.items():
        for name, value in values.items():
            assert ours[direction][name] == pytest.approx(value, abs=1e-6)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order = []
    taken = turns(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, lambda: order.append("-"))
    assert "".join(order) == "-a-b" * 3
    assert taken.shape == (2, 4)
    assert set(medians(1, {"a": lambda: None}, clock="processor")) == {"a"}


def test_peak_memory_counts_what_is_held_at_one_time():
    def work():
        for _ in range(5):
            torch.empty(1000, 256)  # 1,024,000 bytes each, freed at once
        return torch.empty(1000, 256), torch.empty(1000, 256)

    assert 2 * 1_024_000 <= growth.peak_memory(work, torch.device("cpu")) < 3 * 1_024_000


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, tmp_path, rehearsal=True)


def part_of(calls, **works):
    """A part with an item for each work, which notes that it was called, and an error behind the last one."""

    def noted(name, work):
        calls.append(name)
        yield from work()

    def items(lab):
        for name, work in works.items():
            yield Item("Table", name, partial(noted, name, work))
        raise OSError("no data")

    return Part("Title", "Text.", items)


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
    assert "its numbers mean nothing" in text
    measured = {"second": lambda: [{"other": 2}], "fourth": list, "fifth": list}
    run_part("some", part_of(calls, first=fails, third=fails, **measured), lab)
    assert calls == ["first", "second", "third", "fourth", "second", "fourth", "fifth"]
    assert [error for _, error in read(lab).values()] == [None] * 5 + ["OSError: no data"]
    assert "| value | other |\n| --- | --- |\n| 1.235 |  |\n|  | 2 |" in (lab.output / "some.md").read_text()
    content = json.loads((lab.output / "some.json").read_text())
    made = content["made"] | {"device": "another"}  # or another commit
    (lab.output / "some.json").write_text(json.dumps(content | {"made": made}))
    run_part("some", part_of(calls, first=list), lab)
    assert calls[-1] == "first"


def test_a_part_that_takes_too_long_or_dies_ends_alone_and_timings_wait_for_the_rendering(lab, monkeypatch):
    rendered, archive = lab.work / "rendered", lab.work / "tables.tar.gz"

    def render(_):
        time.sleep(1)
        rendered.touch()

    def stubborn():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.fork()
        time.sleep(90)

    works = {"step": lambda: [{"size": rendered.stat().st_size}], "evaluation": stubborn, "tests": list}
    for name, work in works.items():
        items = [Item("Table", "only", work)]
        monkeypatch.setitem(parts.PARTS, name, Part("Title", "Text.", lambda _, items=items: items))
    monkeypatch.setitem(parts.PARTS, "learning", Part("Title", "Text.", lambda _: os._exit(3)))
    assert sorted(parts.PARTS) == sorted(NAMES)  # each has a stage
    fork = multiprocessing.get_context("fork")  # keeps what is replaced here
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(schedule, "render", render)
    monkeypatch.setattr(schedule, "GRACE", 0.1)
    reading, writing = os.pipe()  # the end for writing is open as long as any process of a part lives
    began = time.monotonic()
    schedule.measure(["step", "evaluation", "learning", "tests"], began + 30, lab, archive)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert time.monotonic() - began < 60
    text = (lab.output / "summary.md").read_text()
    for row in ("step](step.md) | 1 | 0", "evaluation.md) | 0 | 1", "| learning | none: see", "tests.md) | 1 | 0"):
        assert row in text
    with tarfile.open(archive) as file:
        assert {"summary.md", "tests.json"} < {Path(name).name for name in file.getnames()}


def test_the_study_is_that_of_the_notebook_seed_after_seed_with_the_rates_that_were_chosen(lab):
    study = learns.study(replace(lab, rehearsal=False))
    names = list(dict.fromkeys(e.variant for e in study))
    assert names[0] == "matching"
    assert set(learns.RATES) < set(names)
    assert [e.config.train.seed for e in study] == [seed for seed in range(5) for _ in names]
    rates = {e.variant: e.config.train.image_lr for e in study}
    assert rates["CMPM"] == pytest.approx(0.5 * rates["SDM"], rel=1e-5)  # six digits
    quick, train = PRESETS["quick"].train, study[0].config.train
    assert train.warmup_epochs * train.max_steps == pytest.approx(quick.warmup_epochs * quick.max_steps)


def test_the_recipe_has_as_many_steps_with_any_number_of_people_that_is_not_small(lab):
    quick, full = PRESETS["quick"], replace(lab, rehearsal=False)
    for people, steps in ((750, 40 * 35), (3_000, 10 * 140), (6_250, 5 * 280)):
        train = override(quick, learns.learning_settings(full, people)).train
        assert train.epochs * train.max_steps == steps
        assert train.text_lr == pytest.approx(2**0.5 * quick.train.text_lr)


@pytest.mark.slow
def test_carried_weights_are_those_of_quick_in_half_precision(tmp_path):
    carry.pack_weights(tmp_path)
    backbones = [load_backbone("mobilenet_v2", w) for w in (f"{tmp_path}/mobilenet_v2.safetensors", "IMAGENET1K_V1")]
    language_models = [load_language_model(name, True) for name in (f"{tmp_path}/MiniLM", MINILM)]
    for carried, packaged in ([b.features for b in backbones], language_models):
        # Half precision has 11 bits: half a unit in the last place is 2**-12 of the value, 2**-25 below 2**-14.
        torch.testing.assert_close(carried.state_dict(), packaged.state_dict(), rtol=2**-11, atol=2**-24)
    ours, theirs = (load_tokenizer(name)(["A man in a red coat."]) for name in (str(tmp_path / "MiniLM"), MINILM))
    assert ours["input_ids"] == theirs["input_ids"]
    assert sum(f.stat().st_size for f in tmp_path.rglob("*")) < 50 * 2**20


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
