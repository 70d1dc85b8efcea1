"""timam.data: every reader on small data in its layout, with the oddities of the real files and with bad ones."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import bounded
from hypothesis import given
from hypothesis import strategies as st
from layouts import (
    CLASSES,
    LAYOUTS,
    assert_sound,
    karpathy_images,
    person_search_records,
    write_karpathy,
    write_person_search,
    write_picture,
    write_reed,
    write_table,
)

from timam.data import DATASETS, SPLITS, DataError, Dataset, load_dataset, read_dataset
from timam_lab.check import PROTOCOLS, check_dataset


def problems_of(name: str, root: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_dataset(name, root)
    return caught.value.problems


def identities(dataset: Dataset) -> dict[str, set[int]]:
    return {s: {r.identity for r in dataset.records if r.split == s} for s in SPLITS}


# -- person search ----------------------------------------------------------------------------------------------


def test_person_search_layout(tmp_path):
    """What the real file holds: ids from 1, ragged captions, an id with one picture, an extra key.

    Labels follow the identities, which need not ascend in the file.
    """
    records = person_search_records(train=4, val=2, test=2)
    records[0]["captions"] = ["first caption", "second caption", "third caption", "fourth caption"]
    records[3]["captions"] = ["the only caption"]
    del records[7]  # identity 4 keeps one picture
    for record in records[4:6]:
        record["id"] = 30  # which comes before 4
        record["processed_tokens"] = []
    dataset = load_dataset("cuhk-pedes", write_person_search(tmp_path, records))
    assert dataset.kind == "identity"
    train, val, test = (dataset.split(s) for s in SPLITS)
    assert train.image_labels.tolist() == [0, 0, 1, 1, 3, 3, 2]
    assert train.identities.tolist() == [1, 2, 4, 30]
    assert val.image_labels.tolist() == test.image_labels.tolist() == [0, 0, 1, 1]  # contiguous in every split
    assert (val.identities.tolist(), test.identities.tolist()) == ([5, 6], [7, 8])
    assert train.image_paths[0] == tmp_path / "imgs" / "cam_a" / "p1_0.png"
    assert {a.dtype for a in (train.image_labels, train.caption_labels)} == {np.dtype(np.int64)}
    # 2 captions a picture, but 4 for the first and 1 for the fourth
    assert train.caption_image.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]
    assert [of_image.tolist() for of_image in train.captions_of_image] == [
        [0, 1, 2, 3], [4, 5], [6, 7], [8], [9, 10], [11, 12], [13, 14],
    ]  # fmt: skip
    assert train.captions[8] == "the only caption"
    assert train.caption_labels.tolist() == [0] * 6 + [1] * 3 + [3] * 4 + [2] * 2


def test_icfg_counts_from_zero_and_a_tenth_of_training_becomes_validation(tmp_path):
    records = person_search_records(train=20, val=0, test=4, captions=1)
    for record in records:
        record["id"] -= 1
    root = write_person_search(tmp_path, records, "ICFG-PEDES.json")
    dataset = load_dataset("icfg-pedes", root)
    found = identities(dataset)
    assert (found["test"], len(found["val"])) == ({20, 21, 22, 23}, 2)
    assert sorted([*found["train"], *found["val"]]) == list(range(20))
    assert "2 of 20 training identities are held out" in dataset.notes[0]
    (root / "ICFG-PEDES.json").unlink()
    (root / "ICFG_PEDES.json").write_text(json.dumps(records[::-1]))  # also named so; the order does not matter
    assert identities(load_dataset("icfg-pedes", root)) == found


def test_empty_or_unknown_split_is_an_error_where_it_is_asked_for(tmp_path):
    dataset = load_dataset("cuhk-pedes", write_person_search(tmp_path, val=0))
    for name in ("val", "dev"):
        with pytest.raises(ValueError, match=f"no pictures in its {name} split"):
            dataset.split(name)


# -- Karpathy's splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [("flickr30k", "flickr30k-images"), ("flickr8k", "Flicker8k_Dataset"), ("flickr8k", "Flickr8k_Dataset")],
)
def test_karpathy_layout(tmp_path, name, folder):
    images = karpathy_images()
    images[3]["sentences"] = images[0]["sentences"]  # two pictures may share sentences
    dataset = load_dataset(name, write_karpathy(tmp_path, images, folder, name))
    train, test = dataset.split("train"), dataset.split("test")
    assert (dataset.kind, dataset.folds) == ("instance", 1)
    assert (train.image_labels.tolist(), test.image_labels.tolist()) == ([0, 1, 2], [0, 1])  # each its own identity
    assert train.caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert train.captions[6] == "Picture 1, sentence 1."  # the raw sentence, not its tokens
    assert train.image_paths[2] == tmp_path / folder / "1002.jpg"


@pytest.mark.parametrize("folder", [".", "images"])
def test_coco_has_two_folders_restval_and_folds(tmp_path, folder):
    images = karpathy_images(train=3, val=2, test=2)
    for i, image in enumerate(images):
        image |= {"filepath": "train2014" if i < 2 else "val2014", "cocoid": 9 + i}
    images[2]["split"] = "restval"  # is training data
    (tmp_path / "images").mkdir()  # exists, but the pictures may lie elsewhere
    dataset = load_dataset("coco", write_karpathy(tmp_path, images, folder, "coco"))
    assert dataset.folds == 5
    assert dataset.split("train").image_paths[2].relative_to(tmp_path / folder).as_posix() == "val2014/1002.jpg"


# -- Reed's captions --------------------------------------------------------------------------------------------

FLOWERS = {"trainval": [f"class_{i:05d}" for i in range(3, 23)], "test": ["class_00001", "class_00102"]}


def test_cub_reads_text_files_only_and_numbers_classes(tmp_path):
    root = write_reed(tmp_path / "cvpr2016_cub", CLASSES | {"test": ["004.D", "200.E_F"]}).parent
    (root / "cvpr2016_cub/CUB_200_2011").rename(root / "CUB_200_2011")  # the text in the archive's folder
    dataset = load_dataset("cub", root)
    assert dataset.kind == "class"
    assert identities(dataset) == {"train": {1, 2}, "val": {3}, "test": {4, 200}}
    train = dataset.split("train")
    assert (len(train.image_paths), len(train.captions)) == (6, 60)
    assert train.image_paths[0] == root / "CUB_200_2011/images/001.A/A_0000.jpg"
    assert train.captions[1].endswith("said 1.")
    (root / "CUB_200_2011/images").rename(root / "images")  # the pictures may lie here
    assert load_dataset("cub", root).image_root == root / "images"


def test_folder_of_features_alone_says_where_the_pictures_are_published(tmp_path):
    root = write_reed(tmp_path, CLASSES, images=1)  # Reed's archive has a folder images/, too
    shutil.rmtree(root / "CUB_200_2011")
    where, *pictures = problems_of("cub", root)
    assert where.startswith(f"{root / 'images'}: none of the 4 pictures; cub is published here: ")
    assert DATASETS["cub"].layout in where
    assert len(pictures) == 4


def test_flowers_hold_out_classes_unless_validation_classes_are_published(tmp_path):
    dataset = load_dataset("flowers", write_reed(tmp_path / "a", FLOWERS, flat=True, images=1, captions=1))
    found = identities(dataset)
    assert (found["test"], len(found["val"])) == ({1, 102}, 2)  # a tenth of 20
    assert found["train"] | found["val"] == set(range(3, 23))
    assert dataset.split("test").image_paths[0].parent == tmp_path / "a" / "jpg"
    lists = FLOWERS | {"train": FLOWERS["trainval"][:15], "val": FLOWERS["trainval"][15:]}
    dataset = load_dataset("flowers", write_reed(tmp_path / "b", lists, flat=True, images=1, captions=1))
    assert identities(dataset)["val"] == set(range(18, 23))
    assert dataset.notes == ()


def test_odd_classes_and_caption_files(tmp_path):
    """Classes in two lists, in no list, without captions, of one number; captions with empty lines, not in UTF-8."""
    classes = {**CLASSES, "val": ["003.C", "005.E"], "test": ["004.D", "04.E", "002.B"]}
    root = write_reed(tmp_path, classes, captions=3)
    shutil.rmtree(root / "text_c10/005.E")
    (root / "text_c10/099.F").mkdir()
    one, two, three = sorted((root / "text_c10/002.B").glob("*.txt"))
    one.write_bytes(b"a gull\r\n\r\nwhite\xff wings\n\n")
    two.write_text(" \n\n")
    three.write_bytes("\ufeffone\x0cbird\r\ntwo\x85birds\u2028sing\n".encode())  # lines end only at line ends
    dataset, problems = read_dataset("cub", root)
    name, captions = "text_c10/002.B/B_0000.txt", {r.source: r.captions for r in dataset.records}
    assert problems[0].startswith("testclasses.txt: 002.B also stands in the train split")
    assert problems[1:] == [
        "text_c10/002.B/B_0001.txt: it has no captions",
        "class 005.E (val split): expected captions (*.txt) in text_c10",
        "class 04.E (test split): its number, 04, is that of 004.D",
    ]
    assert dataset.warnings == (
        f"{name}: not valid UTF-8 throughout; the invalid bytes were replaced",
        f"{name}: line 2: an empty caption, left out",
        "1 classes stand in no list and are not used: 099.F",
    )
    assert captions[name] == ("a gull", "white\ufffd wings")
    assert captions["text_c10/002.B/B_0002.txt"] == ("one\x0cbird", "two\x85birds\u2028sing")


# -- tables -----------------------------------------------------------------------------------------------------


HEADER = ["image_path", "caption", "identity", "split"]


@pytest.mark.parametrize("file", ["captions.csv", "mine.csv", "captions.parquet"])
def test_table_becomes_records_by_picture(tmp_path, file):
    dataset = load_dataset("csv", write_table(tmp_path, file=file))
    assert (dataset.kind, dataset.notes, len(dataset.records)) == ("identity", (), 6)
    assert dataset.records[1].captions == ("sentence 0 of 1", "sentence 1 of 1")
    assert dataset.records[1].source == f"{file} row 3"
    assert identities(dataset) == {"train": {0, 1}, "val": {2, 3}, "test": {4, 5}}
    (tmp_path / "other.parquet").write_bytes(b"")
    alone = load_dataset("csv", tmp_path / file)  # the root may be the table itself
    assert (alone.records, alone.image_root) == (dataset.records, tmp_path)
    assert problems_of("sidecar", tmp_path / file)


def test_identities_that_are_one_number_in_several_forms_stay_apart_with_a_warning(tmp_path):
    rows = [[f"p/{i}.png", "a man", name, "train"] for i, name in enumerate(["7", "7", "7", "07", "7.0", "7.0"])]
    dataset = load_dataset("csv", write_table(tmp_path, [HEADER, *rows]))
    assert len({r.identity for r in dataset.records}) == 3
    assert "identities are one number in several spellings" in dataset.warnings[0]


def test_table_without_splits_is_split_by_identity_reproducibly(tmp_path):
    names = [f"id-{i}" for i in range(20)]
    # From the definition: by SHA-256 of the name, the first tenth is val, the second test.
    expected = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    for order in (names, names[::-1]):
        rows = [[f"p/{name}.png", name, name] for name in order]
        dataset, _ = read_dataset("csv", write_table(tmp_path, [HEADER[:3], *rows]))  # the pictures are missing
        assert "16/2/2 identities were made train/val/test" in dataset.notes[0]
        split = {r.captions[0]: r.split for r in dataset.records}
        assert [split[name] for name in expected] == ["val"] * 2 + ["test"] * 2 + ["train"] * 16


def test_absent_files_and_several_tables_are_named(tmp_path):
    assert "reid_raw.json: no such annotation file" in problems_of("cuhk-pedes", tmp_path)[0]
    assert "expected one table, captions.csv or captions.parquet; found none" in problems_of("csv", tmp_path)[0]
    for name in ("a.csv", "b.csv", "._a.csv"):
        (tmp_path / name).write_text("x")
    assert "found a.csv, b.csv" in problems_of("csv", tmp_path)[0]
    (tmp_path / "a.xlsx").write_text("x")
    assert "expected .csv, .tsv, .jsonl, .parquet" in problems_of("csv", tmp_path / "a.xlsx")[0]


# -- faults -----------------------------------------------------------------------------------------------------


def edit(**values):
    """Changes record 2; a value of ... removes the key."""

    def change(records: list) -> None:
        records[2] = {k: v for k, v in (records[2] | values).items() if v is not ...}

    return change


def parquet(**changes) -> bytes:
    """Six rows as a Parquet file; changes replace columns."""
    columns = {"image_path": [f"p/{i}.png" for i in range(6)], "caption": ["a man"] * 6, "identity": list(range(6)),
               "split": [SPLITS[i // 2] for i in range(6)]}  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.table({**columns, **changes}), stream)
    return stream.getvalue()


LONG = "x" * 300 + ".png"  # beyond the 255 bytes of a file name
# layout: {fault: (what its file holds instead, or a change of its records; words of the problem)}
FAULTS = {
    "cuhk-pedes": {
        "missing split": (edit(split=...), "no key 'split'; it has ['captions'"),
        "id float": (edit(id=2.0), "id = 2.0: expected int"),
        "id bool": (edit(id=True), "id = True: expected int"),
        # NumPy would turn a list of 1 and 2**63 into floats, and so two persons into one.
        "id large": (edit(id=2**63), "id = 9223372036854775808: expected int"),
        "captions string": (edit(captions="a man"), "captions = 'a man': expected list"),
        "no captions": (edit(captions=[]), "no captions"),
        "caption number": (edit(captions=["fine", 3]), "caption 1 = 3"),
        "caption long": (edit(captions=["a " * 60_000]), "caption 0 has 120,000 characters; expected at most 100,"),
        "caption a long blank": (edit(captions=[" " * 10_000_000]), "caption 0 = '     "),  # and the message is short
        "half a character": (edit(captions=["cut \ud83d"]), "caption 0 = 'cut \\ud83d'"),  # no tokenizer reads it
        "unknown split": (edit(split="training"), "unknown split 'training': expected train, val, test"),
        "record a list": (lambda records: records.__setitem__(2, ["train"]), "expected an object, found list"),
        "missing picture": (edit(file_path="cam_a/none.png"), "no such picture: "),
        "path upwards": (edit(file_path="../outside.png"), "path '../outside.png' leaves the data root"),
        "path absolute": (edit(file_path="/etc/hostname"), "path '/etc/hostname' leaves the data root"),
        "control characters": (edit(file_path="\x1b]0;title\x07\x1b[2J.png"), r"\x1b]0;title\x07\x1b[2J.png"),
        "long path": (edit(file_path="x" * 300 + ".png"), "xxx.png"),  # beyond the 255 bytes of a file name
        "listed twice": (edit(file_path="./cam_a/../cam_a//p1_0.png", id=1), "also stands in reid_raw.json record 0"),
        "empty": (b"", "not readable as JSON"),
        "deep": (b"[" * 100_000, "not readable as JSON"),
        "key twice": (b'[{"a": 1, "b": 2, "a": 3}]', "key 'a' stands twice"),  # parsers read it differently
        "NaN": (b"[NaN]", "NaN is no finite number"),
        "infinite": (b"[1e999]", "1e999 is no finite number"),
        "no records": (b"[]", "holds no records"),
        "object": (b"{}", "expected a list, found dict"),
    },
    "rstp-reid": {"path of another": (edit(file_path="a.png", img_path=...), "no key 'img_path'")},
    "flickr30k": {
        "missing raw": (lambda images: images[2]["sentences"][2].pop("raw"), "no key 'raw'"),
        "no images": (b"{}", "dataset_flickr30k.json: no key 'images'"),
    },
    "csv": {
        "no caption column": (b"image_path,split\np/0.png,train\n", "no column caption; it has image_path, split"),
        "empty caption": (b"image_path,caption\np/0.png, \n", "row 1: caption 0 = ''"),
        "empty path": (b"image_path,caption\n,a man\n", "row 1: image_path = '': expected a path"),
        "empty identity": (b"image_path,caption,identity\np/0.png,a man,\n", "row 1: identity is empty"),
        "unknown split": (b"image_path,caption,split\np/0.png,a man,rest\n", "row 1: unknown split 'rest'"),
        "two identities": (b"image_path,caption,identity\np/0.png,a,x\np/0.png,b,y\n",
                           "row 2: identity 'y' of p/0.png: captions.csv row 1 says 'x'"),
        "identity in two splits": (b"image_path,caption,identity,split\np/0.png,a,0,train\np/1.png,b,0,val\n",
                                   "identity 0: stands in the splits train, val; expected one"),
        # A reader that takes the first column for an index shifts all values by one.
        "comma": (b"image_path,caption\np/0.png,a man, in red\n", "row 1: expected 2 values, as in the header"),
        "column twice": (b"image_path,caption, caption\np/0.png,a,b\n", "two columns caption"),
        "rounded": (b"image_path,caption,identity\np/0.png,a,1.23457E+11\n", "row 1: identity = '1.23457E+11': a"),
        "NA": (b"image_path,caption,identity\np/0.png,a,NA\n", "row 1: identity = 'NA'"),  # as R writes it
        "quotes": (b'image_path,caption\np/0.png,"a" b\n', "not readable as a table (ValueError: line 2: "),
        "empty": (b"", "no column caption, image_path"),
    },
    "csv parquet": {
        "missing identity": (parquet(identity=[0.0, None, 2.0, 3.0, 4.0, 5.0]), "row 2: identity is empty"),
        "fraction": (parquet(identity=[0.0, 1.5, 2.0, 3.0, 4.0, 5.0]), "row 2: identity = 1.5"),
        "bytes": (parquet(caption=[b"a man"] * 6), "row 1: caption 0 = b'a man'"),
        "path a number": (parquet(image_path=list(range(6))), "row 1: image_path = 0: expected a path"),
    },
    "webdataset": {"no archive": (b"x" * 1000, "not readable as a tar archive")},
    "coco-captions": {"no list": (b'{"images": []}', "captions_val2014.json: no key 'annotations'")},
    "flickr30k-token": {"no tab": (b"1000.jpg 5 no tab", "line 1: '1000.jpg 5 no tab': expected PICTURE.jpg#NUMBER")},
}  # fmt: skip


@pytest.mark.parametrize(("layout", "fault"), [(layout, fault) for layout in FAULTS for fault in FAULTS[layout]])
def test_fault_is_named_with_its_place(layouts, layout, fault):
    change, expected = FAULTS[layout][fault]
    root, file = layouts(layout), LAYOUTS[layout][2]
    if callable(change):
        content = json.loads((root / file).read_text())
        images = isinstance(content, dict)
        change(content["images"] if images else content)
        (problem,) = read_hostile(layout, root, json.dumps(content).encode())[1]  # one cause, one line
        assert problem.startswith(f"{file} {'image' if images else 'record'} 2: ")
    else:
        problem = read_hostile(layout, root, change)[1][0]
    assert expected in DataError("data", [problem]).problems[0]
    assert problem.startswith("identity ") or Path(file).name in problem


def test_parquet_of_whole_floats_is_read(layouts):
    content = parquet(identity=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    dataset, problems = read_hostile("csv parquet", layouts("csv parquet"), content)
    assert (problems, [r.identity for r in dataset.records]) == ([], list(range(6)))


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_described_and_missing_data_says_how_the_folder_must_look(tmp_path, name):
    last = problems_of(name, tmp_path / "nowhere")[-1]
    for part in (DATASETS[name].layout, str(tmp_path)):
        assert part in last
    assert (f"is published here: {DATASETS[name].source}" in last) == (DATASETS[name].source != "your own")
    assert DATASETS[name].kind in PROTOCOLS
    assert f"| `{name}` |" in (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_data_set_is_tested_and_no_other_is_known(tmp_path):
    # hf is one of three others, as test_layouts.py shows.
    assert {name for name, _, _ in LAYOUTS.values()} == set(DATASETS) - {"hf"}
    with pytest.raises(ValueError, match=r"unknown dataset 'mnist'.*flickr30k") as caught:
        load_dataset("mnist", tmp_path)
    assert not isinstance(caught.value, DataError)


# -- anything in any file ---------------------------------------------------------------------------------------

# One layout of each parser and form of file: several data sets share a parser.
FORMS = {(DATASETS[n].parser, Path(file).parent, Path(file).suffix): layout for layout, (n, _, file) in LAYOUTS.items()}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """layouts(name) -> a root of that layout, written once; the file that a test replaces is restored."""
    made: dict[str, tuple[Path, bytes]] = {}

    def get(name: str) -> Path:
        _, write, file = LAYOUTS[name]
        if name not in made:
            root = write(tmp_path_factory.mktemp("layout") / "root")
            made[name] = root, (root / file).read_bytes()
        root, content = made[name]
        (root / file).write_bytes(content)
        return root

    return get


def read_hostile(name: str, root: Path, content: bytes) -> tuple[Dataset, list[str]]:
    reader, _, file = LAYOUTS[name]
    (root / file).write_bytes(content)
    dataset, problems = read_dataset(reader, root)
    assert_sound(dataset, problems, root)
    if problems:
        message = str(DataError("data", problems))
        assert len(message) < 60_000  # at most 1,000 of each problem
        assert all(c.isprintable() or c == "\n" for c in message)
    return dataset, problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["train", "test", "cam_a/p1_0.png", "../x.png", "a\0b", "\ud800", 2**63, -(2**63), 1, 1.0, "1"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", ["rstp-reid", "coco"])
@bounded
@given(data=st.data())
def test_a_record_with_any_value_in_any_place_is_taken_or_named(layouts, name, data):
    root, file = layouts(name), LAYOUTS[name][2]
    content = json.loads((root / file).read_text())
    entries = content["images"] if isinstance(content, dict) else content
    entries[1][data.draw(st.sampled_from(sorted(entries[1])))] = data.draw(values)
    dataset, problems = read_hostile(name, root, json.dumps(content).encode())
    what = "image" if isinstance(content, dict) else "record"
    # Nothing but the changed record is lost, and what is wrong is said of it, or of its identity's splits.
    assert len(dataset.records) >= len(entries) - 1
    assert all(p.startswith((f"{file} {what} 1", "identity ")) for p in problems)
    assert problems or any(r.source == f"{file} {what} 1" for r in dataset.records)


@pytest.mark.parametrize("name", FORMS.values())
@bounded
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(layouts, name, content):
    read_hostile(name, layouts(name), content)


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@bounded
@given(
    captions=st.lists(cell.filter(lambda t: t.strip()), min_size=11, max_size=11), identities=st.permutations(range(6))
)
def test_a_table_of_any_text_comes_back_as_it_was(layouts, captions, identities):
    root, captions = layouts("csv"), ["NA", *captions]  # which pandas would read as missing
    rows = [[f"p/{i // 2}.png", c, f"{identities[i // 2]}.0"] for i, c in enumerate(captions)]
    write_table(root, [["image_path", "caption", "identity"], *rows])
    dataset = load_dataset("csv", root)
    assert [c for r in dataset.records for c in r.captions] == [c.strip() for c in captions]
    assert [r.identity for r in dataset.records] == list(identities)  # 3.0, as pandas writes it, is 3


@bounded
@given(data=st.data())
def test_damaged_parquet_is_refused(layouts, data):
    content = bytearray(parquet())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_hostile("csv parquet", layouts("csv parquet"), content)


@pytest.mark.parametrize("name", FORMS.values())
def test_what_is_no_regular_file_is_refused_and_never_waited_for(layouts, tmp_path, name):
    reader, _, file = LAYOUTS[name]
    root = shutil.copytree(layouts(name), tmp_path / "root")
    (root / file).unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):  # reading it never ends
        make(root / file)
        assert Path(file).name in read_dataset(reader, root)[1][0]
        (root / file).unlink()


# -- paths and links --------------------------------------------------------------------------------------------


def test_linked_root_picture_folder_and_folders_in_it_are_followed(tmp_path):
    store, root = write_person_search(tmp_path / "store"), tmp_path / "root"
    root.mkdir()
    shutil.copy(store / "reid_raw.json", root)
    (tmp_path / "link").symlink_to(root)
    (root / "imgs").symlink_to(store / "imgs")
    assert len(load_dataset("cuhk-pedes", tmp_path / "link").records) == 24
    (root / "imgs").unlink()
    (root / "imgs").mkdir()
    (root / "imgs/cam_a").symlink_to(store / "imgs/cam_a")
    assert len(load_dataset("cuhk-pedes", root).records) == 24


def test_single_link_is_followed_only_inside_and_no_way_leads_up_through_a_linked_folder(tmp_path):
    records = person_search_records()
    root, outside = write_person_search(tmp_path / "root", records), tmp_path / "elsewhere/private.png"
    records[4]["file_path"] = "market/../private.png"  # by its text inside imgs, by the links not
    (root / "reid_raw.json").write_text(json.dumps(records))
    (tmp_path / "elsewhere/market").mkdir(parents=True)
    write_picture(outside)
    (root / "imgs/market").symlink_to(tmp_path / "elsewhere/market")
    names = [root / "imgs" / r["file_path"] for r in records[:3]]
    (root / "pool").mkdir()
    names[0].rename(root / "pool/a.png")
    names[1].unlink()
    names[2].unlink()
    # As DVC and git-annex keep files: elsewhere, but in the root. Then out of it, and in a circle.
    for name, target in zip(names, (root / "pool/a.png", outside, names[2].name), strict=True):
        name.symlink_to(target)
    dataset, (link, circle, up) = read_dataset("cuhk-pedes", root)
    assert link.startswith("reid_raw.json record 1: picture path 'cam_a/p1_1.png' is a link that leaves the data root")
    assert f"copy {outside} into it" in link
    assert circle.startswith("reid_raw.json record 2: ")
    assert up.startswith("reid_raw.json record 4: picture path 'market/../private.png' leaves the data root")
    used = {r.source.split()[-1] for r in dataset.records}
    assert used & {"0", "1", "4"} == {"0"}  # nothing opens the others


def test_classes_and_captions_outside_the_root_are_not_read(tmp_path):
    root = write_reed(tmp_path / "root", CLASSES, images=1, captions=2)
    write_reed(tmp_path / "other", {"train": ["005.E"]}, images=1)
    secret = tmp_path / "secret.txt"
    secret.write_text("a password")
    (root / "text_c10/001.A/A_0000.txt").unlink()
    (root / "text_c10/001.A/A_0000.txt").symlink_to(secret)
    outside = f"../../other/text_c10/005.E\n{tmp_path}/other/text_c10/005.E"
    (root / "trainclasses.txt").write_text(f"001.A\n002.B\n{outside}\n")
    dataset, problems = read_dataset("cub", root)
    assert {r.source.split("/")[1] for r in dataset.records} == {"002.B", "003.C", "004.D"}
    assert "trainclasses.txt: '../../other/text_c10/005.E': expected a class name" in problems
    assert any("A_0000.txt' is a link that leaves the data root" in p for p in problems)
    assert "password" not in str(problems)


pieces = st.sampled_from([*"./\\~ab\0\n", "..", "/", "cam_a", "é", "\udcff", "\ud800"])


@bounded
@given(name=st.lists(pieces, max_size=8).map("".join))
def test_no_path_of_an_annotation_leaves_the_root(layouts, name):
    root = layouts("cuhk-pedes")
    records = person_search_records(train=3, val=1, test=1)
    records[2]["file_path"] = name
    (problem,) = read_hostile("cuhk-pedes", root, json.dumps(records).encode())[1]
    assert problem.startswith("reid_raw.json record 2: ")
    report = check_dataset("cuhk-pedes", root)  # opens pictures
    assert len([p for p in report["problems"] if "record 2" in p]) == 1


# -- records ----------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_content_only(tmp_path):
    first, again = (load_dataset("cuhk-pedes", write_person_search(tmp_path / folder)) for folder in "ab")
    before = first.fingerprint()
    assert before == again.fingerprint()
    changed = replace(first.records[0], captions=("other words",))
    assert replace(first, records=(changed, *first.records[1:])).fingerprint() != before
    write_picture(tmp_path / "a/imgs/cam_a/p1_0.png", size=(40, 80))
    assert first.fingerprint() != before


def test_a_message_of_many_problems_stays_readable():
    error = DataError("data", [f"problem {i}" for i in range(60)])
    assert len(error.problems) == 60
    assert str(error).endswith("problem 49\n  ... and 10 more")
