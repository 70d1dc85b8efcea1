"""The command line: help, exit codes, and one tiny run end to end."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import TINY_SETTINGS, person_search_records, write_parquet, write_person_search, write_picture
from torch.nn.functional import cosine_similarity, normalize

from timam import cli, training
from timam.data import SPLITS
from timam.images import read_image
from timam.interruption import Interrupted
from timam.run import Run
from timam.search import Gallery

SETTINGS = [argument for setting in (*TINY_SETTINGS, "train.epochs=2") for argument in ("--set", setting)]


def train_arguments(root: Path, run: Path, *more: str) -> list[object]:
    return ["train", "--preset", "smoke", "--dataset", "cuhk-pedes", "--root", root, "--output", run, *SETTINGS, *more]


@pytest.fixture(scope="session")
def finished_run(people, tmp_path_factory) -> Path:
    """A run of the command line that is complete; tests only read it."""
    run = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["timam", *map(str, train_arguments(people, run))])
        cli.main()
    return run


def test_every_command_has_its_help_and_every_option_a_text_and_bounds_and_defaults_are_shown(call):
    commands = [("", cli.cli)]
    for path, command in commands:  # which grows by those of each group
        for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
            commands.append((f"{path} {name}".strip(), command.get_command(click.Context(command), name)))
        # Not -h: click keeps a command's first help option, which may be of another test.
        result = call(*path.split(), "--help")
        assert (result.code, result.err, result.out[:12]) == (0, "", "Usage: timam")
        assert [p.name for p in command.params if p.param_type_name == "option" and not p.help] == []
    assert {"train", "evaluate", "push", "search", "data check", "studies table"} < {path for path, _ in commands}
    shown = " ".join(call("data", "pedestrians", "--help").out.split())
    for words in ("Pixels. [default: 192", "[default: 3.092", "1<=x<=1000]", "0<=x<=0.9]"):
        assert words in shown


MISTAKES = {  # what follows `timam`: (exit code, what is said)
    "evaluate": (2, "give one of RUN and --pretrained"),
    "evaluate . --dataset cuhk-pedes": (2, "go together"),
    "evaluate --pretrained x/y": (2, "needs --dataset and --root"),
    "evaluate .": (1, ". is not a run with a finished epoch"),
    "push . somebody/people": (1, ". is not finished"),
    "train --dataset csv --root . --output x --set train.epochs=many": (2, "train.epochs = 'many': expected"),
    "train --dataset parquet --root org/x --output x": (1, "org/x: no such folder; `hf download --repo-type dataset"),
    "studies table ~/x": (2, "/home/x"),
    "data check --dataset csv --root . --column caption": (2, "expected NAME=COLUMN"),
    "data check --dataset csv --root . --column caption=a --column caption=b": (2, "a name stands twice"),
    "data pedestrians --output x --identities 2000000": (2, "train_identities"),
    "data pedestrians --output x --identities 9 --val-identities 8": (2, "leaves none"),
    "search . 'a man' --images ~/x": (1, "/home/x: no such folder"),  # the shell leaves that of --images=~/x
    "search . 'a man' --images .": (1, ". is not a run with a finished epoch"),
    "search . ' \t' --images .": (2, "sentence is empty"),
    "search . 'a man' --images . --like file": (2, "give one of SENTENCE"),
    "search . --images . --like file --threshold auto": (2, "with --like give a number"),
    "search . 'a man' --images . --threshold 30": (2, "30: expected auto"),
    "search . 'a man' --images . --centered --threshold auto": (2, "not --centered"),
    "search . 'a man' --images . --figure f": (2, "ends in ."),
    "search . --images . --figure f.png": (2, "the sentences beforehand"),
    "search . 'a man' --images . -k 201 --figure f.png": (2, "at most 200"),
}
MAKE_THEM = """
import contextlib, io, json, shlex, sys
from timam import cli
for command in json.loads(sys.argv[1]):
    sys.argv, code = ["timam", *shlex.split(command)], 0
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, said.getvalue(), [m for m in ("torch", "pandas", "pyarrow") if m in sys.modules]]))
"""


def test_mistakes_are_told_before_torch_is_imported(tmp_path):
    """Each is told with its exit code in half a second; torch and transformers would take several."""
    (tmp_path / "file").touch()
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", MAKE_THEM, json.dumps(list(MISTAKES))]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    for (command, (code, message)), line in zip(MISTAKES.items(), result.stdout.splitlines(), strict=True):
        found, said, imported = json.loads(line)
        assert (found, message in said, "Traceback" in said) == (code, True, False), (command, said)
        assert imported == [] or "--figure" in command, command  # matplotlib knows the names of figures
    assert set(os.listdir(tmp_path)) <= {"file", "home"}  # matplotlib makes the latter


def test_check_prints_each_split_and_exits_with_1_for_problems_but_not_for_remarks(call, tmp_path, monkeypatch):
    records = person_search_records(train=3, val=2, test=2)
    for record in records[::2]:
        record["captions"][0] = "a person"
    records[0]["captions"] = ["a person", "one two three four five", "six"]
    root = write_person_search(tmp_path, records)
    command = ["data", "check", "--dataset", "cuhk-pedes", "--root", root]
    result = call(*command)
    train, *_, last = result.out.splitlines()
    counts = "train identities 3 (published 11,003) pictures 6 (published 34,054) captions 13 (published 68,126) "
    assert " ".join(train.split()).startswith(counts)
    assert train.endswith("(at most 9)  pictures by captions: 5 with 2, 1 with 3")
    assert "\nnote: a part or another version of the benchmark: 6 images in train, published 34,054" in result.out
    assert (result.code, "0 problem(s), 0 warning(s), 1 remark(s)" in last) == (0, True)
    assert result.err.startswith("remark: 1 captions stand under three or more identities")
    missing, truncated = (root / "imgs" / records[i]["file_path"] for i in (2, 6))
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-60])
    result = call(*command)
    assert (result.code, "2 problem(s), 1 warning(s), 1 remark(s)" in result.out) == (1, True)
    assert "record 2: no such picture" in result.err
    assert str(truncated) in result.err
    assert "warning: partial download: 1 of 14 pictures are missing, by folder: cam_a 1 of 14" in result.err
    monkeypatch.setattr("timam_lab.commands.MOST_SAID", 1)
    assert "problem: ... and 1 more; --json has all of them" in call(*command).err


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_failed(result: SimpleNamespace, expected: str) -> None:
    assert (result.code, expected in result.err, "Traceback" in result.err) == (1, True, False), result.err


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_finished_run_is_left_as_it_is(call, finished_run, people, tmp_path, monkeypatch, more):
    before = content_of(finished_run)
    checkpoints = {path.suffix for path in before if "checkpoints" in path.parts and path.name != "SHA256SUMS"}
    assert checkpoints <= {".json", ".safetensors", ".md"}  # nothing pickled
    monkeypatch.setattr(training._Training, "open_data", lambda *_: pytest.fail("started again"))
    other = write_person_search(tmp_path, train=3)
    assert_failed(call(*train_arguments(other, finished_run, *more)), "was begun on other data")
    another_seed = call(*train_arguments(people, finished_run, "--seed", "7", *more))
    assert_failed(another_seed, "train.seed: 0 there, 7 asked for")
    result = call(*train_arguments(people, finished_run, *more))
    assert (result.code, "complete already; nothing to do" in result.out, "text_to_image" in result.out) == (0, 1, 1)
    assert content_of(finished_run) == before


def test_other_folders_are_refused_and_an_interrupted_run_resumed(call, finished_run, people, tmp_path, monkeypatch):
    write_picture(tmp_path / "mine" / "thesis.png")
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "metrics.json").unlink()
    for folder, expected in ((tmp_path / "mine", "not empty and holds no run"), (run, "--resume")):
        before = content_of(folder)
        assert_failed(call(*train_arguments(people, folder)), expected)
        assert content_of(folder) == before
    assert call(*train_arguments(people, run, "--resume")).code == 0
    assert Run(run).metrics()["text_to_image"] == Run(finished_run).metrics()["text_to_image"]
    monkeypatch.setattr(training, "fit", Mock(side_effect=Interrupted))
    result = call(*train_arguments(people, tmp_path / "other"))
    assert (result.code, "--resume" in result.err) == (130, True)


def test_nothing_is_written_when_the_data_or_the_settings_are_bad(call, tmp_path):
    records = person_search_records(train=3, val=1, test=1)
    root = write_person_search(tmp_path / "data", records)
    assert_failed(call(*train_arguments(root, tmp_path / "run", "--set", "backbone=resnet7")), "resnet7")
    paths = {record["split"]: record["file_path"] for record in records}.values()  # one of each split
    for path in paths:
        (root / "imgs" / path).write_bytes(b"\x89PNG")
    result = call(*train_arguments(root, tmp_path / "run"))
    for path in paths:
        assert_failed(result, f"{path}: not a readable picture")
    assert not (tmp_path / "run").exists()


def test_evaluate_reproduces_the_run_and_takes_another_split_and_data(call, finished_run, tmp_path, monkeypatch):
    result = call("evaluate", finished_run, "--json")
    assert result.code == 0
    found, metrics = json.loads(result.out), json.loads((finished_run / "metrics.json").read_text())
    for key in ("dataset", "split", "text_to_image", "image_to_text", "modality_gap"):
        assert found[key] == metrics[key], key
    assert {"commit", "python", "torch", "transformers", "device"} <= set(metrics["provenance"])
    table = call("evaluate", finished_run, "--split", "val").out
    best = pd.read_csv(finished_run / "history.csv").iloc[metrics["best_epoch"] - 1]
    row = next(line for line in table.splitlines() if line.startswith("text_to_image"))
    assert f"{100 * best['val_text_to_image_mAP']:.2f}" in row.split()
    other = write_person_search(tmp_path, train=0, val=0, test=5)  # the other splits are not needed
    result = call("evaluate", finished_run, "--dataset", "cuhk-pedes", "--root", other, "--json")
    assert json.loads(result.out)["text_to_image"]["gallery"] == 10
    monkeypatch.setattr("timam.data.Dataset.fingerprint", lambda _: "other")
    assert "has changed since the run: fingerprint " in call("evaluate", finished_run, "--json").err


@pytest.mark.slow
def test_renamed_columns_of_the_hubs_cache_are_checked_trained_on_and_evaluated(call, tmp_path, monkeypatch):
    hub = tmp_path / "datasets--org--people"
    write_parquet(hub / "snapshots/abc", {s: [{"said": [f"a man {s} {i}"]} for i in range(3)] for s in SPLITS})
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    data = ["--dataset", "parquet", "--root", "org/people", "--column", "caption=said"]
    report = json.loads(call("data", "check", *data, "--preset", "quick", "--json").out)
    assert report["problems"] == []
    assert any("0.0% of the captions have more than 48 tokens" in note for note in report["notes"])
    run = tmp_path / "run"
    assert call("train", "--preset", "smoke", *data, "--output", run, *SETTINGS).code == 0
    kept = json.loads((run / "config.json").read_text())["data"]
    assert (kept["root"], kept["columns"]) == (str(hub / "snapshots/abc"), "caption=said")
    for more in ([], data):
        found = json.loads(call("evaluate", run, *more, "--json").out)
        assert found["text_to_image"] == json.loads((run / "metrics.json").read_text())["text_to_image"]


@pytest.fixture
def album(tmp_path) -> Path:
    folder = tmp_path / "album"
    for i, colour in enumerate(["red", "green", "blue", "yellow"]):
        write_picture(folder / "sub" / f"{i}.png", colour, "black", i)
    (folder / "sub" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def find(call, finished_run):
    """find(sentence, images, *more) -> what `timam search` answers as JSON."""

    def find(sentence: str, images: Path, *more: object) -> list[dict]:
        result = call("search", finished_run, *([sentence] if sentence else []), "--images", images, *more, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    return find


RED = "a person in a red coat"


def close(answers):  # a batch of one is multiplied by other kernels than a batch of two
    return [{**a, "score": pytest.approx(a["score"], abs=1e-6)} for a in answers]


def test_search_ranks_passes_over_what_it_cannot_read_and_keeps_what_it_encoded(call, find, finished_run, album):
    result = call("search", finished_run, RED, "--images", album, "--json")
    answers = json.loads(result.out)
    assert sorted(Path(a["path"]).name for a in answers) == ["0.png", "1.png", "2.png", "3.png"]
    scores = [a["score"] for a in answers]
    assert scores == sorted(scores, reverse=True)
    assert re.search(r"^warning: .*broken\.jpg: not a readable picture", result.err)
    kept = Run(finished_run).gallery(album) / "embeddings.npy"
    written = kept.stat().st_mtime_ns
    again = call("search", finished_run, RED, "--images", album, "-k", "2")
    assert again.out.splitlines() == [f"{a['score']:.4f}  {a['path']}" for a in answers[:2]]
    assert ("broken.jpg" in again.err, kept.stat().st_mtime_ns) == (True, written)
    (album / "sub/0.png").unlink()
    assert "0.png" not in {Path(a["path"]).name for a in find(RED, album)}
    like = call("search", finished_run, "--images", album, "--like", album / "sub/broken.jpg")
    assert_failed(like, "broken.jpg: not a readable picture")


def test_search_takes_sentences_from_a_file_and_draws_them(call, find, finished_run, album, tmp_path):
    text = f"{RED}\n\na man in blue\n"
    (tmp_path / "sentences.txt").write_text(text, encoding="utf-8-sig")  # with the mark that Windows' Notepad writes
    more = ["--sentences", tmp_path / "sentences.txt", "-k", "3"]
    found = find("", album, *more, "--figure", tmp_path / "sheet.png")
    assert [f["sentence"] for f in found] == [RED, "a man in blue"]
    assert found[1]["answers"] == close(find("a man in blue", album, "-k", "3"))
    assert len(call("search", finished_run, "--images", album, *more).out.splitlines()) == 8
    assert read_image(tmp_path / "sheet.png").width > 300


def test_search_answers_each_line_of_standard_input_at_once(call, find, finished_run, album, capsys, monkeypatch):
    typed, printed = ["\ufeffa man\n", "\n", "\udcff\n", f"{RED}\n", ""], []

    def readline() -> str:  # somebody who reads the answers before typing the next sentence
        printed.append(capsys.readouterr().out)
        return typed[len(printed) - 1]

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=readline, isatty=lambda: False))
    arguments = ["search", finished_run, "--images", album, "-k", "2"]
    assert call(*arguments, "--json").code == 0
    assert printed[0] == printed[2] == printed[3] == ""  # nothing, after a blank line and one that is no text
    for sentence, line in zip(("a man", RED), (printed[1], printed[4]), strict=True):
        assert json.loads(line) == {"sentence": sentence, "answers": close(find(sentence, album, "-k", "2"))}
    printed.clear()
    call(*arguments)
    assert [len(text.splitlines()) for text in printed] == [0, 3, 0, 0, 3]


def test_search_in_several_folders_in_a_parquet_of_embeddings_and_approximately(find, finished_run, album, tmp_path):
    write_picture(tmp_path / "more" / "red.png", "red", "green", 9)
    alone = find("a man", album)
    expected = sorted(alone + find("a man", tmp_path / "more"), key=lambda answer: -answer["score"])
    more = ["--images", tmp_path / "more"]
    assert find("a man", album, *more, "--images", album / "sub") == expected  # a picture of two folders once
    assert find("a man", album, *more, "-k", "3") == expected[:3]
    gallery = Gallery.build(Run(finished_run).best_model(), album)
    rows = [{"path": path, "embedding": 3 * row} for path, row in zip(gallery.paths, gallery.embeddings, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), album / "embeddings.parquet")
    assert find("a man", album / "embeddings.parquet") == close(alone)
    pytest.importorskip("faiss")
    assert find("a man", album, "--approximate") == close(alone)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("like", [False, True])
def test_search_scores_by_the_cosine_with_and_without_the_means(find, finished_run, album, tmp_path, like, centered):
    run, picture, sheet = Run(finished_run), album / "sub/2.png", tmp_path / "sheet.pdf"
    model, validation = run.best_model(), run.val_embeddings("best")
    query = ["", album, "--like", picture] if like else ["a man", album]
    answers = find(*query, "--figure", sheet, *["--centered"] * centered)
    assert (len(answers), sheet.stat().st_size > 1000) == (4, True)
    images = normalize(model.encode_images([a["path"] for a in answers]), dim=1)
    wanted = normalize(model.encode_images([picture]) if like else model.encode_texts(["a man"]), dim=1)
    if centered:
        side = validation.images if like else validation.texts
        images = images - normalize(validation.images, dim=1).mean(dim=0)
        wanted = wanted - normalize(side, dim=1).mean(dim=0)
    # What is left of an embedding of this tiny model is a thousandth of it: so much larger is the rounding, too.
    expected = pytest.approx(cosine_similarity(images, wanted).tolist(), abs=2e-3 if centered else 1e-6)
    assert [a["score"] for a in answers] == expected


def test_search_says_that_nothing_fits(call, find, finished_run, album, tmp_path, monkeypatch):
    scores = [answer["score"] for answer in find(RED, album)]
    unknown = call("search", finished_run, RED, "--images", album, "--threshold", "auto")
    assert_failed(unknown, "or test split has fewer than 10 identities")  # they have three
    saved = {"open_set": {"threshold": {"0.01": 2.0, "0.1": scores[2]}}}
    monkeypatch.setattr(Run, "metrics", lambda run: saved)
    for threshold in ("auto", scores[2]):
        assert [answer["score"] for answer in find(RED, album, "--threshold", threshold)] == scores[:2]
    nothing = ["--threshold", scores[0]]
    assert find(RED, album, *nothing) == []
    result = call("search", finished_run, RED, "--images", album, *nothing, "--figure", tmp_path / "sheet.png")
    assert (result.code, result.out) == (0, "nothing here fits\n")
    assert "sheet.png: not drawn, as nothing fits" in result.err
    assert not (tmp_path / "sheet.png").exists()


def test_search_prints_names_that_no_terminal_can_show(call, find, finished_run, tmp_path, monkeypatch):
    write_picture(tmp_path / "a" / "a.png")
    os.rename(tmp_path / "a/a.png", os.fsencode(tmp_path) + b"/a/caf\xe9.png")  # as Latin-1 writes it
    assert "caf\ufffd.png" in call("search", finished_run, "a man", "--images", tmp_path / "a").out
    (answer,) = find("a man", tmp_path / "a")
    assert Path(answer["path"]).is_file()  # a program gets the exact name
    write_picture(tmp_path / "b" / "图.png")
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as Windows redirects
    monkeypatch.setattr(sys, "stdout", output)
    assert call("search", finished_run, "a man", "--images", tmp_path / "b").code == 0
    output.flush()
    assert rb"\u56fe.png" in output.buffer.getvalue()
