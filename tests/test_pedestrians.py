"""The rendered pedestrians: layout, exact ground truth, determinism, and what happens when things go wrong."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timam_lab.pedestrians import PedestrianSpec, captions, dataset, lexicon, render_pedestrians
from timam_lab.pedestrians.attributes import COLOURS, NONE, Identity, draw_identity, vary_identity
from timam_lab.pedestrians.canvas import NEUTRAL, Canvas, View
from timam_lab.pedestrians.figure import Figure, Pose
from timam_lab.pedestrians.scene import CAMERAS, render_image

SPEC = PedestrianSpec(9, 3, 2, images_per_identity=2.6, height=64, width=32, seed=3, occlusion=0.4, near_duplicate=0.4)
EXACT = captions.Noise(omission=0, mistake=0, misspelling=0, remark=0)
STANDING = Pose("standing", (0.02, -0.02), (0.0, 0.0), (0.0, 0.0), (0.1, 0.1), (0.1, 0.1))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(folder: Path) -> tuple[list[dict], dict]:
    return tuple(json.loads((folder / name).read_text()) for name in ("reid_raw.json", "attributes.json"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pedestrians") / "out"
    render_pedestrians(output, SPEC, workers=1, progress=False)
    return output


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    return [draw_identity(np.random.default_rng(k)) for k in range(300)]


def describe(people: list[Identity], noise: captions.Noise, hidden: tuple[str, ...] = ()) -> list[dict]:
    return [captions.write_caption(np.random.default_rng([k, 1]), p, hidden, noise) for k, p in enumerate(people)]


# -- layout ---------------------------------------------------------------------------------------------------


def test_layout_and_schema(rendered: Path) -> None:
    records, truth = read(rendered)
    assert sorted(p.name for p in rendered.iterdir()) == ["attributes.json", "imgs", "reid_raw.json"]
    for record in records:
        assert set(record) == {"split", "captions", "file_path", "id"}
        assert len(record["captions"]) == SPEC.captions_per_image
        assert all(c.strip() for c in record["captions"])
        with Image.open(rendered / "imgs" / record["file_path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SPEC.width, SPEC.height))
    on_disk = {str(p.relative_to(rendered / "imgs")) for p in rendered.rglob("*.jpg")}
    assert on_disk == {r["file_path"] for r in records}
    assert len(on_disk) == len(records)
    assert len({path.split("/")[0] for path in on_disk}) > 3  # several camera folders
    assert truth["spec"] == asdict(SPEC)


def test_ids_are_contiguous_and_splits_disjoint(rendered: Path) -> None:
    records, truth = read(rendered)
    split_of = {identity["id"]: identity["split"] for identity in truth["identities"]}
    assert list(split_of) == list(range(1, 15))
    assert list(split_of.values()) == ["train"] * 9 + ["val"] * 3 + ["test"] * 2
    assert {r["id"] for r in records} == set(split_of)
    assert all(r["split"] == split_of[r["id"]] for r in records)


@pytest.mark.parametrize("mean", [1.0, 1.4, 2.0, 3.092, 5.5])
def test_number_of_images_is_exact(mean: float) -> None:
    spec = PedestrianSpec.of_size(250, images_per_identity=mean)
    counts = [person.images for person in dataset._draw_people(spec)]
    assert sum(counts) == round(mean * 250)
    assert min(counts) >= (2 if mean >= 2 else 1)
    assert len(set(counts)) > 1 or mean in (1.0, 2.0)  # with nothing to share out there is nothing to vary


def test_number_of_records(rendered: Path) -> None:
    records, _ = read(rendered)
    assert len(records) == SPEC.images == round(2.6 * 14)


def test_proportions_of_cuhk_pedes() -> None:
    full = PedestrianSpec.of_size(13_003)
    assert (full.train_identities, full.val_identities, full.test_identities) == (11_003, 1_000, 1_000)
    assert (full.images, full.images * full.captions_per_image) == (40_206, 80_412)
    small = PedestrianSpec.of_size(3)
    assert (small.train_identities, small.val_identities, small.test_identities) == (1, 1, 1)


# -- the same bytes, all or nothing ---------------------------------------------------------------------------


def test_same_bytes_for_any_number_of_workers(rendered: Path, tmp_path: Path) -> None:
    render_pedestrians(tmp_path / "two", SPEC, workers=2, progress=False)
    assert files_of(tmp_path / "two") == files_of(rendered)


def test_same_bytes_in_a_second_run_and_other_bytes_for_another_seed(rendered: Path, tmp_path: Path) -> None:
    np.random.random(7)  # noqa: NPY002  the global generator must not matter
    render_pedestrians(tmp_path / "again", SPEC, workers=1, progress=False)
    render_pedestrians(tmp_path / "other", replace(SPEC, seed=4), workers=1, progress=False)
    again, other, first = (files_of(folder) for folder in (tmp_path / "again", tmp_path / "other", rendered))
    assert again == first
    shared = [name for name in first if name in other and name.endswith(".jpg")]
    assert shared
    assert read(tmp_path / "other")[1]["identities"] != read(rendered)[1]["identities"]
    assert all(first[name] != other[name] for name in shared)


def test_second_call_does_nothing(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_draw_people", lambda spec: pytest.fail("rendered again"))
    render_pedestrians(rendered, SPEC, progress=False)


@pytest.mark.parametrize("field", ["seed", "omission", "height"])
def test_other_spec_is_refused(rendered: Path, field: str) -> None:
    before = files_of(rendered)
    with pytest.raises(FileExistsError, match=field):
        render_pedestrians(rendered, replace(SPEC, **{field: {"seed": 5, "omission": 0.1, "height": 65}[field]}))
    assert files_of(rendered) == before


def test_other_renderer_and_foreign_folder_are_refused(rendered: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no rendered pedestrians"):
        render_pedestrians(tmp_path, SPEC, progress=False)
    monkeypatch.setattr(dataset, "RENDERER_VERSION", -1)
    with pytest.raises(FileExistsError, match="renderer version"):
        render_pedestrians(rendered, SPEC, progress=False)


def test_interrupted_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render, calls = dataset.render_image, []

    def fail_late(*args, **kwargs):
        calls.append(args)
        if len(calls) > 5:
            assert list(tmp_path.rglob("*.jpg")), "the interruption must come after something was written"
            raise KeyboardInterrupt
        return render(*args, **kwargs)

    monkeypatch.setattr(dataset, "render_image", fail_late)
    with pytest.raises(KeyboardInterrupt):
        render_pedestrians(tmp_path / "out", SPEC, workers=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_rendering_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    def fail(*args):
        raise KilledError

    with monkeypatch.context() as patch:  # a killed process cleans nothing
        patch.setattr(dataset, "_write_json", fail)
        patch.setattr(dataset.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(KilledError):
            render_pedestrians(tmp_path / "out", SPEC, workers=1, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "out").exists()
    render_pedestrians(tmp_path / "out", SPEC, workers=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# -- identities -----------------------------------------------------------------------------------------------


def test_no_two_identities_of_a_split_are_equal() -> None:
    drawn = dataset._draw_people(PedestrianSpec(600, 60, 60, near_duplicate=0.9))
    for split in dataset.SPLITS:
        identities = [person.identity for person in drawn if person.split == split]
        assert len(set(identities)) == len(identities)


def test_near_duplicates_differ_in_what_they_say() -> None:
    drawn = dataset._draw_people(PedestrianSpec(400, 40, 40, near_duplicate=0.25))
    by_number = {person.number: person for person in drawn}
    copies = [person for person in drawn if person.near_duplicate_of is not None]
    assert Counter(person.split for person in copies) == {"train": 100, "val": 10, "test": 10}
    for copy in copies:
        model = by_number[copy.near_duplicate_of]
        mine, theirs = copy.identity.as_dict(), model.identity.as_dict()
        assert model.split == copy.split
        assert copy.changed == sorted(name for name in mine if mine[name] != theirs[name])
        assert 1 <= len(copy.changed) <= 2


def test_attributes_are_coherent(people: list[Identity]) -> None:
    varied = [vary_identity(np.random.default_rng(k), p)[0] for k, p in enumerate(people)]
    for person in [*people, *varied]:
        assert (person.upper == "dress") == (person.lower == NONE) == (person.lower_colour == NONE)
        assert (person.upper_pattern == "plain") == (person.upper_second == NONE)
        assert person.upper_second != person.upper_colour
        assert (person.bag in (NONE, "backpack")) == (person.bag_side == NONE)
        assert (person.bag == NONE) == (person.bag_colour == NONE)


# -- captions -------------------------------------------------------------------------------------------------


def words_for(name: str, value: str) -> tuple[str, ...]:
    """The words a caption may use for a value."""
    if name == "hair_colour":
        return lexicon.HAIR_COLOUR_WORDS[value]
    if name.endswith("_colour") or name == "upper_second":
        return lexicon.COLOUR_WORDS[value]
    if name == "gender":
        return lexicon.NOUNS[value]
    if name in ("height", "build"):
        return lexicon.STATURE[value]
    if name == "bag_side":
        return (value,)
    stems = {"short": ("short", "cropped"), "shoulder length": ("shoulder", "medium"), "long": ("long", "back",
    "falls"),
             "ponytail": ("ponytail", "pony tail"), "bun": ("bun",), "bald": ("bald", "shaved", "no hair"),
             "striped": ("stripe", "lines"), "checked": ("check", "plaid", "grid"), "dotted": ("dot", "spot"),
             "logo": ("logo", "print", "graphic", "picture", "emblem", "lettering"),
             "colour block": ("two-tone", "color block", "on top", "at the top", "lower half")}  # fmt: skip
    return stems[value] if value in stems else tuple(n.removeprefix("+") for n in lexicon.GARMENTS[value])


def test_exact_captions_say_everything_they_claim(people: list[Identity]) -> None:
    for person, caption in zip(people, describe(people, EXACT), strict=True):
        assert caption["mentioned"] == list(captions.visible_attributes(person, ()))
        assert not caption["omitted"]
        assert not caption["wrong"]
        assert not caption["misspelled"]
        assert not caption["remark"]
        text = caption["text"].lower()
        for name in caption["mentioned"]:
            value = getattr(person, name)
            assert any(w in text for w in words_for(name, value)), (name, value, caption["text"])


def test_hidden_attributes_are_not_mentioned(people: list[Identity]) -> None:
    hidden = ("shoes", "shoes_colour", "hair_style", "hair_colour")
    for caption in describe(people, EXACT, hidden):
        assert not set(hidden) & set(caption["mentioned"] + caption["omitted"])
        assert not re.search(r"\b(shoes|sneakers|boots|sandals|heels|loafers|hair|ponytail)\b", caption["text"].lower())


def test_every_mistake_is_one_and_is_written(people: list[Identity]) -> None:
    for person, caption in zip(people, describe(people, replace(EXACT, mistake=1.0)), strict=True):
        assert [w["attribute"] for w in caption["wrong"]] == caption["mentioned"]
        for wrong in caption["wrong"]:
            assert wrong["true"] == getattr(person, wrong["attribute"]) != wrong["stated"]
            assert any(w in caption["text"].lower() for w in words_for(wrong["attribute"], wrong["stated"])), caption


def test_shares_are_near_the_requested_ones(people: list[Identity]) -> None:
    noise = captions.Noise(omission=0.35, mistake=0.1, misspelling=0.05, remark=0.3)
    written = describe(people * 2, noise)
    mentioned = sum(len(c["mentioned"]) for c in written)
    visible = mentioned + sum(len(c["omitted"]) for c in written)
    words = sum(len(re.findall("[A-Za-z]+", c["text"])) for c in written)
    assert 1 - mentioned / visible == pytest.approx(noise.omission, abs=0.02)
    assert sum(len(c["wrong"]) for c in written) / mentioned == pytest.approx(noise.mistake, abs=0.015)
    assert sum(len(c["misspelled"]) for c in written) / words == pytest.approx(noise.misspelling, abs=0.006)
    assert np.mean([c["remark"] for c in written]) == pytest.approx(noise.remark, abs=0.06)


def test_misspellings_are_in_the_text(people: list[Identity]) -> None:
    for caption in describe(people, replace(EXACT, misspelling=0.1)):
        assert caption["misspelled"]
        for slip in caption["misspelled"]:
            assert slip["word"] != slip["written"]
            assert slip["written"] in caption["text"]


def test_english(people: list[Identity]) -> None:
    texts = [c["text"] for c in describe(people * 2, captions.Noise(0.4, 0.05, 0, 0.2))]
    for text in texts:
        assert not re.search(
            r"\ban? (?=an? )|\b[Aa] [aeiou]|\b[Aa]n [^aeiou\W]|[{}\[\]|+]|  |\.\.|,\s*,| ,| \.", text
        ), text
        assert not re.search(
            r"\b(they|They) (is|has|was|wears|carries|seems|looks)\b|\b([Ss]?[Hh]e) (are|have|seem) ", text
        ), text
    lengths = [len(text.split()) for text in texts]
    assert 18 <= np.mean(lengths) <= 26
    assert np.std(lengths) > 5
    assert np.mean([text.endswith(".") for text in texts]) > 0.9
    assert np.mean([text[0].isupper() for text in texts]) > 0.9
    assert len(set(texts)) > 0.95 * len(texts)
    assert len({w for text in texts for w in re.findall("[a-z]+", text.lower())}) > 300


# -- pictures -------------------------------------------------------------------------------------------------


def bag_centre(bag: str, side: str, yaw: float) -> float:
    """Mean x of the bag's pixels relative to the feet, in units of the person's height; the bag alone is red."""
    person = replace(draw_identity(np.random.default_rng(1)), bag=bag, bag_side=side, bag_colour="red", headwear=NONE,
                     upper="t-shirt", upper_colour="white", upper_pattern="plain", upper_second=NONE, inner_colour=NONE,
                     lower="trousers", lower_colour="black", shoes_colour="black",
                     skin="dark", glasses=NONE)  # fmt: skip
    canvas = Canvas(Image.new("RGB", (200, 300), (0, 0, 255)), 0.0)
    Figure(np.random.default_rng(0), person, STANDING, View(yaw, 0.1, 100, 290, 270, 1.0)).draw(canvas)
    pixels = np.asarray(canvas.colours).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    red[:150] = False  # straps cross the chest
    assert red.sum() > 50, "the bag must be in the picture"
    return float(np.nonzero(red)[1].mean() - 100) / 270


@pytest.mark.parametrize("bag", ["handbag", "shoulder bag", "plastic bag", "suitcase"])
def test_bag_is_on_the_persons_own_side(bag: str) -> None:
    assert bag_centre(bag, "left", 0) > 0.05  # facing us, their left is on our right
    assert bag_centre(bag, "right", 0) < -0.05
    assert bag_centre(bag, "left", math.pi) < -0.05  # from behind, their left is on our left
    assert bag_centre(bag, "right", math.pi) > 0.05


def test_garments_have_their_colours() -> None:
    person = replace(draw_identity(np.random.default_rng(2)), upper="t-shirt", upper_colour="green",
                     upper_pattern="plain",
                     upper_second=NONE, inner_colour=NONE, lower="trousers", lower_colour="red", bag=NONE,
                     bag_side=NONE)  # fmt: skip
    canvas = Canvas(Image.new("RGB", (200, 300), (255, 255, 255)), 0.0)
    figure = Figure(np.random.default_rng(0), person, STANDING, View(math.pi, 0.1, 100, 290, 270, 1.0))
    figure.draw(canvas)
    chest, thigh = (np.array(canvas.colours.getpixel((x, y)), float) for x, y in ((100, 130), (86, 190)))
    assert np.abs(chest - COLOURS["green"]).max() < 25
    assert np.abs(thigh - COLOURS["red"]).max() < 25
    assert np.asarray(canvas.lights).min() < NEUTRAL - 40 < NEUTRAL < np.asarray(canvas.lights).max()  # it is shaded


@pytest.mark.parametrize("size", [(32, 64), (128, 512), (200, 128)])
def test_other_sizes(size: tuple[int, int]) -> None:
    person = draw_identity(np.random.default_rng(5))
    image, truth = render_image(np.random.default_rng(6), person, 1, CAMERAS[0], size, 1.0, 0)
    assert image.size == size
    assert truth["occlusion"] is not None
    assert np.asarray(image).std() > 15


def test_what_is_hidden_follows_the_view(rendered: Path) -> None:
    spec = PedestrianSpec(60, 1, 1, height=64, width=32, occlusion=0.5)
    seen = []
    for k, person in enumerate(dataset._draw_people(spec)):
        truth = render_image(np.random.default_rng(k), person.identity, k, CAMERAS[k % 6], (32, 64), 0.5, 0)[1]
        seen.append(truth)
        if truth["view"] in ("back", "three-quarter back"):
            assert {"glasses", "inner_colour"} <= set(truth["hidden"])
        if truth["occlusion"] is None and truth["view"] == "front":
            assert not {"upper", "upper_colour", "lower_colour"} & set(truth["hidden"])
    assert 0.3 < np.mean([truth["occlusion"] is not None for truth in seen]) < 0.7
    assert {truth["view"] for truth in seen} >= {"front", "back", "side"}


# -- bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [("train_identities", 0, "1"), ("test_identities", 2.5, "whole"), ("images_per_identity", 0.5, "1"),
    ("height", 63, "64"),
     ("height", 513, "512"), ("seed", -1, "0"), ("omission", 0.95, "0.9"), ("mistake", 1.1, "1"),
     ("misspelling", -0.1, "0"),
     ("remark", float("nan"), "0"), ("occlusion", 2, "1"), ("near_duplicate", "half", "number"),
     ("captions_per_image", True, "whole")],
)  # fmt: skip
def test_bounds(field: str, value: object, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} = .*{re.escape(bound)}") as error:
        PedestrianSpec(**{field: value})
    assert str(value) in str(error.value)


def test_too_few_identities_and_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"identities = 2 .*3"):
        PedestrianSpec.of_size(2)
    with pytest.raises(ValueError, match="workers = 0"):
        render_pedestrians(tmp_path / "out", SPEC, workers=0)
