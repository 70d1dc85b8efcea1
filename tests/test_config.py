"""timam.config: presets, bounds, JSON, KEY=VALUE overrides, and the fingerprints that name run directories."""

from __future__ import annotations

import json
import os
import pickle
import re
import typing
from collections import Counter
from dataclasses import asdict

import pytest

from timam import config as configs
from timam.config import PRESETS, Config, departures, fingerprint, flat, from_dict, override
from timam.run import Run

# What design.md section 1 marks as recalled of the paper, and this repository's answer to what the paper leaves open.
PAPER = {
    "data": {"batch_size": 64},
    "model": {"backbone": "resnet101", "language_model": "bert-base-uncased", "language_model_weights": True,
              "lstm_summary": "max", "embedding_dim": 512, "shared_classifier": True, "normalized_classifier": True},
    "loss": {"identification_weight": 1.0, "matching_weight": 1.0, "adversarial_weight": 1.0, "matching": "cmpm",
             "adversarial_form": "alternating", "adversarial_input": "raw", "gradient_penalty": 0.0},
    "train": {"discriminator_steps": 1, "image_optimizer": "sgd", "text_optimizer": "adam", "image_lr": 2e-4,
              "text_lr": 2e-4, "discriminator_optimizer": "sgd", "discriminator_lr": 2e-4, "weight_decay": 4e-4,
              "schedule": "plateau", "minimum_lr": 2e-6},
}  # fmt: skip

INF, NAN = float("inf"), float("nan")
# settings: (values just inside their bounds, values just outside)
BOUNDS = {
    "data.batch_size": ([2, 2**20], [1, 2**20 + 1]),
    "data.images_per_identity": ([1, 4, 64], [3, 128]),  # a divisor of the batch size, 64
    "data.color_jitter train.discriminator_momentum": ([0.99], [1.0]),
    "data.pad_crop": ([1024], [1025]),
    "data.random_erasing": ([1.0], [1.01]),
    "model.image_height model.image_width": ([32, 1024], [31, 1025]),
    "model.word_embedding_dim model.lstm_hidden model.embedding_dim": ([1, 2**16], [0, 2**16 + 1]),
    "model.max_tokens": ([4, 512], [3, 513]),
    "loss.temperature": ([1e-6, 1.0], [0.0, 1.01]),
    "loss.margin": ([0.0, 2.0], [2.01]),
    "loss.label_smoothing": ([0.0, 0.49], [0.5]),
    "loss.matching_epsilon": ([1e-12], [0.0, 1.0]),
    "train.epochs train.plateau_patience": ([1], [0]),
    "train.max_steps train.unfreeze_epoch train.unfreeze_patience train.early_stop": ([1, None], [0]),
    "train.image_lr train.text_lr train.language_model_lr train.discriminator_lr": ([1e-9, 1.0], [0.0, 1.1]),
    "train.discriminator_steps": ([1, 16], [0, 17]),
    "train.new_layers_factor": ([1e-3, 1000.0], [0.0, 1001.0]),
    "train.seed": ([0, 2**32 - 1], [2**32]),  # NumPy's generator takes 32 bits
    "train.mixed_precision": (["auto", "no", "bf16"], ["fp16"]),
}

# A config.json as it was written before any setting was `added`, and the digits that named its run directory then.
OLD = """{"preset": "modern", "data": {"dataset": "csv", "root": "/d/e", "batch_size": 64, "images_per_identity": 0,
"color_jitter": 0.0, "horizontal_flip": true, "pad_crop": 10, "random_erasing": 0.5}, "model": {"backbone": "resnet101",
"backbone_weights": "IMAGENET1K_V2", "image_height": 384, "image_width": 128, "language_model": "bert-base-uncased",
"language_model_weights": true, "max_tokens": 64, "word_embedding_dim": 300, "lstm_hidden": 512, "lstm_summary": "max",
"embedding_dim": 512, "shared_classifier": true, "normalized_classifier": true, "discriminator_hidden": 256},
"loss": {"identification_weight": 1.0, "matching_weight": 1.0, "adversarial_weight": 1.0, "adversarial_form":
"alternating", "adversarial_input": "unit", "gradient_penalty": 10.0, "label_smoothing": 0.0, "matching_epsilon":
1e-08}, "train": {"epochs": 60, "max_steps": null, "image_optimizer": "adamw", "text_optimizer": "adamw",
"discriminator_optimizer": "adamw", "image_lr": 0.0001, "text_lr": 0.0002, "language_model_lr": 2e-05,
"discriminator_lr": 0.005, "discriminator_momentum": 0.0, "discriminator_steps": 4, "weight_decay": 0.0, "schedule":
"cosine", "plateau_patience": 5, "minimum_lr": 2e-06, "warmup_epochs": 5.0, "unfreeze_epoch": 6, "unfreeze_patience":
null, "gradient_clip": 10.0, "early_stop": 4, "mixed_precision": "auto", "seed": 3}}"""
OLD_FINGERPRINT = "b3ba44d5"


# -- presets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_preset_carries_its_name_and_survives_json_and_pickle(name):
    config = PRESETS[name]
    assert config.preset == name
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert hash(pickle.loads(pickle.dumps(config))) == hash(config)
    assert config.data.color_jitter == 0  # captions name the colours


def test_paper_preset_has_the_recalled_values():
    found = asdict(PRESETS["paper"])
    assert {section: {key: found[section][key] for key in PAPER[section]} for section in PAPER} == PAPER


def test_departures_lists_the_differences():
    assert departures(PRESETS["modern"], PRESETS["paper"])["model.image_height"] == (224, 384)


# -- fingerprints, and runs that exist already ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "digits"), {"smoke": "a3906128", "quick": "ff6cfa49", "paper": "cd42eb4f", "modern": "ada09de1"}.items()
)
def test_presets_keep_the_fingerprints_of_their_existing_runs(name, digits):
    assert fingerprint(PRESETS[name]) == digits


def test_existing_run_is_read_and_found_again(tmp_path):
    (tmp_path / "config.json").write_text(OLD)
    config = Run(tmp_path).config()
    assert fingerprint(config) == OLD_FINGERPRINT
    old = {f"{section}.{key}": value for section in configs.SECTIONS for key, value in json.loads(OLD)[section].items()}
    assert flat(config) == flat(Config()) | old


def test_every_setting_changes_the_fingerprint():
    digits = {fingerprint(Config())}
    for key, default in flat(Config()).items():
        section, name = key.split(".")
        options = typing.get_args(configs._FIELDS[section][name].annotation)
        if isinstance(default, str):
            value = options[-1] if options else "x"
        elif isinstance(default, bool):
            value = not default
        else:
            value = 0.4 if isinstance(default, float) else (default or 0) + 2
        digits.add(fingerprint(with_value(key, value)))
    assert len(digits) == len(flat(Config())) + 1


# -- bounds and types -------------------------------------------------------------------------------------------


def with_value(key: str, value: object) -> Config:
    section, name = key.split(".")
    return from_dict({section: {name: value}})


def test_every_number_is_bounded_and_every_setting_has_a_name_of_its_own():
    for key, default in flat(Config()).items():
        for wrong in () if isinstance(default, str | bool) else (-1, INF, NAN, True, "many"):
            with pytest.raises(ValueError, match=f"^{key} = .*: expected "):
                with_value(key, wrong)
    names = Counter(key.partition(".")[2] for key in flat(Config()))
    assert [n for n, count in names.items() if count > 1] == []  # FIELD=VALUE relies on it


@pytest.mark.parametrize(("key", "keys"), [(key, keys) for keys in BOUNDS for key in keys.split()])
def test_values_are_taken_inside_their_bounds_and_refused_outside_with_name_and_value(key, keys):
    inside, outside = BOUNDS[keys]
    assert [flat(with_value(key, value))[key] for value in inside] == inside
    for value in outside:
        with pytest.raises(ValueError, match="expected") as caught:
            with_value(key, value)
        assert str(caught.value).startswith(f"{key} = {value!r}: expected ")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ["expected an object, found list"]),
        ({"trian": {}}, ["unknown setting trian; a config has: preset, data, model, loss, train"]),
        ({"train": [3]}, ["train = [3]: expected an instance of TrainConfig"]),
        ({"preset": 5}, ["preset = 5: expected a valid string"]),
        (
            {"train": {"epochs": 0, "max_steps": False, "image_lr": NAN, "schedule": "step", "epoch": 3}},
            [
                "train.epochs = 0: expected greater than or equal to 1",
                "train.max_steps = False: expected a valid integer",  # bool is an int in Python
                "train.image_lr = nan: expected a finite number",
                "train.schedule = 'step': expected 'plateau', 'cosine' or 'constant'",
                "unknown setting train.epoch; train has: epochs, max_steps, ",
            ],
        ),
    ],
)
def test_each_error_is_one_line_in_plain_words(values, expected):
    with pytest.raises(ValueError, match=r"expected|unknown") as caught:
        from_dict(values)
    for line, beginning in zip(str(caught.value).splitlines(), expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        (" epochs = 3 ", "train.epochs", 3),
        ("image_lr=1", "train.image_lr", 1.0),  # a float from an int
        ("horizontal_flip=False", "data.horizontal_flip", False),
        ("early_stop=None", "train.early_stop", None),
        ("language_model=none", "model.language_model", "none"),  # a string setting: the word itself
        ("data.root=12", "data.root", "12"),
        ("root=/a=b", "data.root", "/a=b"),  # only the first "=" separates
        ("root=/caf\udce9", "data.root", "/caf\udce9"),  # a folder's name that is not UTF-8
        ("data.root=", "data.root", ""),
        ("data.root=~/a", "data.root", os.path.expanduser("~/a")),  # the shell does not expand it there
    ],
)
def test_override(assignment, key, value):
    changed = flat(override(Config(), ["root=earlier", "root=", assignment]))  # the last one counts
    assert changed == {**flat(Config()), key: value}
    assert type(changed[key]) is type(value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("epoch=3", "unknown setting 'epoch'; the settings are: data.dataset, "),
        ("preset=modern", "unknown setting 'preset'"),
        ("epochs=three", "train.epochs = 'three': expected a valid integer"),
        ("epochs=" + "1" * 5000, "valid integer"),
        ("epochs=³", "valid integer"),
        ("image_lr=1e400", "expected a finite number"),
        ("horizontal_flip=1", "expected a valid boolean"),
    ],
)
def test_wrong_override_is_refused(assignment, expected):
    with pytest.raises(ValueError, match=r"expected|unknown") as caught:
        override(Config(), [assignment])
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b'{"train": {"epochs": 0}}', b"\xff\xfe", b"[" * 100_000])
def test_malformed_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        Run(tmp_path).config()
