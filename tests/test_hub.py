"""Models on the hub: what is sent, what the card says, and what comes back; against a stand-in on localhost."""

import json
import re
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from hub import TOKEN, Repository, pretend_online, running_hub
from huggingface_hub import ModelCard
from layouts import TINY_SETTINGS, tiny_config, write_language_model, write_person_search, write_reed

from timam import TIMAM, card, cli
from timam.config import PRESETS, override
from timam.evaluation import Embeddings, per_query
from timam.training import fit

SENTENCE = "a person in a red coat and blue trousers"


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
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def push(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["timam", "push", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


FRESH_PROCESS = """
import sys
from timam import TIMAM, cli
run, sentence = sys.argv[1:]
sys.argv = ["timam", "push", run, "somebody/people"]
cli.main()
model = TIMAM.from_pretrained("somebody/people")
print(model.encode_texts([sentence]).numpy().tobytes().hex())
"""


@pytest.mark.slow  # a new interpreter imports torch and transformers
def test_pushed_and_read_back_in_a_fresh_process(run, tmp_path):
    with running_hub() as hub:
        command = [sys.executable, "-c", FRESH_PROCESS, str(run), SENTENCE]
        options = {"capture_output": True, "text": True, "timeout": 300, "check": False}
        result = subprocess.run(command, env=hub.environment(tmp_path), **options)
        assert result.returncode == 0, result.stderr[-3000:]
        url, found = result.stdout.split()
        assert url.startswith(f"{hub.url}/somebody/people/commit/")
        expected = TIMAM.from_pretrained(run / "checkpoints/best").encode_texts([SENTENCE]).numpy().tobytes().hex()
        assert found == expected
        assert hub.repositories["somebody/people"].private
        assert any(r.startswith("PUT /lfs/") for r in hub.requests)  # the weights, as the real hub takes them


def test_push_sends_a_model_with_its_card_and_nothing_of_this_machine(run, hub, monkeypatch, capsys):
    code, printed = push(monkeypatch, capsys, run, "somebody/people", "--public")
    assert code == 0, printed.err
    repository = hub.repositories["somebody/people"]
    assert not repository.private
    tokenizer = {f"tokenizer/{p.name}" for p in (run / "checkpoints/best/tokenizer").iterdir()}
    assert set(repository.files) == {"README.md", "config.json", "model.safetensors"} | tokenizer
    for name, content in repository.files.items():
        assert str(run.parent).encode() not in content, name
        assert b"/bert" not in content, name
    text = repository.files["README.md"].decode()
    assert 'from_pretrained("somebody/people")' in text
    assert "```json" in text
    assert json.loads(text.partition("```json\n")[2].partition("```")[0])["train"]["epochs"] == 1

    metrics = json.loads((run / "metrics.json").read_text())
    results = {r.metric_name: r.metric_value for r in ModelCard(text).data.eval_results}
    assert len(results) == 10
    for direction in ("text_to_image", "image_to_text"):
        for key, label in {"rank_1": "R@1", "rank_5": "R@5", "rank_10": "R@10", "mAP": "mAP", "mINP": "mINP"}.items():
            assert results[f"{direction} {label}"] == pytest.approx(100 * metrics[direction][key], abs=0.005)
    assert ModelCard(text).data.model_name == "TIMAM, trained on cuhk-pedes"
    tested = f"{metrics['text_to_image']['queries']} captions"
    fingerprint = metrics["provenance"]["data_fingerprint"]
    for needed in ("## Intended use", "## Limits and risks", "Privacy", fingerprint, tested, "research only"):
        assert needed in text, needed
    wrong = 100 * (1 - metrics["text_to_image"]["rank_1"])
    assert f"{wrong:.0f} of 100 sentences have a wrong picture first" in text


def test_the_table_of_the_card_holds_values_and_intervals(run):
    """One identity of eight is drawn again and again: the ends must be means over whole identities."""
    text = str(TIMAM.from_pretrained(run / "checkpoints/best").generate_model_card(**card.of_run(run)))
    row = next(line for line in text.splitlines() if line.startswith("| text to image |"))
    cells = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", row)
    found = per_query(Embeddings.load(run / "test_embeddings.safetensors"), "text_to_image")
    values = [found["rank"] <= 1, found["rank"] <= 5, found["rank"] <= 10]
    values += [found["average_precision"], found["inverse_penalty"]]
    assert len(cells) == len(values)
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(found["identity"] == i) for i in np.unique(found["identity"])]
    for cell, value in zip(cells, values, strict=True):
        mean, low, high = map(float, cell)
        assert mean == pytest.approx(100 * np.mean(value), abs=0.051)
        drawn = [value[np.concatenate([members[i] for i in rng.integers(0, 8, 8)])].mean() for _ in range(4000)]
        assert (low, high) == pytest.approx(tuple(100 * np.percentile(drawn, [2.5, 97.5])), abs=4)
    assert "\n| percent | R@1 | R@5 | R@10 | mAP | mINP |\n|---|---|---|---|---|---|\n| text to image |" in text


def test_card_of_a_class_benchmark_has_its_protocol(tmp_path):
    lists = {"trainval": [f"class_{i:05d}" for i in range(1, 21)], "test": ["class_00021", "class_00022"]}
    root = write_reed(tmp_path / "data", lists, flat=True)
    settings = ["data.dataset=flowers", f"data.root={root}", *TINY_SETTINGS, "epochs=1"]
    metrics = fit(override(PRESETS["smoke"], settings), tmp_path / "run", progress=False)
    model = TIMAM.from_pretrained(tmp_path / "run/checkpoints/best")
    text = str(model.generate_model_card(**card.of_run(tmp_path / "run")))
    assert f"image-to-text rank-1 {100 * metrics['class_level']['image_to_text_rank_1']:.1f}" in text
    assert metrics["provenance"]["data_notes"][0] in text  # the held-out validation classes
    assert "the tokenizer lists the words" in text  # learned word embeddings
    assert str(tmp_path) not in text


def test_a_model_without_a_run_says_its_use_and_limits_and_no_results(tiny_model):
    text = str(tiny_model().generate_model_card())
    assert "## Limits and risks" in text
    assert "The image encoder is resnet18; the text encoder is tiny-bert with" in text
    for absent in ("## Results", "## Data", "of 100 sentences", "None", "Undefined"):
        assert absent not in text


def test_unfinished_run_is_refused_before_anything_is_sent(run, hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_bytes((run / "config.json").read_bytes())
    code, printed = push(monkeypatch, capsys, tmp_path / "run", "somebody/people")
    assert code == 1
    assert f"{tmp_path}/run is not finished" in printed.err
    assert hub.requests == []


def test_push_without_login_is_one_line_and_makes_nothing(run, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    code, printed = push(monkeypatch, capsys, run, "somebody/people")
    assert code == 1
    assert "401" in printed.err
    assert "hf auth login" in printed.err
    assert "Traceback" not in printed.err
    assert hub.repositories == {}


def test_failed_upload_leaves_the_repository_as_it_was(run, hub, monkeypatch, capsys):
    hub.repositories["somebody/people"] = Repository(files={"README.md": b"the old model"})
    hub.full = True
    code, printed = push(monkeypatch, capsys, run, "somebody/people")
    assert code == 1
    assert "model.safetensors" in printed.err
    assert hub.repositories["somebody/people"].files == {"README.md": b"the old model"}


@pytest.mark.parametrize("name", ["no such thing", "a/b/c", "-x/y"])
def test_a_name_that_is_none_is_refused(run, hub, monkeypatch, capsys, name):
    code, printed = push(monkeypatch, capsys, run, name)
    assert code in (1, 2)
    assert "Traceback" not in printed.err
    assert hub.requests == []


def test_no_connection_is_one_line(run, monkeypatch, capsys):
    pretend_online(monkeypatch, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, printed = push(monkeypatch, capsys, run, "somebody/people")
    assert code == 1
    assert printed.err.startswith("error: ")
