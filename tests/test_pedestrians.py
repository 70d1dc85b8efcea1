"""The rendered pedestrians: layout, exact ground truth, determinism, and what happens when things go wrong."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from timam.cli import cli
from timam_lab.pedestrians import PedestrianSpec, captions, dataset, places, render_pedestrians
from timam_lab.pedestrians.attributes import COLOURS, NONE, TABLES, Identity, draw_identity, vary_identity
from timam_lab.pedestrians.canvas import Canvas, View
from timam_lab.pedestrians.captions import KEPT_WORDS, LEXICON, Describer, Manner
from timam_lab.pedestrians.figure import MATERIALS, SURFACE, Figure, Pose, draw_build
from timam_lab.pedestrians.scene import Conditions, render_image

SPEC = PedestrianSpec(
    9, 3, 2, images_per_identity=2.6, height=64, width=32, seed=3, occlusion=0.4, near_duplicate=0.4, unseen_words=0.5
)
EXACT = Manner(omission=0, mistake=0, misspelling=0, remark=0, negation=0, habits=0, shades=0, unseen_words=0)
STANDING = Pose("standing", (0.02, -0.02), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.1, 0.1))
CONDITIONS = Conditions(32, 64, occlusion=0.5, company=0.3, cut_off=0.2, smallest=120, seed=0)


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


def describe(people: list[Identity], manner: Manner, hidden: tuple[str, ...] = ()) -> list[dict]:
    return [captions.write_caption(np.random.default_rng([k, 1]), person, hidden, Describer(k % 12, 0), manner)
            for k, person in enumerate(people)]  # fmt: skip


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower()))


def options(table: object) -> list[str]:
    """All strings of a table of the lexicon."""
    if isinstance(table, str):
        return [table]
    return [text for part in (table.values() if isinstance(table, dict) else table) for text in options(part)]


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
    pictures = [{content for name, content in files.items() if name.endswith(".jpg")} for files in (first, other)]
    assert len(pictures[0]) == SPEC.images
    assert not pictures[0] & pictures[1]
    assert read(tmp_path / "other")[1]["identities"] != read(rendered)[1]["identities"]


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


def words_for(name: str, value: str) -> list[str]:
    """The words a caption may use for a value."""
    if name == "gender":
        return [word for key, words in LEXICON["nouns"].items() if key.startswith(value) for word in words]
    if name == "age":
        return [word for key, words in LEXICON["nouns"].items() if key.endswith(value) for word in words]
    if name == "hair_colour":
        return LEXICON["hair_colour_words"][value]
    if name.endswith("_colour") or name == "upper_second":
        return LEXICON["colour_words"][value]
    if name in ("height", "build"):
        return LEXICON["stature"][value]
    if name == "bag_side":
        return [value]
    stems = {
        "short": ["short", "close-cut"], "shoulder length": ["shoulder", "medium"], "long": ["long", "back", "falls"],
        "ponytail": ["ponytail", "pony tail"], "bun": ["bun"], "bald": ["bald", "shaved", "no hair"], "curly": ["curl"],
        "striped": ["stripe"], "vertically striped": ["vertical"], "checked": ["check", "plaid", "grid"],
        "logo": ["logo", "print", "graphic", "picture", "lettering"], "dotted": ["dot", "spot"],
        "floral": ["flower", "floral"], "camouflage": ["camo", "military"],
        "colour block": ["two-tone", "color block", "half", "on top", "at the top"],
    }  # fmt: skip
    return stems[value] if name in ("hair_style", "upper_pattern") else LEXICON["garments"][value]


def says(text: str, name: str, value: str) -> bool:
    return any(word.removeprefix("+") in text.lower() for word in words_for(name, value) if "*" not in word)


def test_exact_captions_say_everything_they_claim(people: list[Identity]) -> None:
    for person, caption in zip(people, describe(people, EXACT), strict=True):
        assert caption["mentioned"] == list(captions.visible_attributes(person, ()))
        for nothing in ("omitted", "absent", "unseen", "wrong", "misspelled", "remark"):
            assert not caption[nothing]
        assert {"age": ["adult", "elderly"], **caption["stated"]} == {
            "age": ["adult", "elderly"], **{name: [getattr(person, name)] for name in caption["mentioned"]}
        }  # fmt: skip
        assert all(says(caption["text"], name, getattr(person, name)) for name in caption["mentioned"]), caption
    for person, caption in zip(people, describe(people, replace(EXACT, omission=0.6)), strict=True):
        assert all(says(caption["text"], name, getattr(person, name)) for name in caption["mentioned"]), caption


def test_hidden_attributes_are_not_mentioned(people: list[Identity]) -> None:
    hidden = ("shoes", "shoes_colour", "hair_style", "hair_colour", "headwear", "headwear_colour", "bag", "bag_colour")
    for caption in describe(people, replace(EXACT, negation=1), hidden):
        assert not set(hidden) & set(caption["mentioned"] + caption["omitted"] + caption["absent"])
        assert not re.search(r"\b(shoes|sneakers|boots|heels|hair|ponytail|hat|backpack)\b", caption["text"].lower())


def test_every_mistake_is_one_and_is_written(people: list[Identity]) -> None:
    for person, caption in zip(people, describe(people, replace(EXACT, mistake=1.0)), strict=True):
        assert [w["attribute"] for w in caption["wrong"]] == [name for name in caption["mentioned"] if name != "scarf"]
        for wrong in caption["wrong"]:
            assert wrong["true"] == getattr(person, wrong["attribute"]) != wrong["stated"]
            assert caption["stated"][wrong["attribute"]] == [wrong["stated"]]
            if (wrong["attribute"], wrong["stated"]) != ("age", "adult"):
                assert says(caption["text"], wrong["attribute"], wrong["stated"]), caption


def test_shares_are_near_the_requested_ones(people: list[Identity]) -> None:
    manner = Manner(0.35, 0.1, 0.05, 0.3, negation=0.4, habits=0.7, shades=0, unseen_words=0.6)
    written = describe(people * 2, manner)
    mentions = [(name, caption) for caption in written for name in caption["mentioned"]]
    visible = len(mentions) + sum(len(c["omitted"]) for c in written)
    words = sum(len(re.findall("[A-Za-z]+", c["text"])) for c in written)
    assert 1 - len(mentions) / visible == pytest.approx(manner.omission, abs=0.02)
    assert sum(len(c["wrong"]) for c in written) / len(mentions) == pytest.approx(manner.mistake, abs=0.015)
    assert sum(len(c["misspelled"]) for c in written) / words == pytest.approx(manner.misspelling, abs=0.006)
    assert np.mean([c["remark"] for c in written]) == pytest.approx(manner.remark, abs=0.06)
    assert np.mean([bool(c["absent"]) for c in written]) == pytest.approx(manner.negation, abs=0.06)
    colours = [name in caption["unseen"] for name, caption in mentions if name in ("upper_colour", "shoes_colour")]
    assert np.mean(colours) == pytest.approx(manner.unseen_words, abs=0.06)


def test_misspellings_are_in_the_text(people: list[Identity]) -> None:
    for caption in describe(people, replace(EXACT, misspelling=0.1)):
        assert caption["misspelled"]
        for slip in caption["misspelled"]:
            assert slip["word"] != slip["written"]
            assert slip["written"] in caption["text"]


def test_english(people: list[Identity]) -> None:
    texts = [c["text"] for c in describe(people * 2, Manner(0.4, 0.05, 0, 0.2, 0.2, 0.7, 0.3, 0.3))]
    for text in texts:
        assert not re.search(r"\ban? (?=an? )|\b[Aa] [aeiou]|\b[Aa]n [^aeiou\W]|[{}\[\]|+*]|  |\.\.|,\s*,| ,| \.", text)
        assert not re.search(
            r"\b(they|They) (is|has|was|wears|carries|seems|looks|does)\b|\b([Ss]?[Hh]e) (are|have|seem|do) ", text
        ), text
    lengths = [len(text.split()) for text in texts]
    assert 18 <= np.mean(lengths) <= 26
    assert np.std(lengths) > 5
    assert np.mean([text.endswith(".") for text in texts]) > 0.8
    assert np.mean([text[0].isupper() for text in texts]) > 0.8
    assert len(set(texts)) > 0.95 * len(texts)
    assert len({w for text in texts for w in re.findall("[a-z]+", text.lower())}) > 350


# -- words that training never sees ---------------------------------------------------------------------------


def test_no_kept_word_is_in_an_option_that_is_not_kept() -> None:
    for text in options(LEXICON):
        if "*" not in text:
            assert not KEPT_WORDS & words_of(text), text


def test_every_value_has_two_kept_words() -> None:
    tables = {"colour_words", "hair_colour_words", "garments", "stature", "patterns", "nouns"}
    for table in tables:
        for value, words in LEXICON[table].items():
            assert len({word for word in words if "*" in word}) >= 2, (table, value)
    for table in ("hair_phrases", "pattern_phrases"):
        for value, phrases in LEXICON[table].items():
            if value and value in (*TABLES["weights_by_gender"]["hair_style"]["woman"], "bald", "logo"):
                assert len(set(re.findall(r"\*([\w-]+)", " ".join(phrases)))) >= 2, (table, value)
    assert set(LEXICON["colour_words"]) == set(COLOURS)


def test_kept_words_are_in_validation_and_test_only(rendered: Path, people: list[Identity]) -> None:
    records, truth = read(rendered)
    unseen = {
        (image["id"], caption["text"]): caption["unseen"] for image in truth["images"] for caption in image["captions"]
    }
    found = Counter()
    for record in records:
        for text in record["captions"]:
            kept = set(unseen[record["id"], text].values())
            assert record["split"] != "train" or not kept | (KEPT_WORDS & words_of(text))
            found[record["split"]] += len(kept)
    assert min(found["val"], found["test"]) > 5
    for caption in describe(people, replace(EXACT, unseen_words=1)):  # and all of them are written
        assert set(caption["unseen"].values()) <= KEPT_WORDS & words_of(caption["text"]), caption
        assert {"upper_colour", "gender"} & set(caption["unseen"])
    for caption in describe(people * 3, replace(EXACT, misspelling=0.3, negation=1, remark=1, shades=0.5)):
        assert not KEPT_WORDS & words_of(caption["text"]), caption["text"]


# -- what is not there, and who writes ------------------------------------------------------------------------


def test_what_is_said_to_be_absent_is_absent(people: list[Identity]) -> None:
    words = {
        "headwear": r"hat|cap|head",
        "glasses": r"glasses|sunglasses",
        "scarf": "scarf",
        "bag": r"bag|backpack|hand|any",
    }
    for person, caption in zip(people, describe(people, replace(EXACT, negation=1)), strict=True):
        for name in caption["absent"]:
            assert getattr(person, name) == NONE
            assert caption["stated"][name] == [NONE]
            assert re.search(rf"\b(no|not|nothing|bare|empty)\b.*({words[name]})|bare", caption["text"]), caption[
                "text"
            ]
        lacking = sum(getattr(person, name) == NONE for name in words) - (person.headwear == "headscarf")
        assert min(1, lacking) <= len(caption["absent"]) <= min(2, lacking)


def test_describers_have_habits(people: list[Identity]) -> None:
    def spread(habits: float) -> float:
        """Standard deviation between describers of the mean number of words that one writes of the same people."""
        manner = Manner(0.4, 0, 0, 0, 0, habits, 0.3, 0)
        return float(np.std([np.mean([len(captions.write_caption(
            np.random.default_rng([k, 1]), person, (), Describer(writer, 0), manner)["text"].split())
            for k, person in enumerate(people[:100])]) for writer in range(12)]))  # fmt: skip

    assert spread(1.0) > 3 * spread(0.0)


def test_shades_are_called_by_other_colours_and_the_truth_says_so() -> None:
    person = replace(draw_identity(np.random.default_rng(0)), upper_colour="teal", upper_second=NONE,
                     upper_pattern="plain",
                     inner_colour=NONE, lower_colour="black")  # fmt: skip
    hidden = [name for name in person.as_dict() if name not in ("gender", "upper", "upper_colour")]
    seen = {}
    for writer in range(40):
        caption = captions.write_caption(
            np.random.default_rng(writer), person, hidden, Describer(writer, 0), replace(EXACT, shades=0.5)
        )
        for word in ("teal", "blue-green", "green", "blue"):
            if word in words_of(caption["text"]):
                seen[word] = set(caption["stated"]["upper_colour"])
    assert seen["green"] == {"green", "dark green", "olive", "teal", "turquoise"}
    assert {"teal"} <= seen["blue"] & seen["green"]
    assert seen["teal"] == {"teal"}


# -- pictures -------------------------------------------------------------------------------------------------


def drawn(person: Identity, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """Surfaces and materials (300, 200) of a person of 270 pixels with the feet at (100, 290); -1 where nobody is."""
    figure = Figure(person, draw_build(np.random.default_rng(0), person), STANDING, View(yaw, 0.1, 100, 290, 270))
    canvas = Canvas(200, 300)
    figure.draw(canvas)
    where, colours, _, material = figure.paint(canvas, np.array([0.0, -0.6, 0.8]), 0.5)
    assert np.isfinite(colours).all()
    materials = np.full(300 * 200, -1)
    materials[where] = material
    return canvas.surface, materials.reshape(300, 200)


@pytest.mark.parametrize("bag", ["handbag", "shoulder bag", "plastic bag", "briefcase", "suitcase"])
def test_bag_is_on_the_persons_own_side(bag: str) -> None:
    def centre(side: str, yaw: float) -> float:
        person = replace(draw_identity(np.random.default_rng(1)), bag=bag, bag_side=side, bag_colour="red")
        return float(np.nonzero(drawn(person, yaw)[0] == SURFACE["bag"])[1].mean() - 100) / 270

    assert centre("left", 0) > 0.05  # facing us, their left is on our right
    assert centre("right", 0) < -0.05
    assert centre("left", math.pi) < -0.05  # from behind, their left is on our left
    assert centre("right", math.pi) > 0.05


def test_garments_are_where_they_belong_in_their_colours() -> None:
    person = replace(draw_identity(np.random.default_rng(2)), age="adult", upper="t-shirt", upper_colour="green",
                     scarf=NONE,
                     upper_pattern="logo", upper_second="red", inner_colour=NONE, lower="trousers", lower_colour="red",
                     bag=NONE, bag_side=NONE, glasses="glasses", headwear=NONE, hair_style="short")  # fmt: skip
    names = np.array([*MATERIALS, "nothing"])
    front, back = (names[drawn(person, yaw)[1]] for yaw in (0, math.pi))
    assert front[106, 100] == "second"  # the logo, on the chest only
    assert "second" not in back
    assert (front[140, 100], front[200, 88], back[140, 100]) == ("upper", "lower", "upper")
    assert "glasses" in front[30:60]
    assert not {"glasses", "dark", "lip"} & set(back[:80].ravel())
    colours = draw_build(np.random.default_rng(0), person).colours
    assert np.abs(np.subtract(colours["upper"], COLOURS["green"])).max() < 20


def test_children_have_larger_heads() -> None:
    def head(age: str) -> int:
        person = replace(
            draw_identity(np.random.default_rng(2)), age=age, hair_style="bald", headwear=NONE, height="average"
        )
        return int((drawn(person, 0)[0] == SURFACE["head"]).sum())

    assert head("child") > 1.8 * head("adult")


@pytest.mark.parametrize("size", [(32, 64), (128, 512), (200, 128)])
def test_other_sizes(size: tuple[int, int]) -> None:
    person = draw_identity(np.random.default_rng(5))
    conditions = replace(CONDITIONS, width=size[0], height=size[1], occlusion=1.0, smallest=40)
    image, truth = render_image(np.random.default_rng(6), person, 1, places.CAMERAS[0], conditions)
    assert image.size == size
    assert truth["occlusion"] is not None


def test_what_is_hidden_follows_the_picture() -> None:
    seen = []
    for k, person in enumerate(dataset._draw_people(PedestrianSpec(100, 1, 1))):
        camera = places.CAMERAS[k % len(places.CAMERAS)]
        truth = render_image(np.random.default_rng(k), person.identity, k, camera, CONDITIONS)[1]
        hidden = set(truth["hidden"])
        seen.append(truth)
        if truth["view"] in ("back", "three-quarter back"):
            assert "glasses" in hidden
            assert "inner_colour" in hidden or person.identity.inner_colour == NONE or truth["yaw"] in range(112, 160)
        if truth["cut_off"] == "head" and person.identity.age != "child":
            assert {"age", "hair_style", "headwear"} <= hidden
        if truth["occlusion"] is None and truth["cut_off"] is None and not truth["others"] and truth["view"] == "front":
            assert not {"upper", "upper_colour", "lower_colour", "gender", "age"} & hidden
    assert 0.35 < np.mean([truth["occlusion"] is not None for truth in seen]) < 0.65
    assert 0.1 < np.mean([truth["cut_off"] is not None for truth in seen]) < 0.3
    assert 0.2 < np.mean([truth["others"] > 0 for truth in seen]) < 0.4
    assert {truth["view"] for truth in seen} >= {"front", "back", "side"}
    assert min(truth["original_height"] for truth in seen) >= 120


def test_small_originals_show_less() -> None:
    def hidden(smallest: int) -> float:
        conditions = Conditions(32, 64, 0, 0, 0, smallest, 0)
        people = [draw_identity(np.random.default_rng(k)) for k in range(60)]
        return sum(len(render_image(np.random.default_rng(k), person, k, places.CAMERAS[0], conditions)[1]["hidden"])
                   for k, person in enumerate(people))  # fmt: skip

    assert hidden(40) > hidden(300)


# -- bounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [("train_identities", 0, "1"), ("test_identities", 2.5, "integer"), ("images_per_identity", 0.5, "1"),
     ("height", 63, "64"), ("height", 513, "512"), ("seed", -1, "0"), ("omission", 0.95, "0.9"), ("mistake", 1.1, "1"),
     ("misspelling", -0.1, "0"), ("remark", float("nan"), "finite"), ("occlusion", 2, "1"), ("negation", 1.5, "1"),
     ("near_duplicate", "half", "number"), ("captions_per_image", True, "integer"), ("unseen_words", 2, "1"),
     ("smallest", 39, "40"), ("describers", 0, "1")],
)  # fmt: skip
def test_bounds(field: str, value: object, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){field}.*{re.escape(bound)}") as error:
        PedestrianSpec(**{field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize("difficulty", dataset.DIFFICULTIES)
def test_difficulties_set_all_shares(difficulty: str) -> None:
    given = {field.name for field in fields(Manner)} | {"occlusion", "company", "cut_off", "near_duplicate"}
    spec = PedestrianSpec.of_size(13, difficulty)
    assert set(dataset.DIFFICULTIES["easy"]) == given | {"smallest"}
    if difficulty == "standard":
        assert spec == PedestrianSpec(11, 1, 1)
    easy, hard = (PedestrianSpec.of_size(13, name) for name in ("easy", "hard"))
    assert all(getattr(easy, name) <= getattr(spec, name) <= getattr(hard, name) for name in given)
    assert PedestrianSpec.of_size(13, difficulty, omission=0.5).omission == 0.5
    with pytest.raises(ValueError, match="difficulty = 'none' must be one of easy, standard, hard"):
        PedestrianSpec.of_size(13, "none")


def test_options_of_the_command_reach_the_spec(tmp_path: Path) -> None:
    options = ["--identities", "3", "--height", "64", "--width", "32", "--workers", "1", "--difficulty", "hard"]
    options += ["--unseen-words", "1", "--negation", "0.25", "--smallest", "90", "--cut-off", "0"]
    run = CliRunner().invoke(cli, ["data", "pedestrians", "--output", str(tmp_path / "out"), *options])
    assert run.exit_code == 0, run.output
    spec = PedestrianSpec.of_size(3, "hard", height=64, width=32, unseen_words=1.0, negation=0.25, smallest=90,
                                  cut_off=0.0, images_per_identity=3.092)  # fmt: skip
    assert read(tmp_path / "out")[1]["spec"] == asdict(spec)


def test_too_few_identities_and_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"identities = 2 .*3"):
        PedestrianSpec.of_size(2)
    with pytest.raises(ValueError, match="workers = 0"):
        render_pedestrians(tmp_path / "out", SPEC, workers=0)
