"""The command line: help, exit codes, and one tiny run end to end."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import click
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import TINY_SETTINGS, person_search_records, write_parquet, write_person_search, write_picture
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize

from timam import cli, training
from timam.config import PRESETS
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


# -- help and wrong calls ---------------------------------------------------------------------------------------


HELP = {  # command: what its help must say of units, bounds and defaults
    "data pedestrians": ["Pixels", "[default: 192", "[default: 3.092", "0<=x<=1]", "Share of", "Processes"],
    "data check": ["[default: 120", "published"],
    "train": ["[default: quick]", "[smoke|quick|paper|modern|clip]", "[default: 0]", "KEY=VALUE", "pixels"],
    "evaluate": ["[val|test]", "[default: test]"],
    "search": ["[default: 10", "standard input", "at most 200 pictures", "cosine similarity in [-1, 1]", "x>=1"],
    "studies table": ["Mean in percent with its 95 % interval", "as fractions"],
}


def test_every_command_has_its_help_which_says_units_and_defaults_and_every_option_a_text(call):
    found, left = {}, [("", cli.cli)]
    while left:
        path, command = left.pop()
        found[path], context = command, click.Context(command)
        for name in command.list_commands(context) if isinstance(command, click.Group) else ():
            left.append((f"{path} {name}".strip(), command.get_command(context, name)))
        result = call(*path.split(), "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("Usage: timam")
        assert result.out == call(*path.split(), "-h").out
        assert [words for words in HELP.get(path, ()) if words not in " ".join(result.out.split())] == [], path
    assert set(found) == {*HELP, "", "data", "data oracle", "push", "studies"}
    options = [p for command in found.values() for p in command.params if p.param_type_name == "option"]
    assert len(options) > 20
    assert [p.name for p in options if not p.help] == []
    assert call("--version").out.strip().endswith(cli.__version__)


WRONG_CALLS = {
    "unknown preset": (["train", "--preset", "big", "--dataset", "csv", "--root", ".", "--output", "x"], "'big'"),
    "large seed": (["train", "--dataset", "csv", "--root", ".", "--output", "x", "--seed", "4294967296"], "train.seed"),
    "k of 0": (["search", ".", "a man", "--images", ".", "-k", "0"], "0"),
    "missing run": (["evaluate", "nowhere"], "nowhere"),
    "neither run nor pair": (["evaluate"], "give one of RUN and --pretrained"),
    "pair without data": (["evaluate", "--pretrained", "x/y"], "needs --dataset and --root"),
    "dataset without root": (["evaluate", ".", "--dataset", "cuhk-pedes"], "go together"),
    "two queries": (["search", ".", "a man", "--images", ".", "--like", __file__], "give one of SENTENCE"),
    "measured with sentences": (
        ["search", ".", "--images", ".", "--like", __file__, "--threshold", "auto"], "with --like give a number",
    ),
    "figure without suffix": (["search", ".", "a man", "--images", ".", "--figure", "f"], "ends in ."),
    "figure of standard input": (["search", ".", "--images", ".", "--figure", "f.png"], "the sentences beforehand"),
    "large figure": (["search", ".", "a man", "--images", ".", "-k", "201", "--figure", "f.png"], "at most 200"),
    "threshold in percent": (["search", ".", "a man", "--images", ".", "--threshold", "30"], "30: expected auto"),
    "calibrated otherwise": (
        ["search", ".", "a man", "--images", ".", "--centered", "--threshold", "auto"], "not --centered",
    ),
    "blank sentence": (["search", ".", " \t", "--images", "."], "sentence is empty"),
    "share above 0.9": (["data", "pedestrians", "--output", "x", "--omission", "0.95"], "0<=x<=0.9"),
    "many pictures": (["data", "pedestrians", "--output", "x", "--images-per-identity", "1001"], "1<=x<=1000"),
    "seed of 64 bits": (["data", "pedestrians", "--output", "x", "--seed", str(2**63)], "--seed"),
    "millions": (["data", "pedestrians", "--output", "x", "--identities", "2000000"], "train_identities"),
    "two identities": (["data", "pedestrians", "--output", "x", "--identities", "2"], "2"),
    "no one to train": (
        ["data", "pedestrians", "--output", "x", "--identities", "9", "--val-identities", "8"], "leaves none",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_call_is_exit_code_2(call, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.code == 2
    assert expected in result.err
    assert "Traceback" not in result.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [["data", "check", "--dataset", "csv", "--root", "~/x"], ["search", ".", "a man", "--images", "~/x"],
     ["train", "--dataset", "csv", "--output", "y", "--root", "~/x"], ["studies", "table", "~/x"]],
)  # fmt: skip
def test_tilde_is_the_home_folder(call, tmp_path, monkeypatch, arguments):  # the shell leaves that of --root=~/x
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/x" in call(*arguments).err


EARLY = """
import json, sys
from timam import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["timam", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        print(json.dumps([stop.code, [name for name in ("torch", "pandas", "pyarrow") if name in sys.modules]]))
"""


def test_mistakes_are_told_before_torch_is_imported(people, tmp_path):
    """Each is told with its exit code in half a second; torch and transformers would take several."""
    train = ["train", "--dataset", "cuhk-pedes", "--output", str(tmp_path / "run"), "--root"]
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/config.json").write_text(json.dumps(asdict(PRESETS["smoke"])))
    calls = {
        (*train, str(people), "--set", "train.epochs=many"): (2, "train.epochs = 'many': expected a valid integer"),
        (*train, str(people), "--set", "train.epochs"): (2, "expected KEY=VALUE"),
        (*train, str(people), "--set", "train.speed=3"): (2, "unknown setting train.speed"),
        (*train, str(people), "--set", "images_per_identity=3"): (2, "expected a divisor of 32"),
        (*train, f"{tmp_path}/nowhere"): (1, f"{tmp_path}/nowhere: no such folder"),
        ("evaluate", str(tmp_path)): (1, f"{tmp_path} is not a run"),
        ("evaluate", str(tmp_path / "unfinished")): (1, "not a run with a finished epoch"),
        ("search", str(tmp_path), "a man", "--images", str(people)): (1, f"{tmp_path} is not a run"),
        ("search", str(tmp_path), "a man", "--images", "nowhere"): (1, "nowhere: no such folder"),
        ("push", str(tmp_path), "somebody/people"): (1, f"{tmp_path} is not finished"),
    }
    command = [sys.executable, "-c", EARLY, json.dumps(list(calls))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [[code, []] for code, _ in calls.values()]
    errors = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    for error, (_, message) in zip(errors, calls.values(), strict=True):
        assert message in error
    assert not (tmp_path / "run").exists()


# -- data check -------------------------------------------------------------------------------------------------


def test_check_prints_the_statistics_of_each_split(call, tmp_path):
    records = person_search_records(train=3, val=2, test=2)
    records[0]["captions"] = ["one two three four five", "six", "seven"]
    result = call("data", "check", "--dataset", "cuhk-pedes", "--root", write_person_search(tmp_path, records))
    assert (result.code, result.err) == (0, "")
    train, val, test, protocol, note, *few, last = result.out.splitlines()
    numbers = (
        r"identities +3 \(published 11,003\) +pictures +6 \(published 34,054\) +captions +13 \(published 68,126\) "
    )
    assert re.search("train .*" + numbers, train)
    assert "(at most 9)" in train  # a person in a red coat and blue trousers
    assert train.endswith("5 with 2, 1 with 3")
    for name, line in (("val", val), ("test", test)):
        assert re.search(rf"{name} .*identities +2 .*pictures +4 .*captions +8 ", line)
    assert protocol.startswith("protocol: identity: relevant is every picture (or caption) of the same identity")
    assert note.startswith("note: a part or another version of the benchmark: 6 images in train, published 34,054")
    assert len(few) == 2  # that val and test are small
    assert "0 problem(s), 0 warning(s)" in last


def test_check_names_every_problem_pictures_content_included(call, tmp_path):
    records = person_search_records()
    root = write_person_search(tmp_path, records)
    records[1]["captions"] = []
    (root / "reid_raw.json").write_text(json.dumps(records))
    (root / "imgs" / records[2]["file_path"]).unlink()
    truncated, empty = (root / "imgs" / records[i]["file_path"] for i in (6, 20))
    truncated.write_bytes(truncated.read_bytes()[:-60])
    empty.write_bytes(b"")
    result = call("data", "check", "--dataset", "cuhk-pedes", "--root", root)
    problems = [line for line in result.err.splitlines() if line.startswith("problem: ")]
    assert (result.code, len(problems), "4 problem(s)" in result.out) == (1, 4, True)
    for words in ("record 1: it has no captions", "record 2: no such picture", str(truncated), str(empty)):
        assert sum(words in p for p in problems) == 1, words
    assert "warning: partial download: 1 of 23 pictures are missing, by folder: cam_a 1 of 23" in result.err


def test_check_lets_pass_what_may_be_meant_so(call, tmp_path):
    records = person_search_records()
    for record in records[::2]:
        record["captions"] = ["a person"]
    result = call("data", "check", "--dataset", "cuhk-pedes", "--root", write_person_search(tmp_path, records))
    assert (result.code, "0 problem(s), 0 warning(s), 1 remark(s)" in result.out) == (0, True)
    assert result.err.startswith("remark: 1 captions stand under three or more identities")


# -- train ------------------------------------------------------------------------------------------------------


def test_run_directory_is_complete(finished_run, people):
    config = json.loads((finished_run / "config.json").read_text())
    assert config["preset"] == "smoke"
    assert config["data"]["root"] == str(people)
    assert config["train"]["epochs"] == 2
    history = pd.read_csv(finished_run / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"total", "matching", "identification_image", "identification_text", "adversarial", "discriminator",
            "discriminator_accuracy", "image_lr", "text_lr", "discriminator_lr", "seconds",
            "val_text_to_image_rank_1", "val_image_to_text_mAP"} <= set(history)  # fmt: skip
    assert history.notna().all().all()
    for name in ("last", "best"):
        found = {p.name for p in (finished_run / "checkpoints" / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer"} <= found
    assert sorted(p.name for p in (finished_run / "checkpoints").iterdir()) == ["best", "last"]
    suffixes = {p.suffix for p in finished_run.rglob("*") if p.is_file() and p.name != "SHA256SUMS"}
    assert suffixes <= {".json", ".safetensors", ".csv", ".md"}  # nothing pickled


def test_metrics_have_the_agreed_form(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["split"]) == ("cuhk-pedes", "test")
    assert metrics["best_epoch"] in (1, 2)
    assert metrics["seconds"] > 0
    for direction, sizes in (("text_to_image", (12, 6)), ("image_to_text", (6, 12))):  # 3 identities x 2 x 2 captions
        found = metrics[direction]
        assert (found["queries"], found["gallery"]) == sizes
        assert all(0 <= found[key] <= 1 for key in ("rank_1", "rank_5", "rank_10", "mAP", "mINP"))
    assert {"centroid_distance", "probe_accuracy"} <= set(metrics["modality_gap"])
    provenance = metrics["provenance"]
    assert {"commit", "python", "torch", "transformers", "device"} <= set(provenance)
    assert re.fullmatch("[0-9a-f]{16}", provenance["data_fingerprint"])


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_finished_run_is_left_as_it_is(call, finished_run, people, tmp_path, monkeypatch, more):
    before = content_of(finished_run)
    monkeypatch.setattr(training._Training, "open_data", lambda *_: pytest.fail("started again"))
    result = call(*train_arguments(write_person_search(tmp_path, train=3), finished_run, *more))
    assert (result.code, "was begun on other data" in result.err) == (1, True)
    result = call(*train_arguments(people, finished_run, *more))
    assert (result.code, "complete already; nothing to do" in result.out, "text_to_image" in result.out) == (0, 1, 1)
    for other, said in ((["--set", "train.epochs=3"], "train.epochs: 2 there, 3 asked for"),
                        (["--seed", "7"], "train.seed: 0 there, 7 asked for")):  # fmt: skip
        result = call(*train_arguments(people, finished_run, *other, *more))
        assert (result.code, "another config" in result.err, said in result.err) == (1, True, True)
    assert content_of(finished_run) == before


def test_folder_that_cannot_be_trained_in_is_refused_and_an_interrupted_run_resumed(
    call, finished_run, people, tmp_path, monkeypatch
):
    write_picture(tmp_path / "mine" / "thesis.png")
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "metrics.json").unlink()
    for folder, expected in ((tmp_path / "mine", "not empty and holds no run"), (run, "--resume")):
        before = content_of(folder)
        result = call(*train_arguments(people, folder))
        assert (result.code, expected in result.err) == (1, True)
        assert content_of(folder) == before
    assert call(*train_arguments(people, run, "--resume")).code == 0
    old, new = (json.loads((r / "metrics.json").read_text()) for r in (finished_run, run))
    assert new["text_to_image"] == old["text_to_image"]
    monkeypatch.setattr(training, "fit", Mock(side_effect=Interrupted))
    result = call(*train_arguments(people, tmp_path / "other"))
    assert (result.code, "--resume" in result.err) == (130, True)


@pytest.mark.parametrize(("broken", "settings"), [(["train", "val", "test"], []), ([], ["--set", "backbone=resnet7"])])
def test_nothing_is_written_when_the_data_or_the_settings_are_bad(call, tmp_path, broken, settings):
    records = person_search_records(train=3, val=1, test=1)
    root = write_person_search(tmp_path / "data", records)
    paths = [next(r["file_path"] for r in records if r["split"] == split) for split in broken]
    for path in paths:
        (root / "imgs" / path).write_bytes(b"\x89PNG")
    result = call(*train_arguments(root, tmp_path / "run", *settings))
    assert (result.code, "error: " in result.err, "Traceback" in result.err) == (1, True, False)
    expected = [f"{path}: not a readable picture" for path in paths] or ["resnet7"]
    assert all(words in result.err for words in expected)
    assert not (tmp_path / "run").exists()


# -- evaluate ---------------------------------------------------------------------------------------------------


def test_evaluate_reproduces_the_runs_numbers_and_takes_another_split_and_other_data(call, finished_run, tmp_path):
    result = call("evaluate", finished_run, "--json")
    assert result.code == 0
    found, metrics = json.loads(result.out), json.loads((finished_run / "metrics.json").read_text())
    for key in ("dataset", "split", "text_to_image", "image_to_text", "modality_gap"):
        assert found[key] == metrics[key], key
    table = call("evaluate", finished_run, "--split", "val").out
    best = pd.read_csv(finished_run / "history.csv").iloc[metrics["best_epoch"] - 1]
    assert "val split (percent)" in table
    row = next(line for line in table.splitlines() if line.startswith("text_to_image"))
    assert f"{100 * best['val_text_to_image_mAP']:.2f}" in row.split()
    assert ", chance " in row
    other = write_person_search(tmp_path, train=0, val=0, test=5)  # the other splits are not needed
    result = call("evaluate", finished_run, "--dataset", "cuhk-pedes", "--root", other, "--json")
    assert json.loads(result.out)["text_to_image"]["gallery"] == 10


@pytest.mark.slow
def test_parquet_of_the_hubs_cache_with_renamed_columns_is_checked_trained_on_and_evaluated(
    call, tmp_path, monkeypatch
):
    hub = tmp_path / "datasets--org--people"
    rows = {
        s: [{"said": [f"a man {i}", "in red"]} for i in range(n)] for s, n in (("train", 4), ("val", 2), ("test", 2))
    }
    write_parquet(hub / "snapshots/abc", rows)
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    data = ["--dataset", "parquet", "--root", "org/people", "--column", "caption=said"]
    report = json.loads(call("data", "check", *data, "--preset", "quick", "--json").out)
    assert report["problems"] == []
    assert any("0.0% of the captions have more than 48 tokens" in note for note in report["notes"])
    assert "no column caption" in call("data", "check", *data[:4]).err
    assert "expected NAME=COLUMN" in call("data", "check", *data[:4], "--column", "caption").err
    run = tmp_path / "run"
    assert call("train", "--preset", "smoke", *data, "--output", run, *SETTINGS).code == 0
    kept = json.loads((run / "config.json").read_text())["data"]
    assert (kept["root"], kept["columns"]) == (str(hub / "snapshots/abc"), "caption=said")
    for more in ([], data):
        found = json.loads(call("evaluate", run, *more, "--json").out)
        assert found["text_to_image"] == json.loads((run / "metrics.json").read_text())["text_to_image"]
    other = call("train", "--dataset", "parquet", "--root", "org/nothing", "--output", tmp_path / "other")
    assert (other.code, "`hf download --repo-type dataset" in other.err) == (1, True)


# -- search -----------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path) -> Path:
    folder = tmp_path / "album"
    for i, colour in enumerate(["red", "green", "blue", "yellow"]):
        write_picture(folder / "sub" / f"{i}.png", colour, "black", i)
    write_picture(folder / "UPPER.PNG", "white", "white")
    (folder / "sub" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def find(call, finished_run):
    """find(sentence, images, *more) -> what `timam search` answers as JSON."""

    def find(*arguments: object) -> list[dict]:
        sentence, images, *more = arguments
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
    assert sorted(Path(a["path"]).name for a in answers) == ["0.png", "1.png", "2.png", "3.png", "UPPER.PNG"]
    scores = [a["score"] for a in answers]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.0001 <= s <= 1.0001 for s in scores)
    assert "warning: " in result.err
    assert "broken.jpg: not a readable picture" in result.err
    kept = Run(finished_run).gallery(album) / "embeddings.npy"
    written = kept.stat().st_mtime_ns
    again = call("search", finished_run, RED, "--images", album, "-k", "2")
    assert again.out.splitlines() == [f"{a['score']:.4f}  {a['path']}" for a in answers[:2]]
    assert ("broken.jpg" in again.err, kept.stat().st_mtime_ns) == (True, written)
    (album / "sub/0.png").unlink()
    assert "0.png" not in {Path(a["path"]).name for a in find(RED, album)}


def test_search_takes_sentences_from_a_file_and_draws_them(call, find, finished_run, album, tmp_path):
    text = f"{RED}\n\na man in blue\n"
    (tmp_path / "sentences.txt").write_text(text, encoding="utf-8-sig")  # with the mark that Windows' Notepad writes
    more = ["--sentences", tmp_path / "sentences.txt", "-k", "3"]
    found = find("", album, *more, "--figure", tmp_path / "sheet.png")
    assert [f["sentence"] for f in found] == [RED, "a man in blue"]
    assert found[1]["answers"] == close(find("a man in blue", album, "-k", "3"))
    assert len(call("search", finished_run, "--images", album, *more).out.splitlines()) == 8
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300


def test_search_answers_each_line_of_standard_input_at_once(call, find, finished_run, album, capsys, monkeypatch):
    typed, printed = ["\ufeffa man\n", "\n", f"{RED}\n", ""], []

    def readline() -> str:  # somebody who reads the answers before typing the next sentence
        printed.append(capsys.readouterr().out)
        return typed[len(printed) - 1]

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=readline, isatty=lambda: False))
    arguments = ["search", finished_run, "--images", album, "-k", "2"]
    assert call(*arguments, "--json").code == 0
    assert printed[0] == printed[2] == ""
    for sentence, line in zip(("a man", RED), (printed[1], printed[3]), strict=True):
        assert json.loads(line) == {"sentence": sentence, "answers": close(find(sentence, album, "-k", "2"))}
    printed.clear()
    call(*arguments)
    assert [len(text.splitlines()) for text in printed] == [0, 3, 0, 3]


def test_search_in_several_folders_in_a_parquet_of_embeddings_and_approximately(find, finished_run, album, tmp_path):
    write_picture(tmp_path / "more" / "red.png", "red", "green", 9)
    alone = find("a man", album)
    expected = sorted(alone + find("a man", tmp_path / "more"), key=lambda answer: -answer["score"])
    more = ["--images", tmp_path / "more"]
    assert find("a man", album, *more, "--images", album / "sub") == expected  # a picture of two folders once
    assert find("a man", album, *more, "-k", "3") == expected[:3]
    gallery = Gallery.build(Run(finished_run).best_model(), album)
    rows = [{"path": path, "embedding": row} for path, row in zip(gallery.paths, gallery.embeddings, strict=True)]
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
    assert (len(answers), sheet.stat().st_size > 1000) == (5, True)
    images = normalize(model.encode_images([a["path"] for a in answers]), dim=1)
    wanted = normalize(model.encode_images([picture]) if like else model.encode_texts(["a man"]), dim=1)
    if centered:
        side = validation.images if like else validation.texts
        images = images - normalize(validation.images, dim=1).mean(dim=0)
        wanted = wanted - normalize(side, dim=1).mean(dim=0)
    # What is left of an embedding of this tiny model is a thousandth of it: so much larger is the rounding, too.
    expected = pytest.approx(cosine_similarity(images, wanted).tolist(), abs=2e-3 if centered else 1e-6)
    assert [a["score"] for a in answers] == expected


@pytest.mark.parametrize("threshold", ["auto", "X"])
def test_search_says_that_nothing_fits(call, find, finished_run, album, tmp_path, monkeypatch, threshold):
    scores = [answer["score"] for answer in find(RED, album)]

    def fitting(value: float) -> list[object]:
        monkeypatch.setattr(Run, "metrics", lambda run: {"open_set": {"threshold": {"0.01": 2.0, "0.1": value}}})
        return ["--threshold", threshold if threshold == "auto" else value]

    assert [answer["score"] for answer in find(RED, album, *fitting(scores[2]))] == scores[:2]
    assert find(RED, album, *fitting(scores[0])) == []
    figure = ["--figure", tmp_path / "sheet.png"]
    result = call("search", finished_run, RED, "--images", album, *fitting(scores[0]), *figure)
    assert (result.code, result.out) == (0, "nothing here fits\n")
    assert "sheet.png: not drawn, as nothing fits" in result.err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("more", "expected", "lines"),
    [
        (["a man", "--threshold", "auto"], "or test split has fewer than 10 identities", 0),  # they have three
        (["--like", "sub/broken.jpg"], "broken.jpg: not a readable picture", 0),
        (["a man", "--figure", "f.png", "-k", "2"], "no such font", 2),  # answers are printed before
        (["a man", "--images", "empty"], "empty", 0),
    ],
    ids=["threshold", "picture", "figure", "folder"],
)
def test_search_that_fails_is_exit_code_1(call, finished_run, album, monkeypatch, more, expected, lines):
    monkeypatch.chdir(album)
    (album / "empty").mkdir()
    monkeypatch.setattr("timam_lab.rankings.rankings", Mock(side_effect=ValueError("no such font")))
    result = call("search", finished_run, "--images", album, *more)
    assert (result.code, len(result.out.splitlines()), expected in result.err) == (1, lines, True)


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
