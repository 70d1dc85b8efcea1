"""Hostile input: whatever stands in a file, a setting or a call is taken correctly or refused by name.

What the readers, the config, the images and the models' own tests already refuse is not repeated here. `fuzz.py` looks
for more of the same with coverage as its guide.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from conftest import tiny_language_model, word_piece_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import (
    karpathy_images,
    person_search_records,
    write_karpathy,
    write_person_search,
    write_picture,
    write_reed,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from timam.checkpoints import Progress, RunError, load_checkpoint, save_checkpoint

from timam import TIMAM, cli
from timam import config as configs
from timam.data import DATASETS, SPLITS, DataError, Dataset, load_dataset, read_dataset
from timam.data.check import check_dataset
from timam.evaluation import Embeddings, read_metrics
from timam.files import read_json
from timam.images import ImageError, read_image, to_pixels
from timam.models.weights import build_backbone
from timam.search import Gallery, open_gallery

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "notebooks"))

import execute  # noqa: E402

bounded = settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
fewer = settings(bounded, max_examples=15)


def refusal(call, *arguments) -> str | None:
    """The message of the ValueError that the call raises; None where it does not."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return None


# -- nothing that runs code -------------------------------------------------------------------------------------

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"joblib.load", "yaml.load", "yaml.unsafe_load", "os.system", "pd.read_pickle", "pandas.read_pickle"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unsafe(source: str) -> list[str]:
    """What in a file could run code that a data or model file brings along."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {n}" for n in names if n.partition(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        wrong = name in RUNS_CODE | UNSAFE
        wrong |= name.endswith("torch.load") and options.get("weights_only") != "True"
        wrong |= options.get("allow_pickle", "False") != "False"
        wrong |= options.get("trust_remote_code", "False") != "False"
        wrong |= options.get("shell", "False") != "False"
        if wrong:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def sources() -> dict[str, str]:
    files = [p for folder in ("timam", "notebooks", "benchmarks") for p in (REPOSITORY / folder).rglob("*.py")]
    code = {str(p.relative_to(REPOSITORY)): p.read_text(encoding="utf-8") for p in files}
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        code[path.name] = re.sub(r"^(\s*)[%!].*$", r"\1pass", lines, flags=re.MULTILINE)  # Jupyter's own lines
    return code


def test_no_file_is_loaded_in_a_way_that_runs_code():
    code = sources()
    assert len(code) > 45
    assert {name: lines for name, text in code.items() if (lines := unsafe(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "import pickle", "from pickle import loads",
        "np.load(path, allow_pickle=True)", "AutoModel.from_pretrained(name, trust_remote_code=True)", "eval(text)",
        "yaml.load(file)", "import joblib", "pd.read_pickle(path)", "subprocess.run(line, shell=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=asked)",
    ],
)  # fmt: skip
def test_what_would_run_code_is_found(line):
    assert unsafe(line)
    assert not unsafe("torch.load(path, weights_only=True); np.load(path); model.eval()")


# -- JSON -------------------------------------------------------------------------------------------------------

BAD_JSON = {
    "key twice": (b'[{"a": 1, "b": 2, "a": 3}]', "key 'a' stands twice"),
    "NaN": (b"[NaN]", "NaN is no finite number"),
    "infinity": (b"[-Infinity]", "-Infinity is no finite number"),
    "overflow": (b"[1e999]", "1e999 is no finite number"),
    "deep": (b"[" * 10_000 + b"]" * 10_000, None),  # a Python that reads it must not crash later
    "bytes": (b'["\xff"]', "utf-8"),
    "no number": (b"[01]", "JSON"),
    "rest": (b"[] []", "Extra data"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_parsers_read_differently_is_refused(tmp_path, content, expected):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = refusal(read_json, path)
    if message is not None or expected is not None:
        assert str(path) in message
        assert (expected or "recursion") in message


def test_json_with_a_byte_order_mark_is_read_and_our_own_may_hold_infinity(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(path) == {"a": "é"}
    path.write_text(json.dumps([math.inf, 1.5]))
    assert read_json(path, finite=False) == [math.inf, 1.5]


def test_object_of_many_keys_is_no_hang(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{" + ",".join(f'"{i}": 0' for i in range(200_000)) + ', "7": 1}')
    with pytest.raises(ValueError, match="'7' stands twice"):
        read_json(path)


# -- every reader -----------------------------------------------------------------------------------------------

CLASSES = {"train": ["001.A", "002.B"], "val": ["003.C"], "test": ["004.D"]}


def rename(root: Path, old: str, new: str) -> Path:
    (root / old).rename(root / new)
    return root


def write_table(root: Path) -> Path:
    (root / "p").mkdir(parents=True)
    rows = [["image_path", "caption", "identity", "split"]]
    for i in range(6):
        write_picture(root / f"p/{i}.png", seed=i)
        rows += [[f"p/{i}.png", f"sentence {k} of {i}", str(i), SPLITS[i // 2]] for k in range(2)]
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def write_rstp(root: Path) -> Path:
    write_person_search(root, train=3, val=1, test=1)
    records = json.loads((root / "reid_raw.json").read_text())
    for record in records:
        record["img_path"] = record.pop("file_path")
    (root / "data_captions.json").write_text(json.dumps(records))
    return root


def write_caption_all(root: Path) -> Path:
    write_person_search(root, train=3, val=1, test=1)
    records = json.loads((root / "reid_raw.json").read_text())
    split = {s: sorted({r["id"] for r in records if r["split"] == s}) for s in SPLITS}
    (root / "split.json").write_text(json.dumps(split))
    bare = [{k: v for k, v in r.items() if k != "split"} for r in records]
    (root / "caption_all.json").write_text(json.dumps(bare))
    (root / "reid_raw.json").unlink()
    return root


def small(root: Path) -> Path:
    return write_person_search(root, train=3, val=1, test=1)


def write_karpathy_as(name: str, root: Path) -> Path:
    return write_karpathy(root, karpathy_images(train=2, val=1, test=1), "images", name)


# what a layout is called here: (its reader, how to write it, the file that hostile content replaces)
LAYOUTS = {
    "pedestrians": ("pedestrians", small, "reid_raw.json"),
    "cuhk-pedes": ("cuhk-pedes", small, "reid_raw.json"),
    "caption_all": ("cuhk-pedes", write_caption_all, "caption_all.json"),
    "split": ("cuhk-pedes", write_caption_all, "split.json"),
    "icfg-pedes": ("icfg-pedes", lambda r: rename(small(r), "reid_raw.json", "ICFG-PEDES.json"), "ICFG-PEDES.json"),
    "rstp-reid": ("rstp-reid", write_rstp, "data_captions.json"),
    "flickr8k": ("flickr8k", partial(write_karpathy_as, "flickr8k"), "dataset_flickr8k.json"),
    "flickr30k": ("flickr30k", partial(write_karpathy_as, "flickr30k"), "dataset_flickr30k.json"),
    "coco": ("coco", partial(write_karpathy_as, "coco"), "dataset_coco.json"),
    "cub": ("cub", lambda r: write_reed(r, CLASSES, images=1, captions=2), "trainclasses.txt"),
    "cub captions": ("cub", lambda r: write_reed(r, CLASSES, images=1, captions=2), "text_c10/001.A/A_0000.txt"),
    "flowers": ("flowers", lambda r: write_reed(r, CLASSES, flat=True, images=1, captions=2), "testclasses.txt"),
    "csv": ("csv", write_table, "captions.csv"),
}  # fmt: skip
JSON_LAYOUTS = [name for name, (_, _, file) in LAYOUTS.items() if file.endswith(".json")]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """layouts(name) -> a root of that layout, written once; a test puts its own content in the hostile file's place."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = LAYOUTS[name][1](tmp_path_factory.mktemp("layout") / "root")
        return made[name]

    return get


def assert_sound(dataset: Dataset, problems: list[str], root: Path) -> None:
    """What every reader promises of what it gives, whatever it was given."""
    assert all(isinstance(p, str) for p in problems)
    for r in dataset.records:
        assert isinstance(r.identity, int)
        assert not isinstance(r.identity, bool)
        assert -(2**63) <= r.identity < 2**63
        assert r.split in SPLITS
        assert r.captions
        assert all(isinstance(c, str) and c.strip() and len(c) <= 100_000 for c in r.captions)
        assert (dataset.image_root / r.image).resolve().is_relative_to(root.resolve())
    for name in {r.split for r in dataset.records}:
        split = dataset.split(name)
        assert np.array_equal(np.unique(split.image_labels), np.arange(len(split.identities)))
        assert [int(split.identities[k]) for k in split.image_labels] == [
            r.identity for r in dataset.records if r.split == name
        ]
    if not problems:
        dataset.fingerprint()


def read_hostile(name: str, root: Path, content: bytes) -> tuple[Dataset, list[str]]:
    reader, _, file = LAYOUTS[name]
    (root / file).write_bytes(content)
    dataset, problems = read_dataset(reader, root)
    assert_sound(dataset, problems, root)
    if problems:
        message = str(DataError("data", problems))
        assert len(message) < 60_000
        assert all(c.isprintable() or c == "\n" for c in message)
    return dataset, problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["train", "test", "cam_a/p1_0.png", "../x.png", "a\0b", "\ud800", 2**63, -(2**63), 1, 1.0, "1"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", JSON_LAYOUTS)
@bounded
@given(content=values)
def test_any_json_is_read_or_refused(layouts, name, content):
    read_hostile(name, layouts(name), json.dumps(content).encode())


@pytest.mark.parametrize("name", [n for n in JSON_LAYOUTS if n != "split"])
@bounded
@given(data=st.data())
def test_a_record_with_any_value_in_any_place_is_taken_or_named(layouts, name, data):
    _, write, file = LAYOUTS[name]
    root = layouts(name)
    fresh = layouts(name).parent / "fresh"
    if not fresh.exists():
        write(fresh)
    content = json.loads((fresh / file).read_text())
    entries = content["images"] if isinstance(content, dict) else content
    key = data.draw(st.sampled_from(sorted(entries[1])))
    value = data.draw(values)
    entries[1][key] = value
    dataset, problems = read_hostile(name, root, json.dumps(content).encode())
    what = "image" if isinstance(content, dict) else "record"
    if finite(value):
        # Nothing but the changed record is lost, and what is wrong is said of it, or of its identity's splits.
        assert len(dataset.records) >= len(entries) - 1
        assert all(p.startswith((f"{file} {what} 1", "identity ")) for p in problems)
        assert problems or any(r.source == f"{file} {what} 1" for r in dataset.records)
    else:
        assert "finite" in problems[0]


def finite(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("name", LAYOUTS)
@fewer
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(layouts, name, content):
    read_hostile(name, layouts(name), content)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path, name, kind):
    reader, write, file = LAYOUTS[name]
    root = write(tmp_path / "root")
    (root / file).unlink()
    if kind == "pipe":
        os.mkfifo(root / file)
    elif kind == "folder":
        (root / file).mkdir()
    else:
        (root / file).symlink_to("/dev/zero")  # reading it never ends
    problems = read_dataset(reader, root)[1]
    assert problems
    assert Path(file).name in problems[0]


def test_ten_megabytes_of_caption_are_refused_in_a_short_message(tmp_path):
    records = person_search_records(train=3, val=1, test=1)
    records[2]["captions"][1] = "a man " * 1_700_000
    records[3]["captions"][0] = "a man " * 16_000  # 96,000 characters: long, and taken
    records[4]["captions"][0] = " " * 10_000_000
    root = write_person_search(tmp_path, records)
    problems = check_dataset("cuhk-pedes", root)["problems"]
    assert problems[0] == "reid_raw.json record 2: caption 1 has 10,200,000 characters; expected at most 100,000"
    assert problems[1].startswith("reid_raw.json record 4: caption 0 = '    ")
    assert len(problems) == 2
    assert len(problems[1]) < 600


def test_messages_of_control_characters_do_not_reach_the_terminal(tmp_path):
    records = person_search_records(train=3, val=1, test=1)
    records[2]["file_path"] = "cam_a/\x1b]0;title\x07\x1b[2J.png"
    (small(tmp_path) / "reid_raw.json").write_text(json.dumps(records))
    (line,) = check_dataset("cuhk-pedes", tmp_path)["problems"]
    assert line.endswith(r"cam_a/\x1b]0;title\x07\x1b[2J.png")
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", tmp_path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("identity", [2**63, -(2**63) - 1, 10**30, 3.0, "3", True])
def test_identity_that_is_no_64_bit_integer_is_refused(tmp_path, identity):
    # NumPy would turn a list of 1 and 2**63 into floats, and so two persons into one.
    records = person_search_records(train=3, val=1, test=1)
    records[2]["id"] = identity
    (small(tmp_path) / "reid_raw.json").write_text(json.dumps(records))
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", tmp_path)
    assert caught.value.problems[0] == f"reid_raw.json record 2: id = {identity!r}: expected int"


# -- paths and links --------------------------------------------------------------------------------------------


def test_linked_root_picture_folder_and_folders_in_it_are_followed_and_said(tmp_path):
    store = small(tmp_path / "store")
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(store / "reid_raw.json", root)
    (root / "imgs").symlink_to(store / "imgs")
    (tmp_path / "link").symlink_to(root)
    for given_root in (root, tmp_path / "link"):
        dataset = load_dataset("cuhk-pedes", given_root)
        assert dataset.notes == ("links lead out of the root to the pictures of imgs/cam_a",)
    (root / "imgs").unlink()
    (root / "imgs").mkdir()
    (root / "imgs/cam_a").symlink_to(store / "imgs/cam_a")
    assert len(load_dataset("cuhk-pedes", root).records) == 10
    assert load_dataset("cuhk-pedes", store).notes == ()


def test_linked_folders_of_coco_are_followed(tmp_path):
    images = karpathy_images()
    for image in images:
        image["filepath"] = "val2014"
    store = write_karpathy(tmp_path / "store", images, ".", "coco")
    (tmp_path / "root").mkdir()
    shutil.copy(store / "dataset_coco.json", tmp_path / "root")
    (tmp_path / "root/val2014").symlink_to(store / "val2014")
    assert len(load_dataset("coco", tmp_path / "root").records) == 7


def test_single_link_is_followed_only_inside_and_named_with_its_target(tmp_path):
    root = small(tmp_path / "root")
    records = json.loads((root / "reid_raw.json").read_text())
    outside = tmp_path / "private.png"
    write_picture(outside)
    names = [root / "imgs" / r["file_path"] for r in records]
    (root / "pool").mkdir()
    names[0].rename(root / "pool/a.png")
    names[0].symlink_to(root / "pool/a.png")  # as DVC and git-annex keep files: elsewhere, but in the root
    assert load_dataset("cuhk-pedes", root).records[0].image == records[0]["file_path"]
    names[1].unlink()
    names[1].symlink_to(outside)
    dataset, problems = read_dataset("cuhk-pedes", root)
    assert problems == [
        f"reid_raw.json record 1: picture path 'cam_a/p1_1.png' is a link that leaves the data root {root}; "
        f"copy {outside} into it"
    ]
    assert len(dataset.records) == 9  # and nothing opens it


def test_a_way_up_through_a_linked_folder_is_refused(tmp_path):
    root = small(tmp_path / "root")
    (tmp_path / "elsewhere/market").mkdir(parents=True)
    write_picture(tmp_path / "elsewhere/private.png")
    (root / "imgs/market").symlink_to(tmp_path / "elsewhere/market")
    records = json.loads((root / "reid_raw.json").read_text())
    records[1]["file_path"] = "market/../private.png"  # by its text inside imgs, by the links not
    (root / "reid_raw.json").write_text(json.dumps(records))
    (problem,) = read_dataset("cuhk-pedes", root)[1]
    assert problem.startswith("reid_raw.json record 1: picture path 'market/../private.png' leaves the data root")


def test_classes_and_captions_outside_the_root_are_not_read(tmp_path):
    root = write_reed(tmp_path / "root", CLASSES, images=1, captions=2)
    write_reed(tmp_path / "other", {"train": ["005.E"]}, images=1)
    secret = tmp_path / "secret.txt"
    secret.write_text("a password")
    (root / "text_c10/001.A/A_0000.txt").unlink()
    (root / "text_c10/001.A/A_0000.txt").symlink_to(secret)
    (root / "trainclasses.txt").write_text(
        f"001.A\n002.B\n../../other/text_c10/005.E\n{tmp_path}/other/text_c10/005.E\n"
    )
    dataset, problems = read_dataset("cub", root)
    assert {r.source.split("/")[1] for r in dataset.records} == {"002.B", "003.C", "004.D"}
    assert "trainclasses.txt: '../../other/text_c10/005.E': expected a class name" in problems
    assert any("A_0000.txt' is a link that leaves the data root" in p for p in problems)
    assert "password" not in str(problems)


def test_two_classes_of_one_number_are_refused(tmp_path):
    root = write_reed(tmp_path, {**CLASSES, "test": ["004.D", "04.E"]}, images=1, captions=2)
    assert read_dataset("cub", root)[1][0] == "class 04.E (test split): its number, 04, is that of 004.D"


pieces = st.sampled_from([*"./\\~ab\0\n", "..", "/", "cam_a", "é", "\udcff", "\ud800"])
names = st.lists(pieces, max_size=8).map("".join)


@bounded
@given(name=names)
def test_no_path_of_an_annotation_leaves_the_root(layouts, name):
    root = layouts("cuhk-pedes")
    records = person_search_records(train=3, val=1, test=1)
    records[2]["file_path"] = name
    problems = read_hostile("cuhk-pedes", root, json.dumps(records).encode())[1]
    assert len(problems) == 1
    assert problems[0].startswith("reid_raw.json record 2: ")
    report = check_dataset("cuhk-pedes", root)  # opens pictures
    assert len([p for p in report["problems"] if "record 2" in p]) == 1


def test_check_goes_on_after_a_name_that_no_file_can_have(tmp_path):
    records = person_search_records(train=3, val=1, test=1)
    records[2]["file_path"] = "x" * 300 + ".png"
    records[3]["captions"] = []
    (small(tmp_path) / "reid_raw.json").write_text(json.dumps(records))
    problems = check_dataset("cuhk-pedes", tmp_path)["problems"]
    assert ["record 3: it has no captions" in problems[0], "record 2: picture path 'xxx" in problems[1]] == [True, True]


# -- split files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"train": 5}, "split.json train: expected a list, found int"),
        ({"train": "abc"}, "split.json train: expected a list, found str"),
        ({"train": [[1]]}, "split.json train entry 0: [1]: expected a file_path or an id"),
        ({"train": [True]}, "split.json train entry 0: True: expected a file_path or an id"),  # equals 1 in Python
        ({"train": [1.0]}, "split.json train entry 0: 1.0: expected a file_path or an id"),
        ({"train": [{"id": 1}]}, "split.json train entry 0: None: expected a file_path or an id"),
        ([1, 2], "split.json: expected an object of lists of splits"),
    ],
)
def test_split_file_of_another_form_is_named(tmp_path, content, expected):
    root = write_caption_all(tmp_path)
    (root / "split.json").write_text(json.dumps(content))
    assert expected in read_dataset("cuhk-pedes", root)[1]


def test_damaged_split_file_is_named_and_not_passed_over(tmp_path):
    root = write_caption_all(tmp_path)
    (root / "train.json").write_text("[1,")
    assert read_dataset("cuhk-pedes", root)[1][0].startswith(f"{root / 'train.json'}: not readable as JSON")


# -- tables -----------------------------------------------------------------------------------------------------

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@bounded
@given(
    captions=st.lists(cell.filter(lambda t: t.strip()), min_size=12, max_size=12), identities=st.permutations(range(6))
)
def test_a_table_of_any_text_comes_back_as_it_was(layouts, captions, identities):
    root = layouts("csv")
    with (root / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "caption", "identity"])
        writer.writerows([f"p/{i // 2}.png", c, f"{identities[i // 2]}.0"] for i, c in enumerate(captions))
    dataset = load_dataset("csv", root)
    assert [c for r in dataset.records for c in r.captions] == [c.strip() for c in captions]
    assert [r.identity for r in dataset.records] == list(identities)  # 3.0, as pandas writes it, is 3


@bounded
@given(
    rows=st.lists(st.lists(st.text(max_size=6) | st.sampled_from(["p/0.png", "train", "1"]), max_size=6), max_size=6)
)
def test_a_table_of_any_rows_is_read_or_refused(layouts, rows):
    root = layouts("csv")
    lines = [",".join(r) for r in [["image_path", "caption", "identity", "split"], *rows]]
    read_hostile("csv", root, "\n".join(lines).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # A reader that takes the first column for an index shifts all values by one.
        ("image_path,caption\np/0.png,a man, in red\n", "row 1: 3 values; expected 2 (a caption with a"),
        ("image_path,caption\np/0.png\n", "row 1: 1 values; expected 2"),
        ("image_path,caption, caption\np/0.png,a,b\n", "two columns caption"),
        ("image_path,caption,identity\np/0.png,a,nan\n", "row 1: identity = 'nan': expected a name or a whole number"),
        ("image_path,caption,identity\np/0.png,a,None\n", "row 1: identity = 'None'"),
        ('image_path,caption\np/0.png,"a" b\n', "line 2: "),
        ("image_path,caption\np/0.png," + "a" * 200_000 + "\n", "field larger than field limit"),
    ],
)  # fmt: skip
def test_table_that_could_be_misread_is_refused(tmp_path, content, expected):
    root = write_table(tmp_path / "root")
    (root / "captions.csv").write_text(content)
    problem = read_dataset("csv", root)[1][0]
    assert "captions.csv" in problem
    assert expected in problem


def test_identities_that_are_one_number_in_two_forms_are_warned_of(tmp_path):
    root = write_table(tmp_path / "root")
    rows = [f"p/{i}.png,a man,{identity}" for i, identity in enumerate(["3", "3.0", "4", "5", "6", "7"])]
    (root / "captions.csv").write_text("\n".join(["image_path,caption,identity", *rows]))
    dataset, problems = read_dataset("csv", root)
    assert problems == []
    assert len({r.identity for r in dataset.records}) == 6
    assert dataset.warnings == ("captions.csv: identities 3 and 3.0 are one number and were read as two names",)


PARQUET = {
    "whole floats": ({"identity": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}, None),
    "whole floats as text": ({"identity": [f"{i}.0" for i in range(6)]}, None),
    "missing identity": ({"identity": [0.0, None, 2.0, 3.0, 4.0, 5.0]}, "row 2: identity is empty"),
    "NaN": ({"identity": [0.0, math.nan, 2.0, 3.0, 4.0, 5.0]}, "row 2: identity is empty"),
    "infinity": ({"identity": [0.0, math.inf, 2.0, 3.0, 4.0, 5.0]}, "row 2: identity = inf"),
    "fraction": ({"identity": [0.0, 1.5, 2.0, 3.0, 4.0, 5.0]}, "row 2: identity = 1.5"),
    "truth": ({"identity": [True] * 6}, "row 1: identity = True"),
    "lists of captions": ({"caption": [["a man", "a coat"]] * 6}, "row 1: caption 0 = ['a man', 'a coat']"),
    "bytes": ({"caption": [b"a man"] * 6}, "row 1: caption 0 = b'a man'"),
    "numbers": ({"caption": [1.5] * 6}, "row 1: caption 0 = 1.5"),
    "path a number": ({"image_path": list(range(6))}, "row 1: image_path = 0: expected str"),
    "no path": ({"image_path": [None] * 6}, "row 1: image_path is empty"),
    "split a number": ({"split": [1] * 6}, "row 1: unknown split 1"),
    "no rows": ({k: pa.array([], pa.string()) for k in ("image_path", "caption", "identity", "split")}, "no records"),
}


@pytest.mark.parametrize(("changes", "expected"), PARQUET.values(), ids=PARQUET)
def test_parquet_of_any_type_is_read_as_numbers_and_text_or_refused(tmp_path, changes, expected):
    root = write_table(tmp_path / "root")
    (root / "captions.csv").unlink()
    columns = {"image_path": [f"p/{i}.png" for i in range(6)], "caption": ["a man"] * 6, "identity": list(range(6)),
               "split": [SPLITS[i // 2] for i in range(6)]}  # fmt: skip
    pq.write_table(pa.table({**columns, **changes}), root / "captions.parquet")
    dataset, problems = read_dataset("csv", root)
    assert_sound(dataset, problems, root)
    if expected is None:
        assert problems == []
        assert [r.identity for r in dataset.records] == list(range(6))
    else:
        assert expected in problems[0]
        assert "captions.parquet" in problems[0]


@fewer
@given(data=st.data())
def test_damaged_parquet_is_refused(layouts, data):
    root = layouts("csv").parent / "parquet"
    if not root.exists():
        shutil.copytree(layouts("csv"), root)
        (root / "captions.csv").unlink()
    table = pa.table({"image_path": [f"p/{i}.png" for i in range(6)], "caption": ["a man"] * 6})
    pq.write_table(table, root / "captions.parquet", compression="none")
    content = bytearray((root / "captions.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "captions.parquet").write_bytes(content)
    dataset, problems = read_dataset("csv", root)
    assert_sound(dataset, problems, root)


def test_lines_of_a_caption_file_end_only_at_line_ends(tmp_path):
    root = write_reed(tmp_path, CLASSES, images=1, captions=2)
    (root / "text_c10/001.A/A_0000.txt").write_bytes("one\x0cbird\r\ntwo\x85birds\u2028sing\n".encode())
    dataset, problems = read_dataset("cub", root)
    assert problems == []
    assert dataset.records[0].captions == ("one\x0cbird", "two\x85birds\u2028sing")


def test_every_reader_has_a_layout_here():
    assert {reader for reader, _, _ in LAYOUTS.values()} == set(DATASETS)


# -- config -----------------------------------------------------------------------------------------------------


@bounded
@given(data=st.data())
def test_a_config_of_any_value_is_taken_as_it_is_or_refused_by_name(tmp_path, data):
    content = configs.to_dict(configs.Config())
    section = data.draw(st.sampled_from(configs.SECTIONS))
    key = data.draw(st.sampled_from(sorted(content[section])) | st.text(max_size=6))
    value = data.draw(values)
    content[section][key] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    if message := refusal(configs.load, path):
        assert str(path) in message
        assert len(message) < 3000
    else:
        taken = configs.to_dict(configs.load(path))[section][key]
        assert taken == value or str(taken).lower() == str(value).strip().lower() or taken == float(value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"train": {"image_lr": 1' + "0" * 400 + "}}", "train.image_lr"),
        ('{"train": {"epochs": 3}, "train": {"epochs": 4}}', "key 'train' stands twice"),
        ('{"train": {"image_lr": NaN}}', "no finite number"),
        ('{"model": {"embedding_dim": 1000000000000}}', "1 to 65,536"),
    ],
)
def test_config_that_could_be_misread_is_refused(tmp_path, content, expected):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        configs.load(path)
    assert expected in str(caught.value)


keys = st.sampled_from(["epochs", "data.root", "train.image_lr", "max_steps", "horizontal_flip"])


@bounded
@given(assignment=st.text(max_size=20) | st.tuples(keys, st.text(max_size=12)).map("=".join))
def test_any_override_is_taken_or_refused(assignment):
    message = refusal(configs.override, configs.Config(), [assignment])
    assert message is None or re.search("expected|unknown", message)


# -- pictures ---------------------------------------------------------------------------------------------------


def test_picture_between_pillows_limits_is_read_with_its_warning_and_beyond_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a phone's 108 megapixels lie between the real ones
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(ImageError, match=r"large\.png.*DecompressionBombError"):
        read_image(path)


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_row_of_pixels_is_refused_before_it_is_decoded(tmp_path, size):
    path = tmp_path / "row.png"
    Image.new("1", size).save(path)
    with pytest.raises(ImageError, match=r"row\.png.*expected at most 65,535 a side"):
        read_image(path)


def test_postscript_under_the_name_of_a_picture_starts_no_program(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started a program"))
    with pytest.raises(ImageError, match=r"a\.jpg.*cannot identify image file"):
        read_image(path)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@fewer
@given(data=st.data())
def test_damaged_picture_is_refused_or_gives_pixels(tmp_path, format_name, data):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 10, 60)).save(buffer, format_name)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    message = refusal(lambda: to_pixels(read_image(path), 8, 4))
    assert message is None or "a.jpg" in message


# -- saved models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = configs.ModelConfig(
        backbone="squeezenet1_1", backbone_weights="none", image_height=64, image_width=32, max_tokens=16,
        lstm_hidden=8, embedding_dim=16, discriminator_hidden=8,
    )  # fmt: skip
    tokenizer = word_piece_tokenizer()
    language_model = tiny_language_model(len(tokenizer))
    TIMAM(config, 4, tokenizer, build_backbone("squeezenet1_1", "none"), language_model).save_pretrained(folder)
    return folder


def json_edit(file: str, *keys: str, **values):
    """Changes an object inside a JSON file; a value of ... removes the key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        part = content
        for key in keys:
            part = part[key]
        for key, value in values.items():
            if value is ...:
                del part[key]
            else:
                part[key] = value
        (folder / file).write_text(json.dumps(content))

    return change


def tensor_edit(name: str, change):
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        state[name] = change(state[name])
        save_file(state, folder / "model.safetensors")

    return edit


TOKENIZER, LANGUAGE = "tokenizer/tokenizer_config.json", "language_model_config"
FOREIGN_CODE = {"AutoTokenizer": ["evil.Tokenizer", None]}
RESNET = {"model_type": "detr", "backbone": "microsoft/resnet-50", "use_pretrained_backbone": True}
KERNEL = {"_attn_implementation": "kernels-community/flash-attn"}

# what would fetch, run or allocate something, or fail in a library later: (change of a saved model, what is said)
HOSTILE_MODELS = {
    "foreign code": (json_edit(TOKENIZER, auto_map=FOREIGN_CODE, tokenizer_class="Evil"), "is damaged"),
    "foreign class": (json_edit(TOKENIZER, tokenizer_class="BertJapaneseTokenizer"), "tokenizer is damaged"),
    "tokenizer class a number": (json_edit(TOKENIZER, tokenizer_class=5), "tokenizer is damaged"),
    "padding token a number": (json_edit(TOKENIZER, pad_token=5), "tokenizer is damaged"),
    "no padding token": (json_edit(TOKENIZER, pad_token=...), "no padding token"),
    "tokenizer a list": (lambda f: (f / "tokenizer/tokenizer.json").write_text("[]"), "tokenizer is damaged"),
    "unknown model": (json_edit("tokenizer/tokenizer.json", model={"type": "Evil"}), "tokenizer is damaged"),
    "negative word": (json_edit("tokenizer/tokenizer.json", "model", "vocab", red=-1), "tokenizer is damaged"),
    "unknown word": (json_edit("tokenizer/tokenizer.json", "model", "vocab", red=10**6), "up to 1000000"),
    "backbone fetches": (json_edit("config.json", "model", backbone="fasterrcnn_resnet50_fpn"), "not a class"),
    "language model fetches": (json_edit("config.json", language_model_config=RESNET), "asks for backbone"),
    "default fetches": (json_edit("config.json", language_model_config={"model_type": "detr"}), "asks for backbone"),
    "kernel of the hub": (json_edit("config.json", LANGUAGE, **KERNEL), "asks for attn_implementation"),
    "quantization": (json_edit("config.json", LANGUAGE, quantization_config={}), "quantization_config"),
    "a million layers": (json_edit("config.json", LANGUAGE, num_hidden_layers=10**6), "1,000,000 layers"),
    "a billion labels": (json_edit("config.json", LANGUAGE, num_labels=10**9, hidden_size=10), "not fit config.json"),
    "terabytes of identities": (json_edit("config.json", num_identities=10**12), "does not fit config.json"),
    "terabytes of states": (json_edit("config.json", LANGUAGE, hidden_size=10**7), "does not fit config.json"),
    "identities a float": (json_edit("config.json", num_identities=4.0), "num_identities = 4.0"),
    "key twice": (lambda f: (f / "config.json").write_text('{"model": {}, "model": {}}'), "stands twice"),
    "NaN": (tensor_edit("class_bias", lambda t: t * math.nan), "class_bias holds other"),
    "infinity": (tensor_edit("class_bias", lambda t: t + math.inf), "class_bias holds other"),
    "complex": (tensor_edit("class_bias", lambda t: t.to(torch.complex64)), "class_bias holds other"),
    "weights no file": (lambda f: rename(f, "model.safetensors", "w").joinpath("model.safetensors").mkdir(), "it has"),
}  # fmt: skip


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Online as far as the libraries know, and every connection is an error of the test."""

    def refuse(*_, **__):
        raise AssertionError("asked for the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("builtins.input", refuse)  # transformers asks whether to run foreign code


@pytest.mark.parametrize("name", HOSTILE_MODELS)
def test_hostile_model_is_refused_without_the_network(saved_model, tmp_path, no_network, name):
    change, expected = HOSTILE_MODELS[name]
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    change(folder)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        TIMAM.from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert expected in str(caught.value)
    assert "asked for the network" not in str(caught.value)


@bounded
@given(data=st.data())
def test_damaged_file_of_a_model_is_refused_by_name_or_does_no_harm(saved_model, tmp_path, data):
    name = data.draw(st.sampled_from(["config.json", "model.safetensors", TOKENIZER, "tokenizer/tokenizer.json"]))
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved_model, folder)
    content = bytearray((folder / name).read_bytes())
    end = min(len(content), 9000)  # of safetensors: the header
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    try:
        model = TIMAM.from_pretrained(folder)
    except (FileNotFoundError, ValueError) as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert model.encode_texts(["a man in a red hat"]).isfinite().all()


@bounded
@given(text=st.text(max_size=30))
def test_any_text_is_embedded_or_refused(saved_model, text):
    model = embedding_model(saved_model)
    message = refusal(model.encode_texts, [text])
    if message is None:
        assert model.encode_texts([text]).isfinite().all()
    else:
        assert not text.strip() or re.search(r"[\ud800-\udfff]", text)


@cache
def embedding_model(folder: Path) -> TIMAM:
    return TIMAM.from_pretrained(folder)


def test_ten_megabytes_of_query_are_refused(saved_model):
    model = embedding_model(saved_model)
    with pytest.raises(ValueError, match=r"texts\[0\] has 10,000,000 characters; expected at most 100,000"):
        model.encode_texts(["red hat " * 1_250_000])
    short = model.encode_texts(["red hat " * 100])
    torch.testing.assert_close(model.encode_texts(["red hat " * 12_500]), short)  # both are cut to the same pieces


# -- galleries and run directories ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_gallery(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    rows = np.eye(3, 8, dtype=np.float32)
    Gallery(rows, ["a.png", "b.png", "c.png"], folder, np.ones((3, 2), np.int64), "m").save(folder / "kept")
    return folder / "kept"


def table_of(**changes):
    columns = {"path": pa.array([b"a.png", b"b.png", b"c.png"]), "bytes": [1, 1, 1], "changed_ns": [1, 1, 1], **changes}
    return lambda f: pq.write_table(pa.table(columns), f / "pictures.parquet")


def rows_of(array):
    return lambda f: np.save(f / "embeddings.npy", array, allow_pickle=True)


HOSTILE_GALLERIES = {
    "a list": lambda f: (f / "gallery.json").write_text("[]"),
    "folder a number": json_edit("gallery.json", folder=5),
    "deep": lambda f: (f / "gallery.json").write_text("[" * 10_000),
    "pickled": rows_of(np.array([{"a": 1}] * 3, dtype=object)),
    "text": rows_of(np.array([["a"] * 8] * 3)),
    "float64": rows_of(np.eye(3, 8)),
    "complex": rows_of(np.eye(3, 8, dtype=np.complex64)),
    "fewer rows": rows_of(np.eye(2, 8, dtype=np.float32)),
    "no table": lambda f: (f / "pictures.parquet").write_bytes(b"PAR1" * 20),
    "paths numbers": table_of(path=[1, 2, 3]),
    "paths missing": table_of(path=pa.array([b"a.png", None, b"c.png"])),
    "path outside": table_of(path=pa.array([b"a.png", b"../b.png", b"c.png"])),
    "absolute path": table_of(path=pa.array([b"a.png", b"/etc/hostname", b"c.png"])),
    "sizes missing": table_of(bytes=[1, None, 1]),
    "sizes text": table_of(bytes=["1", "1", "1"]),
}


@pytest.mark.parametrize("name", HOSTILE_GALLERIES)
def test_hostile_gallery_is_refused_by_name(saved_gallery, tmp_path, name):
    shutil.copytree(saved_gallery, tmp_path / "kept")
    HOSTILE_GALLERIES[name](tmp_path / "kept")
    with pytest.raises(ValueError, match="is a damaged gallery") as caught:
        Gallery.load(tmp_path / "kept")
    assert str(tmp_path / "kept") in str(caught.value)


def test_gallery_of_no_numbers_gives_no_answers(saved_gallery, tmp_path):
    shutil.copytree(saved_gallery, tmp_path / "kept")
    rows = np.eye(3, 8, dtype=np.float32)
    rows[1, 1] = np.nan  # NaN would come first
    rows_of(rows)(tmp_path / "kept")
    with pytest.raises(ValueError, match="no numbers"):
        Gallery.load(tmp_path / "kept").search(torch.ones(1, 8))


@fewer
@given(data=st.data())
def test_damaged_gallery_is_refused_or_searched(saved_gallery, tmp_path, data):
    folder = tmp_path / "kept"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved_gallery, folder)
    path = folder / data.draw(st.sampled_from(["gallery.json", "pictures.parquet", "embeddings.npy"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message = refusal(lambda: Gallery.load(folder).search(torch.ones(1, 8)))
    assert message is None or "gallery" in message or "expected finite" in message


RANKS = dict.fromkeys(("rank_1", "rank_5", "rank_10", "mAP", "mINP", "queries", "gallery"), 1.0)
METRICS = {"dataset": "csv", "split": "test", "best_epoch": 1, "seconds": 1.0, "text_to_image": RANKS,
           "image_to_text": RANKS, "modality_gap": {"alignment": math.nan}, "provenance": {}}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"text_to_image": None}, {"text_to_image": {}}, {"text_to_image": {**RANKS, "mAP": math.nan}},
     {"image_to_text": {**RANKS, "rank_1": "1"}}, {"image_to_text": {**RANKS, "rank_1": -1}},
     {"provenance": []}, {"best_epoch": "1"}, {"dataset": 5}],
)  # fmt: skip
def test_metrics_that_no_run_wrote_are_refused(tmp_path, change):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(METRICS))
    assert read_metrics(path)["text_to_image"] == RANKS
    path.write_text(json.dumps({**METRICS, **change}))
    with pytest.raises(ValueError, match=re.escape(f"{path} holds no metrics of a run")):
        read_metrics(path)


@bounded
@given(content=values)
def test_any_metrics_are_refused_by_name(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    assert str(path) in refusal(read_metrics, path)


def split_tensors(**changes) -> dict[str, torch.Tensor]:
    labels = {"image_labels": torch.tensor([0, 1]), "text_labels": torch.tensor([0, 1, 1])}
    tensors = {"images": torch.eye(2, 4), "texts": torch.ones(3, 4), **labels, **changes}
    return {k: v for k, v in tensors.items() if v is not None}


@pytest.mark.parametrize(
    "change",
    [{"images": None}, {"more": torch.ones(1)}, {"texts": torch.ones(3, 5)}, {"text_labels": torch.tensor([0, 1])},
     {"images": torch.tensor([[0.0, math.nan, 0, 0]] * 2)}, {"image_labels": torch.tensor([0.5, 1])},
     {"images": torch.ones(2)}, {"texts": torch.ones(3, 4, dtype=torch.int64)}],
)  # fmt: skip
def test_embeddings_of_another_form_are_refused(tmp_path, change):
    path = tmp_path / "test_embeddings.safetensors"
    save_file(split_tensors(), path)
    assert torch.equal(Embeddings.load(path).images, torch.eye(2, 4))
    save_file(split_tensors(**change), path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Embeddings.load(path)
    path.write_bytes(b"\x80\x04pickle" * 9)
    with pytest.raises(ValueError, match="is damaged"):
        Embeddings.load(path)


def checkpoint(folder: Path) -> tuple[torch.nn.Module, dict, dict]:
    """A checkpoint of one step, and what it is loaded into."""
    model = torch.nn.Linear(2, 2)
    model.save_pretrained = lambda target: save_file(model.state_dict(), target / "model.safetensors")
    optimizers = {"image": torch.optim.Adam(model.parameters(), lr=1e-3)}
    schedulers = {"image": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers["image"], mode="max")}
    if not folder.exists():
        model(torch.ones(1, 2)).sum().backward()
        optimizers["image"].step()
        row = {"val_text_to_image_rank_1": 0.5, "seconds": 1.0}
        save_checkpoint(folder, model, optimizers, schedulers, Progress([row], data_fingerprint="f", code=["c"]))
    return model, optimizers, schedulers


def optimizer_edit(slot: str, value: torch.Tensor):
    def change(folder: Path) -> None:
        tensors = load_file(folder / "optimizers.safetensors")
        save_file({**tensors, slot: value}, folder / "optimizers.safetensors")

    return change


STATE = "training_state.json"
HOSTILE_STATES = {
    "a list": lambda f: (f / STATE).write_text("[]"),
    "key twice": lambda f: (f / STATE).write_text('{"progress": {}, "progress": {}}'),
    "deep": lambda f: (f / STATE).write_text("[" * 10_000),
    "history a text": json_edit(STATE, "progress", history="abc"),
    "history of texts": json_edit(STATE, "progress", history=["abc"]),
    "score NaN": json_edit(STATE, "progress", history=[{"val_text_to_image_rank_1": math.nan, "seconds": 1}]),
    "score a text": json_edit(STATE, "progress", history=[{"val_text_to_image_rank_1": "1", "seconds": 1}]),
    "unknown progress": json_edit(STATE, "progress", colour="red"),
    "step a text": json_edit(STATE, "progress", step="1"),
    "step below 0": json_edit(STATE, "progress", step=-1),
    "sums NaN": json_edit(STATE, "progress", sums={"total": math.nan}),
    "code a text": json_edit(STATE, "progress", code="abc"),
    "unfrozen a float": json_edit(STATE, "progress", unfrozen_at=1.5),
    "no groups": json_edit(STATE, param_groups={}),
    "rate a text": json_edit(STATE, "param_groups", "image", 0, lr="fast"),
    "rate NaN": json_edit(STATE, "param_groups", "image", 0, lr=math.nan),
    "other decay": json_edit(STATE, "param_groups", "image", 0, weight_decay=0.5),
    "slot of another size": optimizer_edit("image/0/exp_avg", torch.ones(3)),
    "slot NaN": optimizer_edit("image/0/exp_avg", torch.full((2, 2), math.nan)),
    "slot of nobody": optimizer_edit("image/x/exp_avg", torch.ones(2, 2)),
}


@pytest.mark.parametrize("name", HOSTILE_STATES)
def test_hostile_training_state_is_refused_by_name(tmp_path, name):
    folder = tmp_path / "last"
    checkpoint(folder)
    assert load_checkpoint(folder, *checkpoint(folder)).epoch == 1
    HOSTILE_STATES[name](folder)
    (folder / "SHA256SUMS").unlink(missing_ok=True)  # whoever means harm writes its own
    with pytest.raises(RunError, match=re.escape(f"{folder} is damaged")):
        load_checkpoint(folder, *checkpoint(folder))


# -- command line and notebooks ---------------------------------------------------------------------------------


def command(monkeypatch, capfd, *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["timam", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capfd.readouterr().err


def test_command_line_refuses_what_is_not_utf8(saved_model, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    shutil.copytree(saved_model, run / "checkpoints/best")
    write_picture(tmp_path / "album/a.png")
    code, message = command(monkeypatch, capfd, "search", run, "red \udcff hat", "--images", tmp_path / "album")
    assert (code, "texts[0] = 'red \\udcff hat': expected a sentence" in message) == (1, True)
    (tmp_path / "sentences.txt").write_bytes(b"a red hat\n\xff\n")
    arguments = ["search", run, "--sentences", tmp_path / "sentences.txt", "--images", tmp_path / "album"]
    code, message = command(monkeypatch, capfd, *arguments)
    assert (code, "sentences.txt: 'utf-8' codec" in message) == (2, True)


@pytest.mark.slow  # a new interpreter
def test_root_that_is_not_utf8_is_checked_and_named(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    small(root)
    arguments = [sys.executable, "-m", "timam", "data", "check", "--dataset", "cuhk-pedes", "--root", root]
    result = subprocess.run(arguments, capture_output=True, cwd=REPOSITORY, check=False)
    assert result.returncode == 0, result.stderr
    assert b"caf\xe9: 0 problem(s)" in result.stdout


@pytest.mark.parametrize(
    ("declared", "text"),
    [("float", "1e999"), ("float", "NaN"), ("float", "Infinity"), ("int", "1e3"), ("int", "[" * 10_000), ("int", ""),
     ("float", "1" + "0" * 400), ("int", "1" * 5000), ("bool", "1"), ("str", "a\0b"), ("str", "\udcff"),
     ("str", "\x1b[2J")],
)  # fmt: skip
def test_notebook_parameter_of_the_wrong_type_is_refused(declared, text):
    with pytest.raises(SystemExit, match=r"parameter level = .*: expected"):
        execute._typed("level", text, declared)


@bounded
@given(declared=st.sampled_from(["int", "float", "bool", "str"]), text=st.text(max_size=12))
def test_any_notebook_parameter_is_taken_as_declared_or_refused(declared, text):
    try:
        value = execute._typed("level", text, declared)
    except SystemExit as stop:
        assert "parameter level" in str(stop.code)  # noqa: PT017
    else:
        assert type(value).__name__ == declared or (declared, type(value)) == ("float", int)
        assert isinstance(value, str) or math.isfinite(value)


def test_notebook_parameter_given_twice_is_refused(tmp_path):
    arguments = ["--output", str(tmp_path), "-p", "seed", "1", "-p", "seed", "2", "01_data_exploration"]
    result = CliRunner().invoke(execute.main, arguments)
    assert (result.exit_code, "parameter seed is given twice" in result.output) == (2, True)


# -- no network -------------------------------------------------------------------------------------------------


def test_data_config_model_and_search_ask_for_no_network(saved_model, tmp_path, no_network):
    for name in LAYOUTS:
        load_dataset(LAYOUTS[name][0], LAYOUTS[name][1](tmp_path / name))
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(configs.PRESETS["quick"])))
    assert configs.load(tmp_path / "config.json") == configs.PRESETS["quick"]
    model = TIMAM.from_pretrained(saved_model)
    gallery = open_gallery(model, tmp_path / "csv/p", tmp_path / "kept")
    assert gallery.search(model.encode_texts(["a man"]), k=2)[1].shape == (1, 2)
    with pytest.raises(AssertionError, match="asked for the network"):  # the guard itself
        socket.create_connection(("localhost", 9))
