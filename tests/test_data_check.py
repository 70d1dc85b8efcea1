"""timam data check: counts beside the published ones, known wrong versions, and what is no obstacle but misleads."""

import json
import shutil
from dataclasses import replace

from layouts import CLASSES, person_search_records, write_person_search, write_reed, write_variant

from timam.data import DATASETS
from timam.data.check import check_dataset, found_beside_published


def test_report_stands_beside_what_is_published(tmp_path):
    report = check_dataset("cub", write_reed(tmp_path, CLASSES))
    assert json.loads(json.dumps(report)) == report
    assert report["protocol"].startswith("class: ")
    assert report["problems"] == report["warnings"] == []
    rows = {row["split"]: row for row in found_beside_published(report)}
    assert (rows["train"]["identities"], rows["train"]["identities (published)"]) == (2, 100)
    assert (rows["train+val+test"]["images"], rows["train+val+test"]["images (published)"]) == (12, 11_788)
    assert rows["train"]["images (published)"] is None
    (note,) = report["notes"]
    assert "2 identities in train, published 100" in note


def test_counts_as_published_need_no_note(tmp_path, monkeypatch):
    small = {"train": (12, 24, 6), "val": (6, 12, 3), "test": (6, 12, 3)}
    monkeypatch.setitem(DATASETS, "cuhk-pedes", replace(DATASETS["cuhk-pedes"], published=small))
    assert check_dataset("cuhk-pedes", write_person_search(tmp_path))["notes"] == []


def test_old_split_of_rstp_is_recognised(tmp_path, monkeypatch):
    spec = DATASETS["rstp-reid"]
    (message,) = spec.versions
    assert spec.versions[message] == {s: (None, None, n) for s, n in {"train": 3901, "val": 100, "test": 100}.items()}
    old = {s: (None, None, n) for s, n in {"train": 3, "val": 1, "test": 1}.items()}
    monkeypatch.setitem(DATASETS, "rstp-reid", replace(spec, versions={message: old}))
    root = write_variant(tmp_path, "data_captions.json", path_key="img_path")
    (warning,) = check_dataset("rstp-reid", root)["warnings"]
    assert warning.startswith("not the published version: the old split of 3,901/100/100")


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
