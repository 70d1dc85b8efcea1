"""timam.config: presets, bounds, JSON, KEY=VALUE overrides, and the fingerprints that name run directories."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import asdict

import pytest

from timam.config import PRESETS, Config, fingerprint, flat, from_dict, override
from timam.run import Run

NAN = float("nan")
# settings: (values just inside their bounds, values just outside)
BOUNDS = {
    "data.batch_size": ([2, 2**20], [1, 2**20 + 1]),
    "data.images_per_identity": ([1, 4, 64], [3, 128]),  # a divisor of the batch size, 64
    "data.color_jitter train.discriminator_momentum": ([0.99], [1.0]),
    "data.random_erasing": ([1.0], [1.01]),
    "model.image_height model.image_width": ([32, 1024], [31, 1025]),
    "model.word_embedding_dim model.lstm_hidden model.embedding_dim": ([1, 2**16], [0, 2**16 + 1]),
    "model.max_tokens": ([4, 512], [3, 513]),
    "loss.temperature": ([1e-6, 1.0], [0.0, 1.01]),
    "loss.label_smoothing": ([0.0, 0.49], [0.5]),
    "loss.matching_epsilon": ([1e-12], [0.0, 1.0]),
    "train.epochs train.plateau_patience": ([1], [0]),
    "train.max_steps train.unfreeze_epoch train.unfreeze_patience train.early_stop": ([1, None], [0]),
    "train.image_lr train.text_lr train.language_model_lr train.discriminator_lr": ([1e-9, 1.0], [0.0, 1.1]),
    "train.discriminator_steps": ([1, 16], [0, 17]),
    "train.new_layers_factor": ([1e-3, 1000.0], [0.0, 1001.0]),
    "train.seed": ([0, 2**32 - 1], [2**32]),  # NumPy's generator takes 32 bits
}

# A setting that is new, gone or has another default would give the folders of existing runs other names.
FINGERPRINTS = {"smoke": "a3906128", "quick": "ff6cfa49", "paper": "cd42eb4f", "modern": "ada09de1", "clip": "454f6062"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_carries_its_name_keeps_its_fingerprint_and_survives_json(name):
    config = PRESETS[name]
    assert (config.preset, fingerprint(config)) == (name, FINGERPRINTS[name])
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert config.data.color_jitter == 0  # captions name the colours


def test_what_was_added_later_is_as_in_the_paper():  # fingerprints leave these defaults out
    paper = PRESETS["paper"]
    assert (paper.loss.matching, paper.loss.discrepancy_weight, paper.model.text_head) == ("cmpm", 0, "lstm")
    assert (paper.model.projection, paper.model.normalize_words, paper.train.frozen_blocks) == ("new", False, 0)


def with_value(key: str, value: object) -> Config:
    section, name = key.split(".")
    return from_dict({section: {name: value}})


def test_every_number_is_bounded_and_every_setting_has_a_name_of_its_own():
    for key, default in flat(Config()).items():
        for wrong in () if isinstance(default, str | bool) else (-1, float("inf"), NAN, True, "many"):
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


def test_each_error_is_one_line_in_plain_words():
    with pytest.raises(ValueError, match="expected an object, found list"):
        from_dict([])
    with pytest.raises(ValueError, match="unknown setting trian; a config has: preset, data, model, loss, train"):
        from_dict({"trian": {}})
    with pytest.raises(ValueError, match="expected") as caught:
        from_dict({"train": {"epochs": 0, "max_steps": False, "image_lr": NAN, "schedule": "step", "epoch": 3}})
    expected = [
        "train.epochs = 0: expected greater than or equal to 1",
        "train.max_steps = False: expected a valid integer",  # bool is an int in Python
        "train.image_lr = nan: expected a finite number",
        "train.schedule = 'step': expected 'plateau', 'cosine' or 'constant'",
        "unknown setting train.epoch; train has: epochs, max_steps, ",
    ]
    for line, beginning in zip(str(caught.value).splitlines(), expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        (" epochs = 3 ", "train.epochs", 3),
        ("image_lr=1", "train.image_lr", 1.0),  # a float from an int
        ("horizontal_flip=False", "data.horizontal_flip", False),
        ("early_stop=None", "train.early_stop", None),
        ("language_model=none", "model.language_model", "none"),  # a string setting: the word itself
        ("data.root=12", "data.root", "12"),
        ("root=/a=b", "data.root", "/a=b"),  # only the first "=" separates
        ("root=/caf\udce9", "data.root", "/caf\udce9"),  # a folder's name that is not UTF-8
        ("data.root=~/a", "data.root", os.path.expanduser("~/a")),  # the shell does not expand it there
    ],
)
def test_override(assignment, key, value):
    changed = flat(override(Config(), ["root=earlier", "root=", assignment]))  # the last one counts
    assert changed == {**flat(Config()), key: value}
    assert type(changed[key]) is type(value)
    assert override(Config(), ["images_per_identity=12", "batch_size=48"])  # they fit each other, not the earlier ones


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("epoch=3", "unknown setting 'epoch'; the settings are: data.dataset, "),
        ("epochs=three", "train.epochs = 'three': expected a valid integer"),
        ("epochs=" + "1" * 5000, "valid integer"),
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
