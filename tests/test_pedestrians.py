"""The rendered pedestrians: layout, exact ground truth, determinism, and what happens when things go wrong."""

import json
import math
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from timam.cli import cli
from timam_lab.pedestrians import PedestrianSpec, captions, dataset, places, render_pedestrians, spec
from timam_lab.pedestrians.attributes import COLOURS, NONE, Identity, draw_identity
from timam_lab.pedestrians.captions import KEPT_WORDS, LEXICON, Describer
from timam_lab.pedestrians.figure import MATERIALS, SURFACE, Canvas, Figure, Pose, View, draw_build
from timam_lab.pedestrians.scene import render_image

SPEC = PedestrianSpec(9, 3, 2, images_per_identity=2.6, height=64, width=32, seed=3, occlusion=0.4, near_duplicate=0.4,
                      unseen_words=0.5)  # fmt: skip
EXACT = PedestrianSpec(omission=0, mistake=0, misspelling=0, remark=0, negation=0, habits=0, shades=0, unseen_words=0)
STANDING = Pose("standing", (0.02, -0.02), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.1, 0.1))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(folder: Path) -> tuple[list[dict], dict]:
    return tuple(json.loads((folder / name).read_text()) for name in ("reid_raw.json", "attributes.json"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    render_pedestrians(output := tmp_path_factory.mktemp("pedestrians") / "out", SPEC, workers=1, progress=False)
    return output


@pytest.fixture(scope="module")
def people() -> list[Identity]:
    return [draw_identity(np.random.default_rng(k)) for k in range(300)]


def describe(people: list[Identity], manner: PedestrianSpec, hidden: tuple | set = (), writer: int | None = None):
    """A caption of each person, by one writer or by twelve in turn."""
    writers = [Describer(k % 12 if writer is None else writer, 0) for k in range(len(people))]
    return [captions.write_caption(np.random.default_rng([k, 1]), person, hidden, writers[k], manner)
            for k, person in enumerate(people)]  # fmt: skip


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower()))


def test_layout_and_schema(rendered):
    records, truth = read(rendered)
    assert sorted(p.name for p in rendered.iterdir()) == ["attributes.json", "imgs", "reid_raw.json"]
    split_of = {identity["id"]: identity["split"] for identity in truth["identities"]}
    assert split_of == dict(enumerate(["train"] * 9 + ["val"] * 3 + ["test"] * 2, start=1))
    for record in records:
        assert set(record) == {"split", "captions", "file_path", "id"}
        assert record["split"] == split_of[record["id"]]
        assert [bool(c.strip()) for c in record["captions"]] == [True] * SPEC.captions_per_image
        with Image.open(rendered / "imgs" / record["file_path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SPEC.width, SPEC.height))
    on_disk = [str(p.relative_to(rendered / "imgs")) for p in rendered.rglob("*.jpg")]
    assert sorted(on_disk) == sorted(r["file_path"] for r in records)
    assert len(on_disk) == SPEC.images == round(2.6 * 14)
    assert len({path.split("/")[0] for path in on_disk}) > 3  # several camera folders
    assert truth["spec"] == asdict(SPEC)


@pytest.mark.slow
def test_same_bytes_from_other_processes_and_other_bytes_for_another_seed(rendered, tmp_path):
    render_pedestrians(tmp_path / "two", SPEC, workers=2, progress=False)  # each with its own global generator
    assert files_of(tmp_path / "two") == files_of(rendered)
    render_pedestrians(tmp_path / "other", replace(SPEC, seed=4), workers=1, progress=False)
    pictures, others = ({p.read_bytes() for p in root.rglob("*.jpg")} for root in (rendered, tmp_path / "other"))
    assert len(pictures) == SPEC.images
    assert not pictures & others
    assert read(tmp_path / "other")[1]["identities"] != read(rendered)[1]["identities"]


def test_what_is_there_is_kept_and_anything_else_refused(rendered, tmp_path, monkeypatch):
    before = files_of(rendered)
    monkeypatch.setattr(dataset, "_draw_people", lambda spec: pytest.fail("rendered again"))
    render_pedestrians(rendered, SPEC, progress=False)
    with pytest.raises(FileExistsError, match="height: 64 there, 65 asked; seed: 3 there, 5 asked"):
        render_pedestrians(rendered, replace(SPEC, seed=5, height=65))
    with pytest.raises(ValueError, match="workers = 0"):
        render_pedestrians(rendered, SPEC, workers=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no rendered pedestrians"):
        render_pedestrians(tmp_path, SPEC)
    monkeypatch.setattr(dataset, "RENDERER_VERSION", -1)
    with pytest.raises(FileExistsError, match="renderer version"):
        render_pedestrians(rendered, SPEC)
    assert files_of(rendered) == before


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(folder, *args):
        assert len(list(folder.rglob("*.jpg"))) == SPEC.images
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_pedestrians(tmp_path / "out", SPEC, workers=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_near_duplicates_differ_in_what_they_say_and_nobody_is_there_twice():
    people = dataset._draw_people(PedestrianSpec(600, 60, 60, near_duplicate=0.75))
    assert len({(person.split, person.identity) for person in people}) == len(people)
    pictures = [person.images for person in people]
    assert (min(pictures), sum(pictures)) == (2, round(720 * 40_206 / 13_003))
    copies = [person for person in people if person.near_duplicate_of is not None]
    assert Counter(person.split for person in copies) == {"train": 450, "val": 45, "test": 45}
    for copy in copies:
        model = people[copy.near_duplicate_of - 1]
        mine, theirs = asdict(copy.identity), asdict(model.identity)
        assert model.split == copy.split
        assert copy.changed == sorted(name for name in mine if mine[name] != theirs[name])
        assert 1 <= len(copy.changed) <= 2
    for person in (person.identity for person in people):  # and everybody is coherent
        assert (person.upper == "dress") == (person.lower == NONE) == (person.lower_colour == NONE)
        assert (person.upper_pattern == "plain") == (person.upper_second == NONE)
        assert person.upper_second != person.upper_colour
        assert (person.bag in (NONE, "backpack")) == (person.bag_side == NONE)
        assert (person.bag == NONE) == (person.bag_colour == NONE)


def says(text: str, name: str, value: str) -> bool:
    stems = {
        "short": "short|close-cut", "shoulder length": "shoulder|medium", "long": "long|back|falls",
        "ponytail": "ponytail|pony tail", "bald": "bald|shaved|no hair", "curly": "curl", "striped": "stripe",
        "vertically striped": "vertical", "checked": "check|plaid|grid", "dotted": "dot|spot",
        "floral": "flower|floral", "logo": "logo|print|graphic|picture|lettering", "camouflage": "camo|military",
        "colour block": "two-tone|color block|half|on top|at the top",
    }  # fmt: skip
    if name in ("gender", "age"):
        words = [word for key, nouns in LEXICON["nouns"].items() if value in key.split() for word in nouns]
    elif name.endswith("_colour") or name == "upper_second":
        words = LEXICON["hair_colour_words" if name == "hair_colour" else "colour_words"][value]
    elif name in ("hair_style", "upper_pattern", "bag_side"):
        words = stems.get(value, value).split("|")
    else:
        words = LEXICON["stature" if name in ("height", "build") else "garments"][value]
    return any(word.removeprefix("+") in text.lower() for word in words if "*" not in word)


@pytest.mark.parametrize("shares", [{}, {"omission": 0.6}, {"mistake": 1.0}, {"misspelling": 0.1}], ids=str)
def test_captions_say_what_their_truth_claims(people, shares):
    for person, caption in zip(people, describe(people, replace(EXACT, **shares)), strict=True):
        assert not any(caption[k] for k in ("absent", "unseen", "remark"))
        visible = captions.visible_attributes(person, ())
        assert (caption["mentioned"] == list(visible)) == ("omission" not in shares)
        assert {*caption["mentioned"], *caption["omitted"]} == set(visible)
        said = {name: visible[name] for name in caption["mentioned"]}
        mistaken = set(said) - {"scarf"} if "mistake" in shares else set()
        assert {wrong["attribute"] for wrong in caption["wrong"]} == mistaken
        for wrong in caption["wrong"]:
            assert wrong["true"] == said[wrong["attribute"]] != wrong["stated"]
            said[wrong["attribute"]] = wrong["stated"]
        grown_up = {"age": ["adult", "elderly"]} if "gender" in said and "age" not in said else {}
        assert caption["stated"] == grown_up | {name: [value] for name, value in said.items()}
        assert bool(caption["misspelled"]) == ("misspelling" in shares)
        assert all(slip["word"] != slip["written"] in caption["text"] for slip in caption["misspelled"])
        if not caption["misspelled"]:
            unsaid = ("age", "adult")  # a mistaken adult is a man or a woman
            assert all(says(caption["text"], *each) for each in said.items() if each != unsaid), caption


def test_shares_are_near_the_requested_ones(people):
    manner = PedestrianSpec(omission=0.35, mistake=0.1, misspelling=0.05, remark=0.3, negation=0.4, unseen_words=0.6,
                            shades=0)  # fmt: skip
    written = describe(people * 2, manner)
    mentions = [(name, caption) for caption in written for name in caption["mentioned"]]
    words = sum(len(re.findall("[A-Za-z]+", c["text"])) for c in written)
    omitted = sum(len(c["omitted"]) for c in written)
    assert omitted / (omitted + len(mentions)) == pytest.approx(manner.omission, abs=0.02)
    assert sum(len(c["wrong"]) for c in written) / len(mentions) == pytest.approx(manner.mistake, abs=0.015)
    assert sum(len(c["misspelled"]) for c in written) / words == pytest.approx(manner.misspelling, abs=0.006)
    assert np.mean([c["remark"] for c in written]) == pytest.approx(manner.remark, abs=0.06)
    assert np.mean([bool(c["absent"]) for c in written]) == pytest.approx(manner.negation, abs=0.06)
    colours = [name in caption["unseen"] for name, caption in mentions if name in ("upper_colour", "shoes_colour")]
    assert np.mean(colours) == pytest.approx(manner.unseen_words, abs=0.06)


def test_english(people):
    texts = [c["text"] for c in describe(people * 2, PedestrianSpec(omission=0.4, misspelling=0, unseen_words=0.3))]
    plural = r"\b(they|They) (is|has|was|wears|carries|seems|looks|does)\b|\b([Ss]?[Hh]e) (are|have|seem|do) "
    for text in texts:
        assert not re.search(r"\ban? (?=an? )|\b[Aa] [aeiou]|\b[Aa]n [^aeiou\W]|[{}\[\]|+*]|  |\.\.|,\s*,| ,| \.", text)
        assert not re.search(plural, text), text
    lengths = [len(text.split()) for text in texts]
    assert 18 <= np.mean(lengths) <= 26
    assert min(np.mean([(text.endswith("."), text[0].isupper()) for text in texts], axis=0)) > 0.8
    assert len({w for text in texts for w in re.findall("[a-z]+", text.lower())}) > 350


def test_kept_words_are_in_validation_and_test_only(rendered, people):
    truth, found = read(rendered)[1], Counter()
    split_of = {identity["id"]: identity["split"] for identity in truth["identities"]}
    for split, caption in ((split_of[image["id"]], c) for image in truth["images"] for c in image["captions"]):
        assert split != "train" or not caption["unseen"] | dict.fromkeys(KEPT_WORDS & words_of(caption["text"]))
        found[split] += len(caption["unseen"])
    assert min(found["val"], found["test"]) > 5
    for caption in describe(people, replace(EXACT, unseen_words=1)):  # and all of them are written
        assert set(caption["unseen"].values()) <= KEPT_WORDS & words_of(caption["text"]), caption
        assert set(caption["mentioned"]) - set(caption["unseen"]) <= {"bag_side", "gender"}  # no words, or those of age
    for caption in describe(people * 3, replace(EXACT, misspelling=0.3, negation=1, remark=1, shades=0.5)):
        assert not KEPT_WORDS & words_of(caption["text"]), caption["text"]


def test_what_is_hidden_is_not_mentioned_and_what_is_said_to_be_absent_is_absent(people):
    hidden = ("shoes", "shoes_colour", "hair_style", "hair_colour", "headwear", "headwear_colour", "bag", "bag_colour")
    for caption in describe(people, replace(EXACT, negation=1), hidden):
        assert not set(hidden) & set(caption["mentioned"] + caption["omitted"] + caption["absent"])
        assert not re.search(r"\b(shoes|sneakers|boots|heels|hair|ponytail|hat|backpack)\b", caption["text"].lower())
    words = {"headwear": "hat|cap|head", "glasses": "glasses", "scarf": "scarf", "bag": "bag|backpack|hand|any"}
    for person, caption in zip(people, describe(people, replace(EXACT, negation=1)), strict=True):
        for name in caption["absent"]:
            assert getattr(person, name) == NONE
            assert caption["stated"][name] == [NONE]
            assert re.search(rf"\b(no|not|nothing|bare|empty)\b.*({words[name]})|bare", caption["text"]), caption
        lacking = sum(getattr(person, name) == NONE for name in words) - (person.headwear == "headscarf")
        assert min(1, lacking) <= len(caption["absent"]) <= min(2, lacking)


def test_describers_have_habits(people):
    def words(habits: float, writer: int) -> float:  # that one writes of the same people, on average
        manner = replace(EXACT, omission=0.4, habits=habits, shades=0.3)
        return float(np.mean([len(caption["text"].split()) for caption in describe(people[:100], manner, (), writer)]))

    natural, habitual = (np.std([words(habits, writer) for writer in range(12)]) for habits in (0.0, 1.0))
    assert habitual > 3 * natural


def test_shades_are_called_by_other_colours_and_the_truth_says_so():
    person = replace(draw_identity(np.random.default_rng(0)), upper_colour="teal", upper_second=NONE,
                     upper_pattern="plain", inner_colour=NONE)  # fmt: skip
    seen, hidden = {}, set(asdict(person)) - {"gender", "upper", "upper_colour"}
    for writer in range(40):
        (caption,) = describe([person], replace(EXACT, shades=0.5), hidden, writer)
        for word in {"teal", "blue-green", "green", "blue"} & words_of(caption["text"]):
            seen[word] = set(caption["stated"]["upper_colour"])
    assert seen["green"] == {"green", "dark green", "olive", "teal", "turquoise"}
    assert "teal" in seen["blue"]
    assert seen["teal"] == {"teal"}


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
def test_bag_is_on_the_persons_own_side(bag):
    person = replace(draw_identity(np.random.default_rng(1)), bag=bag, bag_colour="red")
    # Facing us, their left is on our right; from behind, on our left.
    for side, yaw, sign in (("left", 0, 1), ("right", 0, -1), ("left", math.pi, -1), ("right", math.pi, 1)):
        columns = np.nonzero(drawn(replace(person, bag_side=side), yaw)[0] == SURFACE["bag"])[1]
        assert sign * (columns.mean() - 100) / 270 > 0.05


def test_garments_are_where_they_belong_in_their_colours():
    person = replace(draw_identity(np.random.default_rng(2)), age="adult", upper="t-shirt", upper_colour="green",
                     scarf=NONE, upper_pattern="logo", upper_second="red", inner_colour=NONE, lower="trousers",
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
    heads = (replace(person, age=age, hair_style="bald", height="average") for age in ("adult", "child"))
    adult, child = ((drawn(person, 0)[0] == SURFACE["head"]).sum() for person in heads)
    assert child > 1.8 * adult


def test_what_is_hidden_follows_the_picture():
    conditions = PedestrianSpec(width=32, height=64, occlusion=0.5, cut_off=0.2, smallest=120)
    smaller, seen, too_small = replace(conditions, smallest=40), [], set()
    for k, person in enumerate(dataset._draw_people(PedestrianSpec(60, 1, 1))):
        shown = person.identity, k, places.CAMERAS[k % len(places.CAMERAS)]
        truth, small = (render_image(np.random.default_rng(k), *shown, each)[1] for each in (conditions, smaller))
        seen.append(truth)
        hidden = set(truth["hidden"])
        assert hidden <= set(small["hidden"])
        too_small |= set(small["hidden"]) - hidden
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
    assert {"glasses", "upper_pattern"} <= too_small


def test_sizes_and_difficulties():
    full = PedestrianSpec.of_size(13_003)  # CUHK-PEDES
    assert full == PedestrianSpec(11_003, 1_000, 1_000)
    assert full.images == 40_206
    assert PedestrianSpec.of_size(3) == PedestrianSpec(1, 1, 1)
    shares = {name for name in asdict(SPEC) if PedestrianSpec.__annotations__[name] == "Share"} | {"omission"}
    easy, standard, hard = (PedestrianSpec.of_size(13, name) for name in spec.DIFFICULTIES)
    assert set(spec.DIFFICULTIES["easy"]) == shares | {"smallest"}
    assert standard == PedestrianSpec(11, 1, 1)
    assert all(getattr(easy, name) <= getattr(standard, name) <= getattr(hard, name) for name in shares)
    assert PedestrianSpec.of_size(13, "hard", omission=0.5) == replace(hard, omission=0.5)


def test_options_of_the_command_reach_the_spec(tmp_path):
    options = ["--identities", "3", "--height", "64", "--width", "32", "--workers", "1", "--difficulty", "hard"]
    options += ["--unseen-words", "1", "--negation", "0.25", "--smallest", "90", "--cut-off", "0"]
    run = CliRunner().invoke(cli, ["data", "pedestrians", "--output", str(tmp_path / "out"), *options])
    assert run.exit_code == 0, run.output
    asked = {"height": 64, "width": 32, "unseen_words": 1.0, "negation": 0.25, "smallest": 90, "cut_off": 0.0}
    assert read(tmp_path / "out")[1]["spec"] == asdict(PedestrianSpec.of_size(3, "hard", **asked))
