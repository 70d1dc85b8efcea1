"""timam.data: readers and records on small layouts with the oddities of the real files, and what may be wrong there."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from layouts import karpathy_images, person_search_records, write_karpathy, write_person_search, write_picture

from timam.data import DATASETS, DataError, Dataset, Record, load_dataset, read_dataset

STAMPS = Path(__file__).parents[2] / "shared" / "data" / "stamps_flickr"


def odd_records() -> list[dict]:
    """CUHK-PEDES with what its real file holds: ids from 1, ragged captions, an id with one picture, an extra key."""
    records = person_search_records(train=4, val=2, test=2)
    records[0]["captions"] = ["first caption", "second caption", "third caption", "fourth caption"]
    records[3]["captions"] = ["the only caption"]
    del records[7]  # identity 4 keeps one picture
    for record in records:
        record["processed_tokens"] = [caption.split() for caption in record["captions"]]
    return records


@pytest.mark.parametrize("name", ["pedestrians", "cuhk-pedes"])
def test_person_search_layout(tmp_path, name):
    dataset = load_dataset(name, write_person_search(tmp_path, odd_records()))
    assert dataset.kind == "identity"
    train, val, test = (dataset.split(s) for s in ("train", "val", "test"))
    # 4 identities with 2 pictures each less the deleted one; 2 captions a picture except 4 for the first, 1 for the 4th
    assert (len(train.image_paths), len(train.captions)) == (7, 4 + 2 + 2 + 1 + 2 + 2 + 2)
    assert train.image_labels.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert train.identities.tolist() == [1, 2, 3, 4]
    assert val.image_labels.tolist() == test.image_labels.tolist() == [0, 0, 1, 1]  # contiguous in every split
    assert (val.identities.tolist(), test.identities.tolist()) == ([5, 6], [7, 8])
    assert train.image_paths[0] == tmp_path / "imgs" / "cam_a" / "p1_0.png"
    assert {a.dtype for a in (train.image_labels, train.caption_labels)} == {np.dtype(np.int64)}


def test_caption_knows_its_picture_where_captions_are_ragged(tmp_path):
    train = load_dataset("cuhk-pedes", write_person_search(tmp_path, odd_records())).split("train")
    assert train.caption_image.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]
    assert [of_image.tolist() for of_image in train.captions_of_image] == [
        [0, 1, 2, 3], [4, 5], [6, 7], [8], [9, 10], [11, 12], [13, 14],
    ]  # fmt: skip
    assert train.captions[8] == "the only caption"
    assert train.caption_labels.tolist() == [0] * 6 + [1] * 3 + [2] * 4 + [3] * 2


def test_labels_follow_the_identities_not_the_order_of_the_records(tmp_path):
    records = person_search_records(train=3, val=1, test=1, images=1)
    for record, identity in zip(records, (30, 10, 20, 5, 7), strict=True):
        record["id"] = identity
    train = load_dataset("cuhk-pedes", write_person_search(tmp_path, records[::-1])).split("train")
    assert train.identities.tolist() == [10, 20, 30]
    assert train.image_labels.tolist() == [1, 0, 2]  # read in the order 20, 10, 30


def test_identities_of_the_splits_are_disjoint(tmp_path):
    dataset = load_dataset("cuhk-pedes", write_person_search(tmp_path))
    ids = [set(dataset.split(s).identities.tolist()) for s in ("train", "val", "test")]
    assert set.union(*ids) == set(range(1, 13))
    assert sum(map(len, ids)) == 12


@pytest.mark.parametrize("folder", ["flickr30k-images", "images"])
def test_karpathy_layout(tmp_path, folder):
    dataset = load_dataset("flickr30k", write_karpathy(tmp_path, karpathy_images(), folder))
    train = dataset.split("train")
    assert dataset.kind == "instance"
    assert train.image_labels.tolist() == [0, 1, 2]  # every picture is its own identity
    assert train.caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert train.captions[6] == "Picture 1, sentence 1."  # the raw sentence, not its tokens
    assert train.image_paths[2] == tmp_path / folder / "1002.jpg"
    assert dataset.split("test").image_labels.tolist() == [0, 1]


def test_karpathy_restval_trains_and_filepath_is_a_folder(tmp_path):
    images = karpathy_images(train=2)
    images[1] |= {"split": "restval", "filepath": "val2014"}  # as in the file of COCO
    images[2] |= {"filepath": "val2014"}
    dataset = load_dataset("flickr30k", write_karpathy(tmp_path, images))
    assert len(dataset.split("train").image_paths) == 2
    assert dataset.split("train").image_paths[1] == tmp_path / "flickr30k-images" / "val2014" / "1001.jpg"


def test_same_picture_text_is_no_conflict_between_instances(tmp_path):
    images = karpathy_images()
    images[3]["sentences"] = images[0]["sentences"]  # two pictures may share sentences
    assert len(load_dataset("flickr30k", write_karpathy(tmp_path, images)).records) == 7


@pytest.mark.skipif(not STAMPS.is_dir(), reason=f"needs {STAMPS}")
def test_real_pictures_in_karpathys_form():
    dataset = load_dataset("flickr30k", STAMPS)
    assert [len(dataset.split(s).image_paths) for s in ("train", "val", "test")] == [628, 79, 78]
    images = json.loads((STAMPS / "dataset_flickr30k.json").read_text(encoding="utf-8"))["images"]
    assert [r.captions for r in dataset.records] == [tuple(s["raw"] for s in image["sentences"]) for image in images]


# -- what is wrong ----------------------------------------------------------------------------------------------


def edit(position: int, **values):
    """Changes one record; a value of ... removes the key."""

    def change(records: list) -> None:
        for key, value in values.items():
            if value is ...:
                del records[position][key]
            else:
                records[position][key] = value

    return change


def replace_with(position: int, value):
    return lambda records: records.__setitem__(position, value)


LONG = "x" * 300 + ".png"  # beyond the 255 bytes of a file name

# name: (change of the records, what the problem's line must say)
BAD_RECORDS = {
    "missing split": (edit(2, split=...), ["no key 'split'", "captions"]),
    "missing captions": (edit(2, captions=...), ["no key 'captions'"]),
    "missing path": (edit(2, file_path=...), ["no key 'file_path'"]),
    "missing id": (edit(2, id=...), ["no key 'id'"]),
    "id string": (edit(2, id="2"), ["id = '2'", "int"]),
    "id float": (edit(2, id=2.0), ["id = 2.0", "int"]),
    "id bool": (edit(2, id=True), ["id = True", "int"]),
    "id null": (edit(2, id=None), ["id = None", "int"]),
    "captions string": (edit(2, captions="a man"), ["captions = 'a man'", "list"]),
    "path number": (edit(2, file_path=7), ["file_path = 7", "str"]),
    "split number": (edit(2, split=1), ["split = 1", "str"]),
    "no captions": (edit(2, captions=[]), ["no captions"]),
    "empty caption": (edit(2, captions=["fine", ""]), ["caption 1 = ''"]),
    "blank caption": (edit(2, captions=[" \n\t"]), ["caption 0 = ' \\n\\t'"]),
    "caption number": (edit(2, captions=["fine", 3]), ["caption 1 = 3"]),
    "half a character": (edit(2, captions=["cut \ud83d"]), ["caption 0 = 'cut \\ud83d'"]),  # no tokenizer reads it
    "caption null": (edit(2, captions=[None]), ["caption 0 = None"]),
    "unknown split": (edit(2, split="training"), ["unknown split 'training'", "train, val, test"]),
    "record a list": (replace_with(2, ["train"]), ["expected an object", "list"]),
    "record null": (replace_with(2, None), ["expected an object", "NoneType"]),
    "missing picture": (edit(2, file_path="cam_a/none.png"), ["no such picture", "cam_a/none.png"]),
    "a folder": (edit(2, file_path="cam_a"), ["no such picture"]),
    "empty path": (edit(2, file_path=""), ["no such picture"]),
    "path upwards": (edit(2, file_path="../outside.png"), ["leaves the data root", "../outside.png"]),
    "path absolute": (edit(2, file_path="/etc/hostname"), ["leaves the data root", "/etc/hostname"]),
    "symbolic link": (edit(2, file_path="link.png"), ["leaves the data root", "link.png"]),
    "link in a circle": (edit(2, file_path="circle.png"), ["circle.png"]),
    "NUL in path": (edit(2, file_path="a\0b.png"), ["a\\x00b.png"]),
    "long path": (edit(2, file_path=LONG), [LONG]),
    "listed twice": (edit(2, file_path="cam_a/p1_0.png", id=1), ["cam_a/p1_0.png", "record 0"]),
}


@pytest.fixture
def layout(tmp_path):
    """A function that writes a CUHK-PEDES layout with the given changes, links out of it included."""

    def write(*changes) -> Path:
        records = person_search_records()
        root = write_person_search(tmp_path / "data", records)
        write_picture(tmp_path / "data" / "outside.png")  # beside imgs/, and so outside the picture folder
        write_picture(tmp_path / "elsewhere.png")
        (root / "imgs" / "link.png").symlink_to(tmp_path / "elsewhere.png")
        (root / "imgs" / "circle.png").symlink_to("circle.png")
        records = copy.deepcopy(records)
        for change in changes:
            change(records)
        (root / "reid_raw.json").write_text(json.dumps(records))
        return root

    return write


@pytest.mark.parametrize(("change", "expected"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_record_is_reported_with_file_and_record(layout, change, expected):
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", layout(change))
    (problem,) = caught.value.problems  # one cause, one line
    assert problem.startswith("reid_raw.json record 2: ")
    for words in expected:
        assert words in problem
    assert problem in str(caught.value)


def test_every_problem_is_reported_at_once(layout):
    causes = list(BAD_RECORDS)
    changes = []
    for position, cause in enumerate(c for c in causes if c != "listed twice"):
        if position >= 24:  # the layout has 24 pictures; the rest has its own test above
            break
        change, _ = BAD_RECORDS[cause]
        changes.append(lambda records, change=change, at=position: _change_at(records, change, at))
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", layout(*changes))
    problems = caught.value.problems
    for position in range(len(changes)):
        assert any(p.startswith(f"reid_raw.json record {position}: ") for p in problems), causes[position]
    assert f"{len(problems)} problem(s)" in str(caught.value)


def _change_at(records: list, change, at: int) -> None:
    """Applies a change made for position 2 to another one."""
    window = [None, None, records[at]]
    change(window)
    records[at] = window[2]


def test_message_of_many_problems_stays_readable():
    error = DataError("data", [f"problem {i}" for i in range(60)])
    assert len(error.problems) == 60
    assert "problem 49" in str(error)
    assert "problem 50" not in str(error)
    assert "and 10 more" in str(error)


def test_identity_in_two_splits_is_named(layout):
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", layout(edit(1, split="test")))  # identity 1: one picture each in train and test
    assert caught.value.problems == ["identity 1: stands in the splits test, train; expected one"]


@pytest.mark.parametrize("spelling", ["./cam_a/p1_0.png", "cam_a//p1_0.png", "cam_a/../cam_a/p1_0.png"])
def test_picture_listed_twice_is_found_in_another_spelling(layout, spelling):
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", layout(edit(1, file_path=spelling)))
    (problem,) = caught.value.problems
    assert problem.startswith("reid_raw.json record 1: ")
    assert "record 0" in problem


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_empty_split_is_a_problem_unless_it_is_not_required(tmp_path, empty):
    root = write_person_search(tmp_path, **{empty: 0})
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", root)
    assert caught.value.problems == [f"the {empty} split has no identities"]
    others = tuple({"train", "val", "test"} - {empty})
    dataset = load_dataset("cuhk-pedes", root, required_splits=others)
    with pytest.raises(ValueError, match=f"no pictures in its {empty} split"):
        dataset.split(empty)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such annotation file"),
        (b"", "not readable as JSON"),
        (b'[{"split": "train"', "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe[]", "not readable as JSON"),
        (b"[1" + b"1" * 5000 + b"]", "not readable as JSON"),  # Python reads no integer of more than 4,300 digits
        (b"[]", "holds no records"),
        (b"{}", "expected a list of records, found dict"),
        (b"null", "expected a list of records, found NoneType"),
        (b'"a"', "expected a list of records, found str"),
    ],
    ids=["missing", "empty", "truncated", "deep", "not utf-8", "number", "no records", "object", "null", "string"],
)
def test_bad_annotation_file_is_named(tmp_path, content, expected):
    root = write_person_search(tmp_path)
    (root / "reid_raw.json").unlink()
    if content is not None:
        (root / "reid_raw.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", root)
    assert "reid_raw.json" in caught.value.problems[0]
    assert expected in caught.value.problems[0]


def test_missing_root_names_both_parts_and_the_publisher(tmp_path):
    with pytest.raises(DataError) as caught:
        load_dataset("cuhk-pedes", tmp_path / "nowhere")
    annotation, pictures, published = caught.value.problems
    assert "reid_raw.json or caption_all.json: no such annotation file" in annotation
    assert "no folder of pictures; expected imgs" in pictures
    assert "github.com" in published


def test_unknown_dataset_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset 'mnist'.*flickr30k") as caught:
        load_dataset("mnist", tmp_path)
    assert not isinstance(caught.value, DataError)
    assert {"pedestrians", "cuhk-pedes", "flickr30k"} <= set(DATASETS)


def edit_sentence(**values):
    return lambda images: edit(2, **values)(images[1]["sentences"])


BAD_KARPATHY = {
    "missing filename": (edit(1, filename=...), "no key 'filename'"),
    "filename number": (edit(1, filename=7), "filename = 7"),
    "missing sentences": (edit(1, sentences=...), "no key 'sentences'"),
    "sentences string": (edit(1, sentences="a dog"), "sentences = 'a dog'"),
    "no sentences": (edit(1, sentences=[]), "no captions"),
    "sentence string": (edit(1, sentences=["a dog"]), "expected an object, found str"),
    "missing raw": (edit_sentence(raw=...), "no key 'raw'"),
    "raw number": (edit_sentence(raw=3), "raw = 3"),
    "raw blank": (edit_sentence(raw=" "), "caption 2 = ' '"),
    "unknown split": (edit(1, split="dev"), "unknown split 'dev'"),
    "missing split": (edit(1, split=...), "no key 'split'"),
    "image a string": (replace_with(1, "1001.jpg"), "expected an object, found str"),
    "filename upwards": (edit(1, filename="../x.jpg"), "leaves the data root"),
    "filepath upwards": (edit(1, filepath="../.."), "leaves the data root"),
    "filepath absolute": (edit(1, filepath="/etc"), "leaves the data root"),
    "filepath wrong": (edit(1, filepath="val2014"), "no such picture"),
    "filepath number": (edit(1, filepath=7), "filepath = 7"),
    "missing picture": (edit(1, filename="none.jpg"), "no such picture"),
    "listed twice": (edit(1, filename="1000.jpg"), "also stands in dataset_flickr30k.json image 0"),
}


@pytest.mark.parametrize(("change", "expected"), BAD_KARPATHY.values(), ids=BAD_KARPATHY)
def test_bad_karpathy_record_is_reported(tmp_path, change, expected):
    images = karpathy_images()
    root = write_karpathy(tmp_path, images)
    change(images)
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    with pytest.raises(DataError) as caught:
        load_dataset("flickr30k", root)
    (problem,) = caught.value.problems
    assert problem.startswith("dataset_flickr30k.json image 1")
    assert expected in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "expected an object, found list"),
        ({}, "no key 'images'"),
        ({"images": {}}, "images = {}: expected list"),
        ({"images": []}, "holds no records"),
    ],
)
def test_bad_karpathy_file_is_reported(tmp_path, content, expected):
    root = write_karpathy(tmp_path, karpathy_images())
    (root / "dataset_flickr30k.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load_dataset("flickr30k", root)
    assert expected in caught.value.problems[0]
    assert "dataset_flickr30k.json" in caught.value.problems[0]


def test_read_dataset_returns_what_is_good_beside_the_problems(layout):
    dataset, problems = read_dataset("cuhk-pedes", layout(edit(2, id="2"), edit(5, captions=[])))
    assert len(problems) == 2
    assert len(dataset.records) == 22


# -- records ----------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_content_only(tmp_path):
    first = load_dataset("cuhk-pedes", write_person_search(tmp_path / "a"))
    assert first.fingerprint() == load_dataset("cuhk-pedes", write_person_search(tmp_path / "b")).fingerprint()
    records = person_search_records()
    records[0]["captions"][0] += "."
    changed = load_dataset("cuhk-pedes", write_person_search(tmp_path / "c", records))
    assert changed.fingerprint() != first.fingerprint()
    before = first.fingerprint()
    write_picture(tmp_path / "a" / "imgs" / "cam_a" / "p1_0.png", size=(40, 80))
    assert first.fingerprint() != before


def test_unknown_split_is_refused():
    dataset = Dataset("d", "identity", Path("."), (Record("a.png", ("c",), 0, "train", "s"),))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        dataset.split("dev")
