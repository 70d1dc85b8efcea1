"""Hostile input: nothing from outside runs code, asks for the network or allocates without bound.

Pictures, saved models, sentences and arguments from others are used correctly or refused by name. Hostile annotation
files are in test_readers.py.
"""

import functools
import json
import math
import os
import re
import shutil
import socket
from pathlib import Path

import click
import pytest
from conftest import bounded, build_tiny
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS, write_picture
from PIL import Image
from safetensors.torch import load_file, save_file
from test_notebooks import execute

from timam import TIMAM
from timam.data import load_dataset
from timam.images import ImageError, read_image, to_pixels
from timam_lab.galleries import open_gallery

REPOSITORY = Path(__file__).parents[1]

# What ruff has no rule for (pyproject.toml selects those against eval, exec, pickle, yaml.load and shells).
UNSAFE = re.compile(
    r"torch\.load\((?!.*weights_only=True)|(allow_pickle|trust_remote_code)\s*=\s*(?!False)"
    r"|^[\s\"]*(import|from) (pickle|dill|cloudpickle|joblib|marshal|shelve)\b",
    re.MULTILINE,
)


def test_no_file_is_loaded_in_a_way_that_runs_code():
    files = [p for folder in ("timam", "timam_lab", "notebooks") for p in (REPOSITORY / folder).rglob("*.*")]
    code = {p.name: p.read_text(encoding="utf-8") for p in files if p.suffix in (".py", ".ipynb")}
    assert len(code) > 45
    assert {name: found[0] for name, text in code.items() if (found := UNSAFE.search(text))} == {}
    for line in ("torch.load(f, weights_only=False)", "from joblib import load", "load(name, trust_remote_code=asked)"):
        assert UNSAFE.search(line)


# -- pictures ---------------------------------------------------------------------------------------------------


def test_picture_between_pillows_limits_is_read_with_its_warning_and_beyond_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    for size in ((70_000, 1), (1, 70_000)):  # before it is decoded
        Image.new("1", size).save(path)
        with pytest.raises(ImageError, match=r"large\.png.*expected at most 65,535 a side"):
            read_image(path)
    Image.new("1", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # a phone's 108 megapixels lie between the real ones
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(ImageError, match=r"large\.png.*DecompressionBombError"):
        read_image(path)


def test_postscript_under_the_name_of_a_picture_starts_no_program(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started a program"))
    with pytest.raises(ImageError, match=r"a\.jpg.*cannot identify image file"):
        read_image(path)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@bounded
@given(data=st.data())
def test_damaged_picture_is_refused_or_gives_pixels(tmp_path, format_name, data):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (9, 7), (200, 10, 60)).save(path, format_name)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        to_pixels(read_image(path), 8, 4)
    except ImageError as error:
        assert "a.jpg" in str(error)  # noqa: PT017


# -- saved models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny(backbone="squeezenet1_1").save_pretrained(folder)
    return folder


def json_edit(file: str, *keys: str, **values):
    """Changes an object inside a JSON file."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        functools.reduce(dict.__getitem__, keys, content).update(values)
        (folder / file).write_text(json.dumps(content))

    return change


def not_a_number(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | {"class_bias": state["class_bias"] * math.nan}, folder / "model.safetensors")


TOKENIZER, LANGUAGE = "tokenizer/tokenizer_config.json", "language_model_config"
FOREIGN_CODE = {"AutoTokenizer": ["evil.Tokenizer", None]}
RESNET = {"model_type": "detr", "backbone": "microsoft/resnet-50", "use_pretrained_backbone": True}
KERNEL = {"_attn_implementation": "kernels-community/flash-attn"}

# what would fetch, run or allocate something, or fail in a library later: (change of a saved model, what is said)
HOSTILE_MODELS = {
    "foreign code": (json_edit(TOKENIZER, auto_map=FOREIGN_CODE, tokenizer_class="Evil"), "tokenizer is damaged"),
    "no padding token": (json_edit(TOKENIZER, pad_token=None), "no padding token"),
    "unknown word": (json_edit("tokenizer/tokenizer.json", "model", "vocab", red=10**6), "up to 1000000"),
    "backbone fetches": (json_edit("config.json", "model", backbone="fasterrcnn_resnet50_fpn"), "not a class"),
    "language model fetches": (json_edit("config.json", language_model_config=RESNET), "asks for backbone"),
    "kernel of the hub": (json_edit("config.json", LANGUAGE, **KERNEL), "asks for attn_implementation"),
    "quantization": (json_edit("config.json", LANGUAGE, quantization_config={}), "quantization_config"),
    "a million layers": (json_edit("config.json", LANGUAGE, num_hidden_layers=10**6), "1,000,000 layers"),
    "a billion labels": (json_edit("config.json", LANGUAGE, num_labels=10**9, hidden_size=10), "not fit config.json"),
    "terabytes of states": (json_edit("config.json", LANGUAGE, hidden_size=10**7), "does not fit config.json"),
    "identities a float": (json_edit("config.json", num_identities=4.0), "gives no model: TypeError"),
    "NaN": (not_a_number, "class_bias holds other"),
    "half the weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
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
    shutil.copytree(saved_model, folder, dirs_exist_ok=True)
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


@pytest.fixture(scope="module")
def model(saved_model) -> TIMAM:
    return TIMAM.from_pretrained(saved_model)


@bounded
@given(text=st.text(max_size=30) | st.text(st.sampled_from("a \ud800"), max_size=30))
def test_any_text_is_embedded_or_refused(model, text):
    try:
        assert model.encode_texts([text]).isfinite().all()
    except ValueError:
        assert not text.strip() or re.search(r"[\ud800-\udfff]", text)


# -- command line and notebooks ---------------------------------------------------------------------------------


def test_command_line_refuses_what_is_not_utf8(saved_model, tmp_path, call):
    run = tmp_path / "run"
    shutil.copytree(saved_model, run / "checkpoints/best")
    write_picture(tmp_path / "album/a.png")
    said = call("search", run, "red \udcff hat", "--images", tmp_path / "album")
    assert (said.code, "texts[0] = 'red \\udcff hat': expected a sentence" in said.err) == (1, True)
    (tmp_path / "sentences.txt").write_bytes(b"a red hat\n\xff\n")
    said = call("search", run, "--sentences", tmp_path / "sentences.txt", "--images", tmp_path / "album")
    assert (said.code, "sentences.txt: 'utf-8' codec" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("declared", "text"),
    [("int", "three"), ("int", "3.5"), ("int", "true"), ("bool", "1"), ("float", "1e999"), ("int", "1" * 4000),
     ("int", "[" * 10_000), ("str", "a\0b")],
)  # fmt: skip
def test_notebook_parameter_of_the_wrong_type_is_refused(declared, text):
    with pytest.raises(SystemExit, match=r"parameter level = .*: expected"):
        execute._typed("level", text, declared)
    with pytest.raises(click.UsageError, match="parameter seed is given twice"):
        execute._given((("seed", "1"), ("seed", "2")))


def test_data_model_and_search_ask_for_no_network(saved_model, tmp_path, no_network):
    for layout, (name, write, _) in LAYOUTS.items():
        load_dataset(name, write(tmp_path / layout))
    model = TIMAM.from_pretrained(saved_model)
    gallery = open_gallery(model, tmp_path / "csv/p", tmp_path / "kept")
    assert gallery.search(model.encode_texts(["a man"]), k=2)[1].shape == (1, 2)
    with pytest.raises(AssertionError, match="asked for the network"):  # the guard itself
        socket.create_connection(("localhost", 9))
