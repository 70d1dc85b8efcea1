"""timam.data: every reader on small data in its layout, with the oddities of the real files and with bad ones."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

import layouts
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import bounded
from hypothesis import given
from hypothesis import strategies as st

from timam.data import DATASETS, SPLITS, DataError, Dataset, Record, load_dataset, read_dataset
from timam.data.parsing import split_of_name
from timam.embedded import open_picture
from timam.images import read_image
from timam_lab.check import PROTOCOLS, check_dataset


def problems_of(name: str, root: Path, **columns: str) -> list[str]:
    return read_dataset(name, root, columns or None)[1]


def counts(dataset: Dataset) -> list[int]:
    return [sum(r.split == split for r in dataset.records) for split in SPLITS]


def identities(dataset: Dataset) -> dict[str, set[int]]:
    return {s: {r.identity for r in dataset.records if r.split == s} for s in SPLITS}


# layout: (what is relevant, pictures of train, val and test, the first picture, words of its last caption)
GIVES = {
    "pedestrians": ("identity", [6, 2, 2], "cam_a/p1_0.png", "trousers and a"),
    "rstp-reid": ("identity", [6, 2, 2], "cam_a/p1_0.png", "trousers and a"),
    "ufine6926": ("identity", [8, 2, 4], "images/1.jpg", "trousers and a"),
    "flickr30k": ("instance", [2, 1, 1], "1000.jpg", "Picture 0, sentence 4."),
    "cub": ("class", [2, 1, 1], "001.A/A_0000.jpg", "said 1."),
    "flowers": ("class", [2, 1, 1], "image_00001.jpg", "said 1."),
    "coco-captions": ("instance", [4, 2, 2], "train2014/COCO_train2014_000000000010.jpg", "picture 10, 1"),
    "flickr30k-token": ("instance", [8, 1, 1], "1000.jpg", "Picture 0 , sentence 4 ."),
    "sidecar": ("instance", [8, 1, 1], "0/0.png", "in red"),
    "parquet": ("instance", [4, 2, 2], "data/test-00000-of-00001.parquet#image:0", "in red"),
    "imagefolder": ("instance", [4, 2, 2], "test/0.png", "in red"),
    "imagefolder csv": ("instance", [4, 2, 2], "test/0.png", "in red"),
    "webdataset": ("instance", [4, 2, 2], "test/0.tar#00000.jpg", "in red"),
}


@pytest.mark.parametrize("layout", GIVES)
def test_what_a_layout_gives(tmp_path, layout):
    name, (kind, sizes, image, caption) = layouts.LAYOUTS[layout][0], GIVES[layout]
    root = layouts.write_layout(layout, tmp_path)
    dataset = load_dataset(name, root)
    first, train = dataset.records[0], dataset.split("train")
    assert (dataset.kind, counts(dataset)) == (kind, sizes)
    assert (first.image, caption in first.captions[-1]) == (image, True)
    assert len({read_image(p).tobytes() for p in train.image_paths}) == sizes[0]
    assert kind != "instance" or len(train.identities) == sizes[0]  # each picture is its own identity
    assert check_dataset(name, root)["problems"] == []
    if name in ("parquet", "imagefolder", "webdataset"):
        assert load_dataset("hf", root).records == dataset.records  # finds the form by itself
        assert not any("SHA-256" in note for note in dataset.notes)  # splits are those of the names


# -- benchmarks --------------------------------------------------------------------------------------------------


def test_person_search_layout(tmp_path):
    """What the real file holds: ids that need not ascend, ragged captions, an id with one picture, an extra key."""
    records = layouts.person_search_records(train=4, val=2, test=2)
    records[0]["captions"] = ["first", "second", "third", "fourth"]
    records[3]["captions"] = ["the only caption"]
    del records[7]  # identity 4 keeps one picture
    for record in records[4:6]:
        record |= {"id": 30, "processed_tokens": []}  # it comes before 4
    dataset = load_dataset("cuhk-pedes", layouts.write_person_search(tmp_path, records))
    train, val, test = (dataset.split(s) for s in SPLITS)
    assert train.image_labels.tolist() == [0, 0, 1, 1, 3, 3, 2]
    assert train.identities.tolist() == [1, 2, 4, 30]
    assert val.image_labels.tolist() == test.image_labels.tolist() == [0, 0, 1, 1]  # contiguous in every split
    assert (val.identities.tolist(), test.identities.tolist()) == ([5, 6], [7, 8])
    # 2 captions a picture, but 4 for the first and 1 for the fourth
    assert train.caption_image.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]
    assert list(map(len, train.captions_of_image)) == [4, 2, 2, 1, 2, 2, 2]
    assert np.concatenate(train.captions_of_image).tolist() == list(range(15))
    assert train.captions[8] == "the only caption"
    assert train.caption_labels.tolist() == [0] * 6 + [1] * 3 + [3] * 4 + [2] * 2


def test_icfg_counts_from_zero_and_a_tenth_of_training_becomes_validation(tmp_path):
    records = layouts.person_search_records(train=20, val=0, test=4)
    for record in records:
        record["id"] -= 1
    root = layouts.write_person_search(tmp_path, records, "ICFG-PEDES.json")
    dataset = load_dataset("icfg-pedes", root)
    found = identities(dataset)
    assert (found["test"], len(found["val"])) == ({20, 21, 22, 23}, 2)
    assert sorted([*found["train"], *found["val"]]) == list(range(20))
    assert "2 of 20 training identities are held out" in dataset.notes[0]
    (root / "ICFG-PEDES.json").unlink()
    (root / "ICFG_PEDES.json").write_text(json.dumps(records[::-1]))  # also named so; the order does not matter
    assert identities(load_dataset("icfg-pedes", root)) == found


def test_empty_or_unknown_split_is_an_error_where_it_is_asked_for(tmp_path):
    dataset = load_dataset("cuhk-pedes", layouts.write_person_search(tmp_path, val=0))
    for name in ("val", "dev"):
        with pytest.raises(ValueError, match=f"no pictures in its {name} split"):
            dataset.split(name)


def test_fingerprint_depends_on_content_only(tmp_path):
    first, again = (load_dataset("cuhk-pedes", layouts.write_person_search(tmp_path / folder)) for folder in "ab")
    before = first.fingerprint()
    assert before == again.fingerprint()
    changed = replace(first.records[0], captions=("other words",))
    assert replace(first, records=(changed, *first.records[1:])).fingerprint() != before
    layouts.write_picture(tmp_path / "a/imgs/cam_a/p1_0.png", size=(40, 80))
    assert first.fingerprint() != before


@pytest.mark.parametrize(
    ("name", "folder"),
    [("flickr30k", "images"), ("flickr8k", "Flicker8k_Dataset"), ("flickr8k", "Flickr8k_Dataset"), ("coco", ".")],
)
def test_karpathy_pictures_lie_in_several_folders_and_coco_has_two_more_restval_and_folds(tmp_path, name, folder):
    images = layouts.karpathy_images()
    images[1] |= {"filepath": "val2014", "split": "restval"}  # is training data
    (tmp_path / "images").mkdir()  # exists, but the pictures may lie elsewhere
    dataset = load_dataset(name, layouts.write_karpathy(tmp_path, images, folder, name))
    assert dataset.folds == (5 if name == "coco" else 1)
    assert dataset.split("train").image_paths[1] == tmp_path / folder / "val2014/1001.jpg"


def test_cub_reads_text_files_only_and_numbers_classes(tmp_path):
    classes = layouts.CLASSES | {"test": ["004.D", "200.E_F"]}
    root = layouts.write_reed(tmp_path / "cvpr2016_cub", classes).parent
    (root / "cvpr2016_cub/CUB_200_2011").rename(root / "CUB_200_2011")  # the text in the archive's folder
    dataset = load_dataset("cub", root)
    assert identities(dataset) == {"train": {1, 2}, "val": {3}, "test": {4, 200}}
    (root / "CUB_200_2011/images").rename(root / "images")  # the pictures may lie here
    assert load_dataset("cub", root).image_root == root / "images"
    shutil.rmtree(root / "images")
    (root / "cvpr2016_cub/images").rename(root / "images")  # as Reed's archive has it: features alone
    where, *pictures = problems_of("cub", root)
    assert where.startswith(f"{root / 'images'}: none of the 15 pictures; cub is published here: ")
    assert (DATASETS["cub"].layout in where, len(pictures)) == (True, 15)


def test_flowers_hold_out_classes_unless_validation_classes_are_published(tmp_path):
    classes = [f"class_{i:05d}" for i in range(3, 23)]
    lists = {"trainval": classes, "test": ["class_00001", "class_00102"]}
    root = layouts.write_reed(tmp_path, lists, flat=True, images=1, captions=1)
    found = identities(load_dataset("flowers", root))
    assert (found["test"], len(found["val"])) == ({1, 102}, 2)  # a tenth of 20
    assert found["train"] | found["val"] == set(range(3, 23))
    (root / "trainclasses.txt").write_text("\n".join(classes[:15]))
    (root / "valclasses.txt").write_text("\n".join(classes[15:]))
    dataset = load_dataset("flowers", root)
    assert (identities(dataset)["val"], dataset.notes) == (set(range(18, 23)), ())


def test_odd_classes_and_caption_files(tmp_path):
    """Classes in two lists, in no list, without captions, of one number; captions with empty lines, not in UTF-8."""
    classes = {**layouts.CLASSES, "val": ["003.C", "005.E"], "test": ["004.D", "04.E", "002.B"]}
    root = layouts.write_reed(tmp_path, classes, captions=3)
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


@pytest.mark.parametrize(
    ("file", "folder"),
    [("captions.csv", "."), ("mine.csv", "imgs"), ("captions.parquet", "."), ("captions.txt", "Images")],
)
def test_table_becomes_records_by_picture(tmp_path, file, folder):
    (layouts.write_table(tmp_path, file=file) / folder).mkdir(exist_ok=True)
    (tmp_path / "p").rename(tmp_path / folder / "p")
    dataset = load_dataset("csv", tmp_path)
    assert (dataset.kind, dataset.notes, len(dataset.records)) == ("identity", (), 6)
    assert dataset.records[1].captions == ("sentence 0 of 1", "sentence 1 of 1")
    assert dataset.records[1].source == f"{file} row 3"
    assert identities(dataset) == {"train": {0, 1}, "val": {2, 3}, "test": {4, 5}}
    (tmp_path / "other.parquet").write_bytes(b"")
    alone = load_dataset("csv", tmp_path / file)  # the root may be the table itself
    assert (alone.records, alone.image_root.samefile(tmp_path / folder)) == (dataset.records, True)
    assert problems_of("sidecar", tmp_path / file)


def test_identities_that_are_one_number_in_several_forms_stay_apart_with_a_warning(tmp_path):
    rows = [[f"p/{i}.png", "a man", name] for i, name in enumerate(["7", "7", "7", "07", "7.0", "7.0"])]
    dataset = load_dataset("csv", layouts.write_table(tmp_path, [["image_path", "caption", "identity"], *rows]))
    assert len({r.identity for r in dataset.records}) == 3
    assert "identities are one number in several spellings" in dataset.warnings[0]


def test_table_without_splits_is_split_by_identity_reproducibly(tmp_path):
    names = [f"id-{i}" for i in range(20)]
    # From the definition: by SHA-256 of the name, the first tenth is val, the second test.
    expected = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    for order in (names, names[::-1]):
        rows = [["image_path", "caption", "identity"], *([f"p/{name}.png", name, name] for name in order)]
        dataset, _ = read_dataset("csv", layouts.write_table(tmp_path, rows))  # the pictures are missing
        assert "16/2/2 identities were made train/val/test" in dataset.notes[0]
        split = {r.captions[0]: r.split for r in dataset.records}
        assert [split[name] for name in expected] == ["val"] * 2 + ["test"] * 2 + ["train"] * 16
    alone, _ = read_dataset("csv", layouts.write_table(tmp_path, rows[:2]))
    with pytest.raises(ValueError, match=r"no pictures in its train split; .*0/1/0 identities were made"):
        alone.split("train")


def test_renamed_columns_are_read_and_said(tmp_path):
    rows = {"train": [{"text": f"a {i}", "person_id": f"p{i}", "width": 8} for i in range(10)]}
    dataset = load_dataset("parquet", layouts.write_parquet(tmp_path, rows))
    assert dataset.kind == "identity"
    assert dataset.notes[0] == (
        "columns read: image_path from image; caption from text; identity from person_id; not read: width; "
        "--column split=NAME reads one of these"
    )
    assert "training data alone: 8/1/1 identities were made train/val/test" in dataset.notes[1]


def test_columns_may_be_named(tmp_path):
    rows = [["photo", "said", "note", "who"], *([f"p/{i}.png", f"a {i}", "b" * i, f"x{i}"] for i in range(6))]
    root = layouts.write_table(tmp_path, rows)
    columns = {"image_path": "photo", "caption": "said,note", "identity": "who"}
    dataset = load_dataset("csv", root, columns=columns)
    assert [dataset.records[i].captions for i in (0, 3)] == [("a 0",), ("a 3", "bbb")]  # without the empty one
    assert dataset.kind == "identity"
    assert "no column what; it has photo, said" in problems_of("csv", root, image_path="photo", caption="what")[0]
    with pytest.raises(ValueError, match="unknown columns colour: expected some of image_path, caption"):
        read_dataset("csv", root, {"colour": "red"})
    with pytest.raises(ValueError, match="cuhk-pedes has no columns"):
        read_dataset("cuhk-pedes", root, {"caption": "text"})


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_csv_of_open_clip(tmp_path, separator):
    """And a column of splits with the names of other tools, which is completed."""
    rows = [["filepath", "title", "split"]]
    rows += [[f"p/{i}.png", f"number {i}", "train" if i < 4 else "Validation"] for i in range(6)]
    (layouts.write_table(tmp_path) / "captions.csv").write_text("\n".join(map(separator.join, rows)))
    dataset = load_dataset("csv", tmp_path)
    assert {r.image: r.captions for r in dataset.records}["p/3.png"] == ("number 3",)
    assert counts(dataset) == [4, 1, 1]
    assert dataset.notes[0] == "columns read: image_path from filepath; caption from title"
    assert "1 of 2 val identities were made the test split" in dataset.notes[1]


def test_absent_files_and_several_tables_are_named_but_coco_may_have_its_validation_captions_alone(tmp_path):
    assert "reid_raw.json: no such annotation file" in problems_of("cuhk-pedes", tmp_path)[0]
    assert "expected one table, captions.csv or captions.parquet; found none" in problems_of("csv", tmp_path)[0]
    for name in ("a.csv", "b.csv", "captions.txt", "._a.csv", "a.xlsx", "0.tar.gz", "a.json", "b.json"):
        (tmp_path / name).write_text("x")
    assert "found a.csv, b.csv" in problems_of("csv", tmp_path)[0]
    assert "expected .csv, .tsv, .jsonl, .parquet" in problems_of("csv", tmp_path / "a.xlsx")[0]
    assert "expected one annotation file *.json; found a.json, b.json" in problems_of("ufine6926", tmp_path)[0]
    assert "no shard *.tar; 0.tar.gz is compressed: decompress it" in problems_of("webdataset", tmp_path)[0]
    root = layouts.write_layout("coco-captions", tmp_path / "coco")
    (root / "annotations/captions_train2014.json").unlink()  # as in torchvision's example
    assert problems_of("coco-captions", root) == []


# -- pictures in folders and archives -------------------------------------------------------------------------


def test_sidecar_files(tmp_path):
    root = layouts.write_layout("sidecar", tmp_path / "root")
    (root / "0/8.txt").unlink()
    (root / "phone.HEIC").touch()
    dataset = load_dataset("sidecar", root)
    assert {r.image: r.captions for r in dataset.records}["0/2.png"] == ("picture 2", "in red")
    bare, unread = dataset.warnings
    assert bare == "1 pictures without a text file are not used: 0/8.png"
    assert unread.startswith(f"{root}: .heic pictures (1) are not read; convert")
    (tmp_path / "secret.txt").write_text("a password")
    (root / "1/1.txt").unlink()
    (root / "1/1.txt").symlink_to(tmp_path / "secret.txt")
    dataset, (problem,) = read_dataset("sidecar", root)
    assert problem.startswith(f"1/1.txt: path '1/1.txt' is a link that leaves the data root {root}")
    assert "password" not in str(dataset.records)
    (root / "1/1.txt").unlink()
    (root / "0").rename(root / "test")  # the others are in no split now
    assert problems_of("sidecar", root) == ["1/3.txt and 3 more are in no split, others are"]


@pytest.mark.parametrize(
    ("path", "split"),
    [("data/test-00000-of-00002.parquet", "test"), ("validation/metadata.csv", "val"), ("train2014/x.tar", "train"),
     ("flickr_dev_03.tar", "val"), ("contest.tar", None), ("test_query/0.tar", None), ("0.tar", None)],
)  # fmt: skip
def test_names_that_say_a_split(path, split):
    assert split_of_name(PurePosixPath(path)) == split


def test_pictures_of_the_hubs_cache_are_links_to_its_blobs(tmp_path):
    blobs = layouts.write_layout("imagefolder", tmp_path / "people" / "blobs")
    root = tmp_path / "people" / "snapshots" / "abc"
    shutil.copytree(blobs, root, copy_function=os.symlink)
    assert counts(load_dataset("hf", root)) == [4, 2, 2]
    (root / "train/0.png").unlink()
    (root / "train/0.png").symlink_to(tmp_path / "other.png")
    (problem,) = problems_of("hf", root)
    assert "is a link that leaves the data root" in problem


def test_paths_alone_are_pictures_too(tmp_path):
    layouts.write_picture(tmp_path / "0.png")
    layouts.write_shard(tmp_path / "test.parquet", [{"bytes": None, "path": "0.png"}], "img")
    dataset, problems = read_dataset("parquet", tmp_path)
    assert (problems, dataset.records[0].image) == ([], "0.png")


def test_webdataset_of_json_and_odd_members(tmp_path):
    said = {"caption": ["a man", "in red"], "person_id": 7, "split": "test"}
    members = {
        "set.a/0001.jpg": layouts.picture_bytes(1), "set.a/0001.json": json.dumps(said).encode(),
        "set.a/0002.seg.png": b"no picture of ours", "README.md": b"x",
        "0003.jpg": layouts.picture_bytes(3),
        "0004.jpg": layouts.picture_bytes(4), "0004.json": b"[1]",
        "0005.jpg": layouts.picture_bytes(5), "0005.txt": b"word " * 100_000,
    }  # fmt: skip
    layouts.write_tar(tmp_path / "0.tar", members)
    dataset, problems = read_dataset("webdataset", tmp_path)
    (record,) = dataset.records
    assert record == Record("0.tar#set.a/0001.jpg", ("a man", "in red"), 7, "test", "0.tar set.a/0001.jpg")
    assert open_picture(tmp_path / record.image).getvalue() == layouts.picture_bytes(1)
    assert problems == [
        "0.tar 0005.txt: 500,000 bytes; expected at most 400,000",
        "0.tar 0004.json: expected an object, found list",
        "0.tar 0003.jpg: it has no captions",
        "0.tar 0005.jpg: it has no captions",
    ]


# -- faults -----------------------------------------------------------------------------------------------------


def edit(**values):
    """Changes record 2."""
    return lambda records: records[2].update(values)


def parquet(**changes) -> bytes:
    """Six rows as a Parquet file; changes replace or add columns."""
    columns = {"image_path": [f"p/{i}.png" for i in range(6)], "caption": ["a man"] * 6}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns | changes), stream)
    return stream.getvalue()


# layout: {fault: (what its file holds instead, or a change of its records; words of the problem)}
FAULTS = {
    "cuhk-pedes": {
        "missing split": (lambda records: records[2].pop("split"), "no key 'split'; it has ['captions'"),
        "id bool": (edit(id=True), "id = True: expected int"),
        # NumPy would turn a list of 1 and 2**63 into floats, and so two persons into one.
        "id large": (edit(id=2**63), "id = 9223372036854775808: expected int"),
        "captions string": (edit(captions="a man"), "captions = 'a man': expected list"),
        "caption number": (edit(captions=["fine", 3]), "caption 1 = 3"),
        "caption long": (edit(captions=["a " * 60_000]), "caption 0 has 120,000 characters; expected at most 100,"),
        "caption a long blank": (edit(captions=[" " * 10_000_000]), "caption 0 = '     "),  # and the message is short
        "half a character": (edit(captions=["cut \ud83d"]), "caption 0 = 'cut \\ud83d'"),  # no tokenizer reads it
        "missing picture": (edit(file_path="cam_a/none.png"), "no such picture: "),
        "path upwards": (edit(file_path="../outside.png"), "path '../outside.png' leaves the data root"),
        "path absolute": (edit(file_path="/etc/hostname"), "path '/etc/hostname' leaves the data root"),
        "long path": (edit(file_path="x" * 300 + ".png"), "xxx.png"),  # beyond the 255 bytes of a file name
        "listed twice": (edit(file_path="./cam_a/../cam_a//p1_0.png", id=1), "also stands in reid_raw.json record 0"),
        "deep": (b"[" * 100_000, "not readable as JSON"),
        "key twice": (b'[{"a": 1, "b": 2, "a": 3}]', "key 'a' stands twice"),  # parsers read it differently
        "NaN": (b"[NaN]", "NaN is no finite number"),
        "infinite": (b"[1e999]", "1e999 is no finite number"),
        "no records": (b"[]", "holds no records"),
        "object": (b"{}", "expected a list, found dict"),
    },
    "flickr30k": {"missing raw": (lambda images: images[2]["sentences"][2].pop("raw"), "no key 'raw'")},
    "csv": {
        "no caption column": (b"image_path,split\np/0.png,train\n", "no column caption; it has image_path, split"),
        "empty path": (b"image_path,caption\n,a man\n", "row 1: image_path = '': expected a path"),
        "empty identity": (b"image_path,caption,identity\np/0.png,a man,\n", "row 1: identity is empty"),
        "unknown split": (b"image_path,caption,split\np/0.png,a man,rest\n", "row 1: unknown split 'rest': expected"),
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
    },
    "csv parquet": {
        "missing identity": (parquet(identity=[0.0, None, 2.0, 3.0, 4.0, 5.0]), "row 2: identity is empty"),
        "fraction": (parquet(identity=[0.0, 1.5, 2.0, 3.0, 4.0, 5.0]), "row 2: identity = 1.5"),
        "null": (parquet(caption=[None, *["a man"] * 5]), "row 1: caption 0 = None"),
        "path a number": (parquet(image_path=list(range(6))), "row 1: image_path = 0: expected a path"),
    },
    "coco-captions": {"no image": (b'{"images": [], "annotations": [{"image_id": 5}]}', "image_id 5 is not among the")},
    "flickr30k-token": {"no tab": (b"1000.jpg 5 no tab", "line 1: '1000.jpg 5 no tab': expected PICTURE.jpg#NUMBER")},
}  # fmt: skip


@pytest.mark.parametrize(("layout", "fault"), [(layout, fault) for layout in FAULTS for fault in FAULTS[layout]])
def test_fault_is_named_with_its_place(root_of, layout, fault):
    change, expected = FAULTS[layout][fault]
    root, file = root_of(layout), layouts.LAYOUTS[layout][2]
    if callable(change):
        content = json.loads((root / file).read_text())
        images = isinstance(content, dict)
        change(content["images"] if images else content)
        (problem,) = read_hostile(layout, root, json.dumps(content).encode())[1]  # one cause, one line
        assert problem.startswith(f"{file} {'image' if images else 'record'} 2: ")
    else:
        problem = read_hostile(layout, root, change)[1][0]
    error = DataError("data", [problem] * 60)
    assert all(expected in shown for shown in error.problems)
    assert str(error).splitlines()[51:] == ["  ... and 10 more"]  # after the heading and fifty of them
    assert problem.startswith("identity ") or Path(file).name in problem


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_described_and_missing_data_says_how_the_folder_must_look(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_dataset(name, tmp_path / "nowhere")
    first = caught.value.problems[0]  # of up to fifty that are shown
    for part in (DATASETS[name].layout, str(tmp_path)):
        assert part in first
    assert (f"is published here: {DATASETS[name].source}" in first) == (DATASETS[name].source != "your own")
    assert DATASETS[name].kind in PROTOCOLS
    assert f"| `{name}` |" in (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_data_set_is_tested_and_no_other_is_known(tmp_path):
    assert {name for name, _, _ in layouts.LAYOUTS.values()} == set(DATASETS) - {"hf"}  # which is one of three others
    with pytest.raises(ValueError, match=r"unknown dataset 'mnist'.*flickr30k"):
        load_dataset("mnist", tmp_path)


# -- anything in any file ---------------------------------------------------------------------------------------

# One layout of each parser and form of file: several data sets share a parser.
FORMS = {
    (DATASETS[name].parser, Path(file).parent, Path(file).suffix): layout
    for layout, (name, _, file) in layouts.LAYOUTS.items()
}


@pytest.fixture(scope="module")
def root_of(tmp_path_factory):
    """root_of(name) -> a root of that layout, written once; the file that a test replaces is restored."""
    folder = tmp_path_factory.mktemp("layouts")

    def get(name: str) -> Path:
        root, kept = folder / name, folder / f"{name}.kept"
        if not kept.exists():
            shutil.copy(layouts.write_layout(name, root) / layouts.LAYOUTS[name][2], kept)
        shutil.copy(kept, root / layouts.LAYOUTS[name][2])
        return root

    return get


def read_hostile(name: str, root: Path, content: bytes) -> tuple[Dataset, list[str]]:
    """What is read of a layout with another file, after checking what every reader promises, whatever that holds."""
    reader, _, file = layouts.LAYOUTS[name]
    (root / file).write_bytes(content)
    dataset, problems = read_dataset(reader, root)
    for r in dataset.records:
        assert type(r.identity) is int
        assert -(2**63) <= r.identity < 2**63
        assert all(isinstance(c, str) and c.strip() and len(c) <= 100_000 for c in r.captions)
        assert (dataset.image_root / r.image).resolve().is_relative_to(root.resolve())
    assert all(r.captions and r.split in SPLITS for r in dataset.records)
    for split in map(dataset.split, {r.split for r in dataset.records}):
        expected = [r.identity for r in dataset.records if r.split == split.name]
        assert split.identities[split.image_labels].tolist() == expected
    message = str(DataError("data", problems))
    assert len(message) < 60_000  # at most 1,000 of each problem
    assert all(c.isprintable() or c == "\n" for c in message)
    assert problems or dataset.fingerprint()
    return dataset, problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["train", "test", "cam_a/p1_0.png", "../x.png", "a\0b", "\ud800", 2**63, -(2**63), 1, 1.0, "1"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize(("name", "what"), [("rstp-reid", "record"), ("coco", "image")])
@bounded
@given(data=st.data())
def test_a_record_with_any_value_in_any_place_is_taken_or_named(root_of, name, what, data):
    root, file = root_of(name), layouts.LAYOUTS[name][2]
    content = json.loads((root / file).read_text())
    entries = content["images"] if what == "image" else content
    entries[1][data.draw(st.sampled_from(sorted(entries[1])))] = data.draw(values)
    dataset, problems = read_hostile(name, root, json.dumps(content).encode())
    # Nothing but the changed record is lost, and what is wrong is said of it, or of its identity's splits.
    assert len(dataset.records) >= len(entries) - 1
    assert all(p.startswith((f"{file} {what} 1", "identity ")) for p in problems)
    assert problems or any(r.source == f"{file} {what} 1" for r in dataset.records)


@pytest.mark.parametrize("name", FORMS.values())
@bounded
@given(
    content=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_bytes_and_a_damaged_file_are_read_or_refused(root_of, name, content, damage):
    root, file = root_of(name), layouts.LAYOUTS[name][2]
    damaged = bytearray((root / file).read_bytes())
    for place, byte in damage:
        damaged[int(place * (len(damaged) - 1))] = byte
    read_hostile(name, root, content)
    read_hostile(name, root, damaged)


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@pytest.mark.parametrize("name", ["csv", "csv parquet"])
@bounded
@given(
    captions=st.lists(cell.filter(lambda t: t.strip()), min_size=11, max_size=11), identities=st.permutations(range(6))
)
def test_a_table_of_any_text_comes_back_as_it_was(root_of, name, captions, identities):
    root, captions = root_of(name), ["NA", *captions]  # which pandas would read as missing
    rows = [[f"p/{i // 2}.png", c, float(identities[i // 2])] for i, c in enumerate(captions)]
    layouts.write_table(root, [["image_path", "caption", "identity"], *rows], layouts.LAYOUTS[name][2])
    dataset = load_dataset("csv", root)
    assert [c for r in dataset.records for c in r.captions] == [c.strip() for c in captions]
    assert [r.identity for r in dataset.records] == list(identities)  # 3.0, as pandas writes it, is 3


@pytest.mark.parametrize("name", FORMS.values())
def test_what_is_no_regular_file_is_refused_and_never_waited_for(root_of, tmp_path, name):
    reader, _, file = layouts.LAYOUTS[name]
    root = shutil.copytree(root_of(name), tmp_path / "root")
    (root / file).unlink()
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):  # reading it never ends
        make(root / file)
        assert Path(file).name in read_dataset(reader, root)[1][0]
        (root / file).unlink()


# -- paths and links --------------------------------------------------------------------------------------------


def test_linked_root_picture_folder_and_folders_in_it_are_followed(tmp_path):
    root, link = layouts.write_person_search(tmp_path / "root"), tmp_path / "link"
    link.symlink_to(root)
    for folder in (root / "imgs/cam_a", root / "imgs"):
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    assert len(load_dataset("cuhk-pedes", link).records) == 24


def test_single_link_is_followed_only_inside_and_no_way_leads_up_through_a_linked_folder(tmp_path):
    records = layouts.person_search_records()
    inside, outside = tmp_path / "root/pool/a.png", tmp_path / "elsewhere/private.png"
    root = layouts.write_person_search(tmp_path / "root", records)
    records[4]["file_path"] = "market/../private.png"  # by its text inside imgs, by the links not
    (root / "reid_raw.json").write_text(json.dumps(records))
    for picture in (inside, outside):
        layouts.write_picture(picture)
    (outside.parent / "market").mkdir()
    (root / "imgs/market").symlink_to(outside.parent / "market")
    names = [root / "imgs" / r["file_path"] for r in records[:3]]
    # As DVC and git-annex keep files: elsewhere, but in the root. Then out of it, and in a circle.
    for name, target in zip(names, (inside, outside, names[2].name), strict=True):
        name.unlink()
        name.symlink_to(target)
    dataset, (link, circle, up) = read_dataset("cuhk-pedes", root)
    assert link.startswith("reid_raw.json record 1: picture path 'cam_a/p1_1.png' is a link that leaves the data root")
    assert f"copy {outside} into it" in link
    assert circle.startswith("reid_raw.json record 2: ")
    assert up.startswith("reid_raw.json record 4: picture path 'market/../private.png' leaves the data root")
    used = {r.source.split()[-1] for r in dataset.records}
    assert used & {"0", "1", "4"} == {"0"}  # nothing opens the others


def test_classes_and_captions_outside_the_root_are_not_read(tmp_path):
    root = layouts.write_layout("cub", tmp_path / "root")
    other = layouts.write_reed(tmp_path / "other", {"train": ["005.E"]}, images=1) / "text_c10/005.E"
    (root / "text_c10/001.A/A_0000.txt").unlink()
    (root / "text_c10/001.A/A_0000.txt").symlink_to(other / "E_0000.txt")
    (root / "trainclasses.txt").write_text(f"001.A\n002.B\n../../other/text_c10/005.E\n{other}\n")
    dataset, problems = read_dataset("cub", root)
    assert {r.source.split("/")[1] for r in dataset.records} == {"002.B", "003.C", "004.D"}
    assert "trainclasses.txt: '../../other/text_c10/005.E': expected a class name" in problems
    assert any("A_0000.txt' is a link that leaves the data root" in p for p in problems)


pieces = st.sampled_from([*"./\\~ab\0\n", "..", "/", "cam_a", "é", "\udcff", "\ud800"])


@bounded
@given(name=st.lists(pieces, max_size=8).map("".join))
def test_no_path_of_an_annotation_leaves_the_root(root_of, name):
    root = root_of("cuhk-pedes")
    records = layouts.person_search_records(train=3, val=1, test=1)
    records[2]["file_path"] = name
    (problem,) = read_hostile("cuhk-pedes", root, json.dumps(records).encode())[1]
    assert problem.startswith("reid_raw.json record 2: ")
    report = check_dataset("cuhk-pedes", root)  # opens pictures
    assert len([p for p in report["problems"] if "record 2" in p]) == 1
