"""Every other benchmark's layout at small scale, with its real oddities: records, splits, labels, protocol, checks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import (
    karpathy_images,
    person_search_records,
    write_karpathy,
    write_person_search,
    write_picture,
    write_reed,
)

from timam.data import DATASETS, DataError, load_dataset, read_dataset
from timam.data.benchmarks import BENCHMARKS, PROTOCOLS
from timam.data.check import check_dataset, found_beside_published
from timam.data.formats import by_hash
from timam.data.records import Dataset

CUB = {
    "train": ["001.Black_footed_Albatross", "014.Indigo_Bunting"],
    "val": ["003.Sooty_Albatross"],
    "trainval": ["001.Black_footed_Albatross", "003.Sooty_Albatross", "014.Indigo_Bunting"],
    "test": ["002.Laysan_Albatross", "200.Common_Yellowthroat"],
}
FLOWERS = {"trainval": [f"class_{i:05d}" for i in range(3, 23)], "test": ["class_00001", "class_00102"]}


def problems_of(name: str, root: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_dataset(name, root)
    return caught.value.problems


def identities(dataset: Dataset) -> dict[str, set[int]]:
    return {s: {r.identity for r in dataset.records if r.split == s} for s in ("train", "val", "test")}


def labels_are_contiguous(dataset: Dataset) -> bool:
    return all(
        np.array_equal(np.unique(split.image_labels), np.arange(len(split.identities)))
        for split in map(dataset.split, ("train", "val", "test"))
    )


# -- person search ----------------------------------------------------------------------------------------------


def write_variant(root: Path, file: str, records: list[dict]) -> Path:
    write_person_search(root, records)
    (root / "reid_raw.json").unlink()
    (root / file).write_text(json.dumps(records))
    return root


def test_icfg_counts_from_zero_and_has_no_validation_split(tmp_path):
    records = person_search_records(train=20, val=0, test=4, captions=1)
    for record in records:
        record["id"] -= 1
        record["processed_tokens"] = [["a", "person"]]
    dataset = load_dataset("icfg-pedes", write_variant(tmp_path, "ICFG-PEDES.json", records))
    found = identities(dataset)
    assert found["test"] == {20, 21, 22, 23}
    assert found["train"] | found["val"] == set(range(20))
    assert len(found["val"]) == 2  # a tenth
    assert not found["train"] & found["val"]
    assert labels_are_contiguous(dataset)
    (note,) = dataset.notes
    assert "2 of 20 training identities are held out" in note


def test_held_out_identities_do_not_depend_on_the_order_of_the_file(tmp_path):
    records = person_search_records(train=20, val=0, test=4)
    one = load_dataset("icfg-pedes", write_variant(tmp_path / "a", "ICFG-PEDES.json", records))
    other = load_dataset("icfg-pedes", write_variant(tmp_path / "b", "ICFG-PEDES.json", records[::-1]))
    assert identities(one) == identities(other)


def test_published_validation_split_is_never_replaced(tmp_path):
    assert problems_of("cuhk-pedes", write_person_search(tmp_path, val=0)) == ["the val split has no identities"]


def test_rstp_names_its_pictures_img_path(tmp_path):
    records = person_search_records()
    root = write_variant(tmp_path, "data_captions.json", records)
    for i, record in enumerate(records):
        flat = f"{i:04d}_c5_0022.png"
        (root / "imgs" / record.pop("file_path")).rename(root / "imgs" / flat)
        record["img_path"] = flat
        record["id"] -= 1
    (root / "data_captions.json").write_text(json.dumps(records))
    dataset = load_dataset("rstp-reid", root)
    assert identities(dataset) == {"train": set(range(6)), "val": {6, 7, 8}, "test": {9, 10, 11}}
    assert dataset.split("train").image_paths[1] == root / "imgs" / "0001_c5_0022.png"
    records[3]["file_path"] = records[3].pop("img_path")
    (root / "data_captions.json").write_text(json.dumps(records))
    (problem,) = problems_of("rstp-reid", root)
    assert "data_captions.json record 3: no key 'img_path'" in problem


def members(records: list[dict], split: str, key: str) -> list:
    return [r[key] for r in records if r["split"] == split]


SPLIT_FILES = {
    "split.json of identities": lambda rs: {
        "split.json": {s: sorted(set(members(rs, s, "id"))) for s in ("train", "val", "test")}
    },
    "split.json of paths": lambda rs: {
        "split.json": {s: members(rs, s, "file_path") for s in ("train", "val", "test")}
    },
    "a list of records each": lambda rs: {
        f"{s}_reid.json": [r for r in rs if r["split"] == s] for s in ("train", "val", "test")
    },
    "annotations each": lambda rs: {
        f"{s}.json": {"annotations": [r for r in rs if r["split"] == s]} for s in ("train", "val", "test")
    },
}


def write_caption_all(root: Path, records: list[dict]) -> Path:
    write_person_search(root, records)
    (root / "reid_raw.json").unlink()
    bare = [{k: v for k, v in r.items() if k != "split"} for r in records]
    (root / "caption_all.json").write_text(json.dumps(bare))
    return root


@pytest.mark.parametrize("make", SPLIT_FILES.values(), ids=SPLIT_FILES)
def test_caption_all_takes_its_splits_from_another_file(tmp_path, make):
    records = person_search_records()
    root = write_caption_all(tmp_path, records)
    for name, content in make(records).items():
        (root / name).write_text(json.dumps(content))
    dataset = load_dataset("cuhk-pedes", root)
    assert [r.split for r in dataset.records] == [r["split"] for r in records]


def test_caption_all_without_or_with_an_incomplete_split_file_is_named(tmp_path):
    records = person_search_records()
    root = write_caption_all(tmp_path, records)
    (problem,) = problems_of("cuhk-pedes", root)
    assert "caption_all.json has no splits" in problem
    assert "reid_raw.json" in problem
    (root / "split.json").write_text(json.dumps({"train": [1, 2], "test": [3]}))
    problems = problems_of("cuhk-pedes", root)
    assert len(problems) == 2 * 9  # identities 4 to 12, two pictures each
    assert "caption_all.json record 6: neither 'cam_a/p4_0.png' nor id 4 stands in a split file" in problems
    (root / "split.json").write_text(
        json.dumps({"train": list(range(1, 7)), "val": [6, 7], "test": list(range(8, 13))})
    )
    assert "split files: 6 stands in train and in val" in problems_of("cuhk-pedes", root)


# -- Karpathy's splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["Flicker8k_Dataset", "Flickr8k_Dataset", "images"])
def test_flickr8k(tmp_path, folder):
    dataset = load_dataset("flickr8k", write_karpathy(tmp_path, karpathy_images(), folder, "flickr8k"))
    assert (dataset.kind, dataset.folds) == ("instance", 1)
    assert len(dataset.split("train").captions) == 15


@pytest.mark.parametrize("folder", [".", "images"])
def test_coco_has_two_folders_restval_and_folds(tmp_path, folder):
    images = karpathy_images(train=3, val=2, test=2)
    for i, image in enumerate(images):
        image |= {"filepath": "train2014" if i < 2 else "val2014", "cocoid": 9 + i}
    images[2]["split"] = "restval"
    (tmp_path / "images").mkdir()  # there, but the pictures may lie elsewhere
    dataset = load_dataset("coco", write_karpathy(tmp_path, images, folder, "coco"))
    assert dataset.folds == 5
    assert dataset.split("train").image_paths[2].relative_to(tmp_path / folder).as_posix() == "val2014/1002.jpg"


# -- Reed's captions --------------------------------------------------------------------------------------------


def test_cub_reads_text_files_only_and_numbers_classes(tmp_path):
    dataset = load_dataset("cub", write_reed(tmp_path, CUB))
    assert dataset.kind == "class"
    assert identities(dataset) == {"train": {1, 14}, "val": {3}, "test": {2, 200}}
    assert labels_are_contiguous(dataset)
    train = dataset.split("train")
    assert len(train.image_paths) == 6
    assert len(train.captions) == 60
    assert train.image_paths[0] == (
        tmp_path / "CUB_200_2011/images/001.Black_footed_Albatross/Black_footed_Albatross_0000.jpg"
    )
    assert train.captions[1].endswith("said 1.")


def test_cub_pictures_may_lie_in_images_and_text_in_the_archives_folder(tmp_path):
    root = write_reed(tmp_path / "cvpr2016_cub", CUB).parent
    (root / "cvpr2016_cub/CUB_200_2011/images").rename(root / "images")
    assert load_dataset("cub", root).image_root == root / "images"


def test_folder_of_features_alone_says_where_the_pictures_are_published(tmp_path):
    """Reed's archive has a folder images/, too."""
    root = write_reed(tmp_path, CUB)
    shutil.rmtree(root / "CUB_200_2011")
    found = problems_of("cub", root)
    assert found[0].startswith(f"{root / 'images'}: none of the 15 pictures; cub is published here: ")
    assert BENCHMARKS["cub"].layout in found[0]
    assert len(found) == 16  # each picture still has its line


def test_flowers_are_flat_and_hold_out_classes_of_trainval(tmp_path):
    dataset = load_dataset("flowers", write_reed(tmp_path, FLOWERS, flat=True))
    found = identities(dataset)
    assert found["test"] == {1, 102}
    assert len(found["val"]) == 2  # a tenth of 20
    assert found["train"] | found["val"] == set(range(3, 23))
    assert "2 of 20 training identities are held out" in dataset.notes[0]
    assert dataset.split("test").image_paths[0].parent == tmp_path / "jpg"


def test_flowers_use_published_validation_classes(tmp_path):
    lists = FLOWERS | {"train": FLOWERS["trainval"][:15], "val": FLOWERS["trainval"][15:]}
    dataset = load_dataset("flowers", write_reed(tmp_path, lists, flat=True))
    assert identities(dataset)["val"] == set(range(18, 23))
    assert dataset.notes == ()


def test_class_in_two_lists_is_named(tmp_path):
    root = write_reed(tmp_path, {"trainval": CUB["trainval"], "test": [*CUB["test"], "014.Indigo_Bunting"]})
    problems = problems_of("cub", root)
    assert len(problems) == 1
    assert "testclasses.txt: 014.Indigo_Bunting also stands in the train split" in problems[0]
    assert "Xian" in problems[0]


def test_class_without_captions_and_class_in_no_list(tmp_path):
    root = write_reed(tmp_path, CUB)
    shutil.rmtree(root / "text_c10/003.Sooty_Albatross")
    (root / "text_c10/099.Ovenbird").mkdir()
    dataset, problems = read_dataset("cub", root)
    assert "class 003.Sooty_Albatross (val split): expected captions (*.txt) in text_c10" in problems
    assert dataset.warnings == ("1 classes stand in no list and are not used: 099.Ovenbird",)


def test_odd_caption_files(tmp_path):
    root = write_reed(tmp_path, CUB, captions=3)
    one, two, three = sorted((root / "text_c10/002.Laysan_Albatross").glob("*.txt"))
    one.write_bytes(b"a gull\r\n\r\nwhite\xff wings\n\n")
    two.write_text(" \n\n")
    dataset, problems = read_dataset("cub", root)
    name = f"text_c10/002.Laysan_Albatross/{one.name}"
    assert f"{name}: line 2: an empty caption, left out" in dataset.warnings
    assert f"{name}: it is not UTF-8 throughout; the bytes in question were replaced" in dataset.warnings
    assert problems == [f"text_c10/002.Laysan_Albatross/{two.name}: it has no captions"]
    captions = {r.source: r.captions for r in dataset.records}
    assert captions[name] == ("a gull", "white\ufffd wings")
    assert len(captions[f"text_c10/002.Laysan_Albatross/{three.name}"]) == 3


def test_missing_picture_of_a_caption_file_is_named(tmp_path):
    root = write_reed(tmp_path, CUB)
    path = next((root / "CUB_200_2011/images/002.Laysan_Albatross").glob("*.jpg"))
    path.unlink()
    (problem,) = problems_of("cub", root)
    assert problem.startswith(f"text_c10/002.Laysan_Albatross/{path.stem}.txt: no such picture")


# -- tables of one's own ----------------------------------------------------------------------------------------


def table(identities: int = 10, **changes) -> pd.DataFrame:
    """Two pictures an identity with two captions each; changes replace or (with None) drop columns."""
    rows = [
        {"image_path": f"p/{i}_{k}.png", "caption": f"person {i}, view {k}, sentence {j}", "identity": f"id-{i}",
         "split": "train" if i < 6 else "val" if i < 8 else "test"}
        for i in range(identities) for k in range(2) for j in range(2)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    for column, values in changes.items():
        frame = frame.drop(columns=column) if values is None else frame.assign(**{column: values})
    return frame


def write_table(root: Path, frame: pd.DataFrame, file: str = "captions.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    if file.endswith(".csv"):
        frame.to_csv(root / file, index=False)
    else:
        frame.to_parquet(root / file)
    for path in frame.get("image_path", []):
        if path and not (root / path).exists():
            write_picture(root / path)
    return root


@pytest.mark.parametrize("file", ["captions.csv", "mine.csv", "captions.parquet"])
def test_table_becomes_records_by_picture(tmp_path, file):
    dataset = load_dataset("csv", write_table(tmp_path, table(), file))
    assert dataset.kind == "identity"
    assert len(dataset.records) == 20
    assert dataset.records[1].captions == ("person 0, view 1, sentence 0", "person 0, view 1, sentence 1")
    assert dataset.records[1].source == f"{file} row 3"
    assert {s: len(i) for s, i in identities(dataset).items()} == {"train": 6, "val": 2, "test": 2}
    assert labels_are_contiguous(dataset)
    assert dataset.notes == ()


def test_whole_numbers_stay_identities_and_text_stays_text(tmp_path):
    numbers = [str(7 * (i // 4)) for i in range(40)]
    captions = [f"NA {i}" if i else "NA" for i in range(40)]  # what pandas would read as missing
    dataset = load_dataset("csv", write_table(tmp_path, table(identity=numbers, caption=captions)))
    assert identities(dataset)["test"] == {56, 63}
    assert dataset.records[0].captions[0] == "NA"


def test_parquet_may_hold_numbers(tmp_path):
    frame = table(identity=[7 * (i // 4) for i in range(40)])
    assert identities(load_dataset("csv", write_table(tmp_path, frame, "captions.parquet")))["test"] == {56, 63}


def test_identities_that_are_alike_as_numbers_stay_apart(tmp_path):
    names = ["7" if i < 20 else "07" for i in range(40)]
    dataset = load_dataset("csv", write_table(tmp_path, table(identity=names, split=["train"] * 40)), ("train",))
    assert len({r.identity for r in dataset.records}) == 2


def test_table_without_splits_is_split_by_identity_reproducibly(tmp_path):
    frame = table(identities=20, split=None)
    dataset = load_dataset("csv", write_table(tmp_path / "a", frame))
    found = identities(dataset)
    assert {s: len(i) for s, i in found.items()} == {"train": 16, "val": 2, "test": 2}
    assert not found["train"] & found["val"] | found["val"] & found["test"] | found["train"] & found["test"]
    (note,) = dataset.notes
    assert "16/2/2 identities were made train/val/test" in note
    shuffled = frame.sample(frac=1, random_state=3)
    again = load_dataset("csv", write_table(tmp_path / "b", shuffled))
    assert identities(again) == found
    # From the definition: by SHA-256 of the name, the first tenth is val, the second test.
    import hashlib

    names = sorted({f"id-{i}" for i in range(20)}, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    assert {r.captions[0].split(",")[0] for r in dataset.records if r.split == "val"} == {
        f"person {n[3:]}" for n in names[:2]
    }
    assert by_hash(reversed(names)) == names


def test_table_without_identities_is_of_instances(tmp_path):
    dataset = load_dataset("csv", write_table(tmp_path, table(identity=None)))
    assert dataset.kind == "instance"
    assert len(dataset.split("train").identities) == len(dataset.split("train").image_paths) == 12


BAD_TABLES = {
    "no caption column": (table(caption=None), ["captions.csv: no column caption; it has image_path, identity, split"]),
    "empty caption": (table(caption=["", *["a man"] * 39]), ["captions.csv row 1: caption 0 = ''"]),
    "empty path": (table(image_path=["", *table()["image_path"][1:]]), ["captions.csv row 1: image_path is empty"]),
    "empty identity": (table(identity=["", *table()["identity"][1:]]), ["captions.csv row 1: identity is empty"]),
    "unknown split": (
        table(split=["dev", "dev", *table()["split"][2:]]),
        ["captions.csv row 1: unknown split 'dev'", "captions.csv row 2: unknown split 'dev'"],
    ),
    "two identities": (
        table(identity=["id-0", "id-9", *table()["identity"][2:]]),
        ["captions.csv row 2: identity 'id-9' of p/0_0.png: captions.csv row 1 says 'id-0'"],
    ),
    "identity in two splits": (
        table(split=["train", "train", "val", "val", *table()["split"][4:]]),
        ["identity 0: stands in the splits train, val; expected one"],
    ),
    "path leaves the root": (
        table(image_path=["../x.png", *table()["image_path"][1:]]),
        ["captions.csv row 1: picture path '../x.png' leaves the data root"],
    ),
}


@pytest.mark.parametrize(("frame", "expected"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_table_is_reported_by_row(tmp_path, frame, expected):
    problems = problems_of("csv", write_table(tmp_path / "data", frame))
    problems = problems[: len(expected)] if "column" in expected[0] else problems
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert problem.startswith(words)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "found none"),
        ({"a.csv": "x", "b.csv": "x"}, "found a.csv, b.csv"),
        ({"captions.csv": ""}, "not readable as a table"),
        ({"captions.csv": 'image_path,caption\na.png,"never closed'}, "not readable as a table"),
        ({"captions.parquet": "no parquet"}, "not readable as a table"),
    ],
)
def test_unusable_tables_are_named(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert expected in problems_of("csv", tmp_path)[0]


# -- all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_data_says_where_it_is_and_how_the_folder_must_look(tmp_path, name):
    last = problems_of(name, tmp_path)[-1]
    assert BENCHMARKS[name].source in last
    assert BENCHMARKS[name].layout in last
    assert str(tmp_path) in last


def test_every_reader_is_described():
    assert list(DATASETS) == list(BENCHMARKS)
    assert {reader.kind for reader in DATASETS.values()} == set(PROTOCOLS)


# -- timam data check -------------------------------------------------------------------------------------------


def test_report_stands_beside_what_is_published(tmp_path):
    report = check_dataset("cub", write_reed(tmp_path, CUB))
    assert json.loads(json.dumps(report)) == report
    assert report["protocol"].startswith("class: ")
    assert report["problems"] == report["warnings"] == []
    rows = {row["split"]: row for row in found_beside_published(report)}
    assert (rows["train"]["identities"], rows["train"]["identities (published)"]) == (2, 100)
    assert (rows["train+val+test"]["images"], rows["train+val+test"]["images (published)"]) == (15, 11_788)
    assert rows["train"]["images (published)"] is None
    (note,) = report["notes"]
    assert "2 identities in train, published 100" in note


def test_counts_as_published_need_no_note(tmp_path, monkeypatch):
    small = {"train": (12, 24, 6), "val": (6, 12, 3), "test": (6, 12, 3)}
    monkeypatch.setitem(BENCHMARKS["cuhk-pedes"].published, "train", small["train"])
    monkeypatch.setitem(BENCHMARKS["cuhk-pedes"].published, "val", small["val"])
    monkeypatch.setitem(BENCHMARKS["cuhk-pedes"].published, "test", small["test"])
    assert check_dataset("cuhk-pedes", write_person_search(tmp_path))["notes"] == []


def test_old_split_of_rstp_is_recognised(tmp_path):
    sizes = {"train": 3901, "val": 100, "test": 100}
    records = person_search_records(**sizes, images=1, captions=1)
    for record in records:
        record["img_path"] = record.pop("file_path")
    (tmp_path / "data_captions.json").write_text(json.dumps(records))
    for record in records[:1]:
        write_picture(tmp_path / "imgs" / record["img_path"])
    for record in records[1:]:
        (tmp_path / "imgs" / record["img_path"]).symlink_to(tmp_path / "imgs" / records[0]["img_path"])
    warnings = check_dataset("rstp-reid", tmp_path)["warnings"]
    assert sum("the old split of 3,901/100/100" in w for w in warnings) == 1


def test_partial_download_names_the_folders(tmp_path):
    records = person_search_records()
    for record in records[:6]:
        record["file_path"] = record["file_path"].replace("cam_a", "Market")
    root = write_person_search(tmp_path, records)
    shutil.rmtree(root / "imgs/Market")
    report = check_dataset("cuhk-pedes", root)
    assert len(report["problems"]) == 6  # each with its record
    assert "partial download: 6 of 24 pictures are missing, by folder: Market 6 of 6" in report["warnings"]


def test_same_bytes_in_two_splits_are_named_within_a_split_not(tmp_path):
    records = person_search_records()
    root = write_person_search(tmp_path, records)
    first, same_split, test = (root / "imgs" / records[i]["file_path"] for i in (0, 1, -1))
    same_split.write_bytes(first.read_bytes())
    test.write_bytes(first.read_bytes())
    (warning,) = check_dataset("cuhk-pedes", root)["warnings"]
    assert warning == (
        f"reid_raw.json record 23: picture {records[-1]['file_path']} (test split) has the bytes of "
        f"{records[0]['file_path']} (train split, reid_raw.json record 0)"
    )


def test_long_caption_is_named(tmp_path):
    records = person_search_records()
    records[5]["captions"][1] = "word " * 121
    root = write_person_search(tmp_path, records)
    (warning,) = check_dataset("cuhk-pedes", root)["warnings"]
    assert warning == "reid_raw.json record 5: caption 1 has 121 words; expected at most 120"
    assert check_dataset("cuhk-pedes", root, max_words=121)["warnings"] == []
