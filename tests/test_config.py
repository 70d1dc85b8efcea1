"""timam.config: presets, bounds, JSON and KEY=VALUE overrides."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest

from timam import config as configs
from timam.config import PRESETS, SECTIONS, Config, departures, from_dict, load, override, to_dict

# What design.md section 1 marks as recalled of the paper, and this repository's answer to what the paper leaves open.
PAPER = {
    "data.batch_size": 64,
    "model.backbone": "resnet101",
    "model.language_model": "bert-base-uncased",
    "model.language_model_weights": True,
    "model.lstm_summary": "max",
    "model.embedding_dim": 512,
    "model.shared_classifier": True,
    "model.normalized_classifier": True,
    "loss.identification_weight": 1.0,
    "loss.matching_weight": 1.0,
    "loss.adversarial_weight": 1.0,
    "loss.adversarial_form": "alternating",
    "loss.adversarial_input": "raw",
    "loss.gradient_penalty": 0.0,
    "train.discriminator_steps": 1,
    "train.image_optimizer": "sgd",
    "train.text_optimizer": "adam",
    "train.discriminator_optimizer": "sgd",
    "train.image_lr": 2e-4,
    "train.text_lr": 2e-4,
    "train.discriminator_lr": 2e-4,
    "train.weight_decay": 4e-4,
    "train.schedule": "plateau",
    "train.minimum_lr": 2e-6,
}

INF, NAN = float("inf"), float("nan")
# setting: (values just inside its bounds, values just outside)
BOUNDS = {
    "data.batch_size": ([2, 2**20], [1, 0, -1, 2**20 + 1]),
    "data.images_per_identity": ([0, 1, 4, 64], [-1, 3, 128]),  # a divisor of the batch size, 64
    "data.color_jitter": ([0.0, 0.99], [-0.01, 1.0, NAN]),
    "data.pad_crop": ([0, 1024], [-1, 1025]),
    "data.random_erasing": ([0.0, 1.0], [-0.01, 1.01, NAN]),
    "model.image_height": ([32, 1024], [31, 1025]),
    "model.image_width": ([32, 1024], [31, 1025]),
    "model.word_embedding_dim": ([1, 2**16], [0, 2**16 + 1]),
    "model.lstm_hidden": ([1, 2**16], [0, 2**16 + 1]),
    "model.embedding_dim": ([1, 2**16], [0, 2**16 + 1]),
    "model.discriminator_hidden": ([1, 2**16], [0, 2**16 + 1]),
    "model.max_tokens": ([4, 512], [3, 513]),
    "model.lstm_summary": (["max", "last"], ["mean", ""]),
    "loss.identification_weight": ([0.0], [-0.1, INF, NAN]),
    "loss.matching_weight": ([0.0], [-0.1, INF, NAN]),
    "loss.adversarial_weight": ([0.0], [-0.1, INF, NAN]),
    "loss.adversarial_form": (["alternating", "gradient_reversal"], ["reversal"]),
    "loss.adversarial_input": (["raw", "unit"], ["normalised"]),
    "loss.gradient_penalty": ([0.0], [-0.1, INF, NAN]),
    "loss.label_smoothing": ([0.0, 0.49], [-0.01, 0.5, NAN]),
    "loss.matching_epsilon": ([1e-12], [0.0, 1.0, NAN]),
    "train.epochs": ([1], [0]),
    "train.max_steps": ([1], [0]),
    "train.unfreeze_epoch": ([1], [0]),
    "train.unfreeze_patience": ([1], [0]),
    "train.early_stop": ([1], [0]),
    "train.image_optimizer": (["sgd", "adam", "adamw"], ["SGD", "rmsprop"]),
    "train.text_optimizer": (["sgd", "adam", "adamw"], ["lamb"]),
    "train.discriminator_optimizer": (["sgd", "adam", "adamw"], ["none"]),
    "train.image_lr": ([1e-9, 1.0], [0.0, 1.1, -1e-3, NAN]),
    "train.text_lr": ([1.0], [0.0, 1.1, NAN]),
    "train.language_model_lr": ([1.0], [0.0, 1.1, NAN]),
    "train.discriminator_lr": ([1.0], [0.0, 1.1, NAN]),
    "train.discriminator_momentum": ([0.0, 0.99], [-0.1, 1.0, NAN]),
    "train.discriminator_steps": ([1, 16], [0, 17]),
    "train.weight_decay": ([0.0], [-1e-6, INF, NAN]),
    "train.minimum_lr": ([0.0], [-1e-6, INF, NAN]),
    "train.warmup_epochs": ([0.0], [-0.1, INF, NAN]),
    "train.gradient_clip": ([0.0], [-0.1, INF, NAN]),
    "train.seed": ([0, 2**32 - 1], [-1, 2**32]),  # NumPy's generator takes 32 bits
    "train.plateau_patience": ([1], [0]),
    "train.schedule": (["plateau", "cosine", "constant"], ["step"]),
    "train.mixed_precision": (["auto", "no", "bf16"], ["fp16"]),
}
UNBOUNDED = {"data.dataset", "data.root", "data.horizontal_flip", "model.backbone", "model.backbone_weights",
             "model.language_model", "model.language_model_weights", "model.shared_classifier",
             "model.normalized_classifier"}  # fmt: skip


def flat(config: Config) -> dict[str, object]:
    return {f"{s}.{k}": v for s in SECTIONS for k, v in to_dict(config)[s].items()}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_carries_its_name_and_survives_json(name):
    config = PRESETS[name]
    assert config.preset == name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_round_trip_keeps_every_field_when_none_has_its_default():
    changed = override(Config(), [
        "batch_size=6", "images_per_identity=3", "horizontal_flip=false", "pad_crop=2", "random_erasing=0.25",
        "color_jitter=0.1", "max_steps=7", "unfreeze_epoch=4", "unfreeze_patience=none", "early_stop=none",
        "lstm_summary=last", "shared_classifier=false", "label_smoothing=0.2", "warmup_epochs=1.5", "seed=3",
        "dataset=csv", "root=/d",
    ])  # fmt: skip
    assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed
    assert changed.train.unfreeze_patience is None
    assert changed.data.images_per_identity == 3


@pytest.mark.parametrize(("key", "value"), PAPER.items())
def test_paper_preset_has_the_recalled_values(key, value):
    assert flat(PRESETS["paper"])[key] == value


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_changes_colours(name):
    assert PRESETS[name].data.color_jitter == 0  # captions name them


def test_field_names_are_unique_over_the_sections():
    names = Counter(f.name for s in SECTIONS for f in dataclasses.fields(getattr(Config(), s)))
    assert [n for n, count in names.items() if count > 1] == []  # FIELD=VALUE relies on it


def test_departures_lists_exactly_the_differences():
    paper, modern = flat(PRESETS["paper"]), flat(PRESETS["modern"])
    assert departures("modern") == {k: (paper[k], modern[k]) for k in paper if paper[k] != modern[k]}
    assert departures("modern")["model.image_height"] == (224, 384)
    assert departures("paper") == {}
    reverse = departures("paper", base="modern")
    assert reverse == {k: (b, a) for k, (a, b) in departures("modern").items()}


def with_value(key: str, value: object) -> Config:
    section, name = key.split(".")
    return from_dict({section: {name: value}})


def test_every_setting_is_bounded_or_listed_as_free():
    assert set(BOUNDS) | UNBOUNDED == set(flat(Config()))


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (good, _) in BOUNDS.items() for v in good])
def test_value_inside_its_bounds_is_taken(key, value):
    assert flat(with_value(key, value))[key] == value


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, (_, bad) in BOUNDS.items() for v in bad])
def test_value_outside_its_bounds_is_refused_with_name_and_value(key, value):
    with pytest.raises(ValueError, match="expected") as caught:
        with_value(key, value)
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("epochs=3", "train.epochs", 3),
        (" epochs = 3 ", "train.epochs", 3),
        ("image_lr=1", "train.image_lr", 1.0),  # a float from an int
        ("image_lr=1e-3", "train.image_lr", 1e-3),
        ("horizontal_flip=False", "data.horizontal_flip", False),
        ("horizontal_flip=true", "data.horizontal_flip", True),
        ("max_steps=none", "train.max_steps", None),
        ("early_stop=None", "train.early_stop", None),
        ("max_steps=5", "train.max_steps", 5),
        ("language_model=none", "model.language_model", "none"),  # a string setting: the word itself
        ("root=/a=b", "data.root", "/a=b"),  # only the first "=" separates
        ("data.root=", "data.root", ""),
    ],
)
def test_override(assignment, key, value):
    changed = flat(override(Config(), [assignment]))
    assert changed == {**flat(Config()), key: value}
    assert type(changed[key]) is type(value)


def test_later_overrides_win_and_the_original_stays():
    config = Config()
    assert override(config, ["epochs=3", "train.epochs=4"]).train.epochs == 4
    assert config == Config()


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("epochs", "expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("=3", "unknown setting ''"),
        ("epoch=3", "unknown setting 'epoch'"),
        ("train.epoch=3", "unknown setting train.epoch"),
        ("data.epochs=3", "unknown setting data.epochs"),
        ("optim.epochs=3", "unknown setting 'optim.epochs'"),
        ("train.train.epochs=3", "unknown setting"),
        ("preset=modern", "unknown setting 'preset'"),
        ("epochs=3.5", "expected int"),
        ("epochs=three", "expected int"),
        ("epochs=none", "expected int"),
        ("epochs=true", "expected int"),
        ("image_lr=fast", "expected float"),
        ("image_lr=none", "expected float"),
        ("image_lr=nan", "above 0"),
        ("horizontal_flip=1", "expected bool"),
        ("horizontal_flip=none", "expected bool"),
        ("max_steps=0", "1 or more, or none"),
    ],
)
def test_wrong_override_is_refused(assignment, expected):
    with pytest.raises(ValueError, match=r"expected|unknown") as caught:
        override(Config(), [assignment])
    assert expected in str(caught.value)


def test_unknown_setting_names_the_ones_there_are():
    with pytest.raises(ValueError, match=r"train\.epochs.*train\.seed"):
        override(Config(), ["epoch=3"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"trian": {}}, "unknown section 'trian'"),
        ({"train": {"epoch": 3}}, "unknown setting train.epoch"),
        ({"train": [3]}, "expected an object of settings"),
        ({"train": {"epochs": True}}, "expected int"),  # bool is an int in Python
        ({"train": {"epochs": 3.0}}, "expected int"),
        ({"train": {"epochs": None}}, "expected int"),
        ({"train": {"image_lr": True}}, "expected float"),
        ({"train": {"max_steps": False}}, "expected int"),
        ({"train": {"image_lr": [1e-3]}}, "expected float"),
        ({"data": {"horizontal_flip": 1}}, "expected bool"),
        ({"data": {"root": 5}}, "expected str"),
        ({"preset": 5}, "expected str"),
    ],
)
def test_wrong_dictionary_is_refused(values, expected):
    with pytest.raises(ValueError, match=r"expected|unknown") as caught:
        from_dict(values)
    assert expected in str(caught.value)


def test_float_setting_takes_an_integer_of_json():
    assert type(from_dict({"train": {"image_lr": 1}}).train.image_lr) is float


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b'{"train": {"epochs": 0}}', b'{"optim": {}}', b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "truncated", "list", "number", "null", "bounds", "section", "not utf-8", "deep"],
)
def test_malformed_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="config") as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_load_reads_what_to_dict_wrote(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(PRESETS["modern"])))
    assert load(tmp_path / "config.json") == configs.PRESETS["modern"]
