"""Models on the hub: what is sent, what the card says, and what comes back; against a stand-in on localhost."""

import json
import re
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from hub import TOKEN, Repository, pretend_online, running_hub
from huggingface_hub import ModelCard
from layouts import tiny_config, write_language_model, write_person_search

from timam import TIMAM
from timam.evaluation import Embeddings, per_query
from timam.metrics import RETRIEVAL_METRICS
from timam.run import Run
from timam.training import fit
from timam_lab import card
from timam_lab.statistics import bootstrap_interval


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch, with a language model from a folder of this machine."""
    folder = tmp_path_factory.mktemp("hub")
    root = write_person_search(folder / "data", test=8)
    bert = write_language_model(folder / "bert")
    fit(tiny_config(root, f"language_model={bert}", "epochs=1", "unfreeze_epoch=none"), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, also for this process: huggingface_hub reads its settings on import."""
    with running_hub() as found:
        pretend_online(monkeypatch, found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_push_sends_a_model_with_its_card_and_nothing_of_this_machine_and_it_comes_back(run, hub, call):
    for name, options in (("somebody/public", ["--public"]), ("somebody/people", [])):
        printed = call("push", run, name, *options)
        assert printed.code == 0, printed.err
        assert printed.out.startswith(f"{hub.url}/{name}/commit/")
        assert hub.repositories[name].private == (not options)
    found, expected = (TIMAM.from_pretrained(m).encode_texts(["a red coat"]) for m in (name, Run(run).best))
    assert found.equal(expected)
    files = hub.repositories[name].files
    tokenizer = {f"tokenizer/{p.name}" for p in (Run(run).best / "tokenizer").iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors"} | tokenizer
    for name, content in files.items():
        assert str(run.parent).encode() not in content, name
    text = files["README.md"].decode()
    assert json.loads(text.partition("```json\n")[2].partition("```")[0])["train"]["epochs"] == 1

    metrics = Run(run).metrics()
    data = ModelCard(text).data
    assert data.model_name == "TIMAM, trained on cuhk-pedes"
    assert {r.metric_name: r.metric_value for r in data.eval_results} == {
        f"{direction} {key.replace('rank_', 'R@')}": pytest.approx(100 * metrics[direction][key], abs=0.005)
        for direction in ("text_to_image", "image_to_text")
        for key in RETRIEVAL_METRICS
    }
    tested = f"{metrics['text_to_image']['queries']} captions"
    wrong = f"{100 * (1 - metrics['text_to_image']['rank_1']):.0f} of 100 sentences have a wrong picture first"
    needed = [tested, wrong, metrics["provenance"]["data_fingerprint"], 'from_pretrained("somebody/people")']
    needed += ["## Intended use", "## Limits and risks", "Privacy", "research only"]
    assert [part for part in needed if part not in text] == []


def test_the_table_of_the_card_holds_values_and_intervals(run):
    text = str(TIMAM.from_pretrained(Run(run).best).generate_model_card(**card.of_run(run)))
    row = next(line for line in text.splitlines() if line.startswith("| text to image |"))
    cells = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", row)
    found = per_query(Embeddings.load(run / "test_embeddings.safetensors"), "text_to_image")
    for cell, metric in zip(cells, RETRIEVAL_METRICS.values(), strict=True):
        value = metric(found)
        expected = [np.mean(value), *bootstrap_interval(value, found["identity"])]  # over identities, not captions
        assert list(map(float, cell)) == pytest.approx([100 * x for x in expected], abs=0.051)
    assert "\n| percent | R@1 | R@5 | R@10 | mAP | mINP |" in text


@pytest.mark.parametrize("init", ["~/private/base", "/private/gone/base", "./private/base", "owner/base", ""])
def test_the_card_names_what_training_started_from_without_its_folder(run, monkeypatch, init):
    config = Run(run).config()
    started = replace(config, train=replace(config.train, init=init))
    monkeypatch.setattr(Run, "config", lambda _: started)
    shown = json.loads(card.of_run(run)["settings"])["train"]["init"]
    assert shown == init if init in ("owner/base", "") else shown == "base"


def test_card_says_what_the_threshold_and_the_classes_achieved_and_what_is_special_about_the_data(run, monkeypatch):
    metrics, model = Run(run).metrics(), Run(run).best_model()
    assert "threshold" not in str(model.generate_model_card(**card.of_run(run)))
    at_threshold = {"false_alarm_rate": {"0.1": 0.125}, "detection_identification_rate": {"0.1": 0.314}}
    class_level = {"image_to_text_rank_1": 0.25, "text_to_image_ap_50": 0.75}
    metrics |= {"open_set": {"at_threshold": at_threshold}, "class_level": class_level}
    metrics["provenance"]["data_notes"] = ["Two classes are held out."]
    monkeypatch.setattr(Run, "metrics", lambda run: metrics)
    text = " ".join(str(model.generate_model_card(**card.of_run(run))).split())
    assert "absent people answered 12 % of the test sentences about absent people, and for 31 % of" in text
    assert "Class level: image-to-text rank-1 25.0, text-to-image AP@50 75.0." in text
    assert "Two classes are held out." in text


def test_a_model_without_a_run_says_its_use_and_limits_and_no_results(tiny_model):
    text = str(tiny_model().generate_model_card())
    assert "the tokenizer lists the words" in str(tiny_model(language_model="none").generate_model_card())
    assert "## Limits and risks" in text
    assert "The image encoder is shufflenet_v2_x0_5; the text encoder is tiny-bert with" in text
    for absent in ("## Results", "## Data", "of 100 sentences", "None", "Undefined", "tokenizer lists the words"):
        assert absent not in text


@pytest.mark.parametrize(
    ("cause", "expected"),
    [("unfinished", "run is not finished"), ("no login", "hf auth login"), ("no connection", "error: "), ("a/b/c", "")],
)
def test_failed_push_is_a_message_and_changes_nothing(run, hub, tmp_path, monkeypatch, call, cause, expected):
    name, old = "somebody/people", {"README.md": b"the old model"}
    hub.repositories[name] = Repository(files=dict(old))
    if cause == "unfinished":
        run = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.json"))
    elif cause == "no login":
        monkeypatch.delenv("HF_TOKEN")
    elif cause == "no connection":
        pretend_online(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    else:
        name = cause
    printed = call("push", run, name)
    assert printed.code in (1, 2)
    assert expected in printed.err
    assert "Traceback" not in printed.err
    assert ("401" in printed.err) == (cause == "no login")
    assert {n: repository.files for n, repository in hub.repositories.items()} == {"somebody/people": old}
    assert bool(hub.requests) == (cause == "no login")
