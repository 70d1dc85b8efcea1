"""timam data check: counts beside the published ones, known wrong versions, and what is no obstacle but misleads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from layouts import (
    CLASSES,
    HF_IMAGE,
    LAYOUTS,
    person_search_records,
    picture_bytes,
    write_person_search,
    write_reed,
    write_table,
)

from timam.data import DATASETS
from timam.models.text_encoder import word_tokenizer
from timam_lab.check import check_dataset, found_beside_published


def test_report_stands_beside_what_is_published(tmp_path):
    report = check_dataset("cub", write_reed(tmp_path, CLASSES))
    assert json.loads(json.dumps(report)) == report
    assert report["protocol"].startswith("class: ")
    assert report["problems"] == []
    assert report["warnings"] == [
        f"the {s} split has 1 identities: too few for rank-1 to mean anything" for s in ("val", "test")
    ]
    rows = {row["split"]: row for row in found_beside_published(report)}
    assert (rows["train"]["identities"], rows["train"]["identities (published)"]) == (2, 100)
    assert (rows["train+val+test"]["images"], rows["train+val+test"]["images (published)"]) == (12, 11_788)
    assert rows["train"]["images (published)"] is None
    (note,) = report["notes"]
    assert "2 identities in train, published 100" in note


def test_counts_are_compared_with_the_published_ones_and_those_of_known_wrong_versions(tmp_path, monkeypatch):
    small = {"train": (12, 24, 6), "val": (6, 12, 3), "test": (6, 12, 3)}
    monkeypatch.setitem(DATASETS, "cuhk-pedes", replace(DATASETS["cuhk-pedes"], published=small))
    report = check_dataset("cuhk-pedes", write_person_search(tmp_path / "a"))
    assert not any("another version" in note for note in report["notes"])
    assert report["warnings"] == []
    assert "the test split has 3 identities: too few for rank-1 to mean anything" in report["notes"]
    spec = DATASETS["rstp-reid"]
    (message,) = spec.versions
    assert spec.versions[message] == {s: [None, None, n] for s, n in {"train": 3901, "val": 100, "test": 100}.items()}
    old = {s: (None, None, n) for s, n in {"train": 3, "val": 1, "test": 1}.items()}
    monkeypatch.setitem(DATASETS, "rstp-reid", replace(spec, versions={message: old}))
    warning = check_dataset("rstp-reid", LAYOUTS["rstp-reid"][1](tmp_path / "b"))["warnings"][0]
    assert warning.startswith("not the published version: the old split of 3,901/100/100")


def test_what_is_no_obstacle_but_misleads_is_named(tmp_path):
    records = person_search_records()
    for record in records[:6]:  # identities 1 to 3
        record["file_path"] = record["file_path"].replace("cam_a", "Market")
    for i, identity in enumerate((4, 5, 6, 7, 8, 9, 10, 11, 12)):
        assert records[2 * identity - 2]["id"] == identity
        texts = ["A person walks."] * 4 + ["a man in red"] * 3 + ["a woman in blue"] * 2  # two persons may look alike
        records[2 * identity - 2]["captions"][0] = texts[i]
    records[7]["captions"][1], records[9]["captions"][0] = "word " * 122, "word " * 121
    root = write_person_search(tmp_path, records)
    shutil.rmtree(root / "imgs/Market")
    first, same_identity, other, test = (root / "imgs" / records[i]["file_path"] for i in (6, 7, 8, -1))
    for path in (same_identity, other, test):
        path.write_bytes(first.read_bytes())
    report = check_dataset("cuhk-pedes", root)
    assert len(report["problems"]) == 6  # each with its record
    place = "has the bytes of cam_a/p4_0.png (split train, identity 4; reid_raw.json record 6)"
    assert report["warnings"] == [
        "partial download: 6 of 24 pictures are missing, by folder: Market 6 of 6",
        f"reid_raw.json record 8: picture cam_a/p5_0.png (split train, identity 5) {place}",
        f"reid_raw.json record 23: picture cam_a/p12_1.png (split test, identity 12) {place}",
        "2 captions have more than 120 words; the longest, caption 1 of reid_raw.json record 7, has 122",
        "2 captions stand under three or more identities, most often 'a person walks.' (4 identities); "
        "'a man in red' (3 identities)",
    ]
    assert not any("words" in line for line in check_dataset("cuhk-pedes", root, max_words=122)["warnings"])


def test_a_picture_that_cannot_be_read_is_one_problem(tmp_path, monkeypatch):
    root = write_person_search(tmp_path)
    first, second = sorted((root / "imgs").rglob("*.png"))[:2]  # of the same size, so both are read
    for path in (first, second):
        path.write_bytes(b"none")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path if path != first else path / "denied"))
    problems = check_dataset("cuhk-pedes", root)["problems"]
    assert [line.partition(": ")[0] for line in problems] == [str(first), str(second)]


def test_same_embedded_bytes_are_named(tmp_path):
    pictures = [{"bytes": picture_bytes(i % 3), "path": f"{i}.png"} for i in range(4)]
    columns = {"image": pa.array(pictures, HF_IMAGE), "caption": ["a"] * 4, "split": ["train", "train", "val", "test"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (warning,) = check_dataset("parquet", tmp_path)["warnings"][:1]
    assert warning == (
        "a.parquet row 4: picture a.parquet#image:3 (split test) has the bytes of a.parquet#image:0 "
        "(split train; a.parquet row 1)"
    )


def test_copies_within_a_split_are_named_where_each_picture_is_an_identity(tmp_path):
    """A row for each caption, the picture again in each: every copy would count as a wrong answer."""
    pictures = [{"bytes": picture_bytes(i // 2), "path": f"{i}.png"} for i in range(12)]
    columns = {"image": pa.array(pictures, HF_IMAGE), "caption": [f"a{i}" for i in range(12)],
               "split": [name for name in ("train", "val", "test") for _ in range(4)]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (warning,) = (w for w in check_dataset("parquet", tmp_path)["warnings"] if "bytes" in w)
    assert warning.startswith("6 pictures have the bytes of another one in their split: each counts as a picture of")
    assert warning.endswith("a.parquet#image:1 (a.parquet row 2) those of a.parquet#image:0 (a.parquet row 1)")


def test_copy_that_lost_its_identities_is_recognised(tmp_path, monkeypatch):
    root = write_table(tmp_path, [["image_path", "caption"], *([f"p/{i}.png", f"caption {i}"] for i in range(6))])
    assert check_dataset("csv", root)["problems"] == []
    assert not any("no identities" in w for w in check_dataset("csv", root)["warnings"])
    small = replace(DATASETS["cuhk-pedes"], published={"train": (4, 8, 2), "test": (2, 4, 1)})
    monkeypatch.setitem(DATASETS, "cuhk-pedes", small)
    (warning,) = (w for w in check_dataset("csv", root)["warnings"] if "no identities" in w)
    assert warning.startswith("6 pictures, as cuhk-pedes has, but no identities: every picture counts as its own")


@pytest.mark.parametrize(
    ("max_tokens", "unknown", "cut", "kind"),
    [(3, "", "100.0%", "warnings"), (4, "", "0.0%", "notes"), (4, "very", "0.0%", "warnings")],
)
def test_captions_that_are_cut_and_unknown_tokens_are_counted(tmp_path, max_tokens, unknown, cut, kind):
    words = "a man in red"
    rows = [[f"p/{i}.png", words.replace("red", unknown or "red") if i < 2 else words] for i in range(6)]
    root = write_table(tmp_path, [["image_path", "caption"], *rows])
    report = check_dataset("csv", root, tokenizer=word_tokenizer([words] * 2), max_tokens=max_tokens)
    share = "8.3%" if unknown else "0.0%"  # 2 of 6 x 4 words
    line = f"{cut} of the captions have more than {max_tokens} tokens and are cut; {share} of all tokens are unknown"
    assert f"{line} to the tokenizer" in report[kind]


def test_an_end_token_that_is_also_the_unknown_one_is_not_unknown(tmp_path):  # as CLIP's
    rows = [["image_path", "caption"], *([f"p/{i}.png", "a man"] for i in range(3))]
    tokenizer = word_tokenizer(["a man"] * 2)
    end = (tokenizer.unk_token, tokenizer.unk_token_id)
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(f"$A {end[0]}", None, [end])
    notes = check_dataset("csv", write_table(tmp_path, rows), tokenizer=tokenizer, max_tokens=3)["notes"]
    assert any("0.0% of the captions have more than 3 tokens and are cut; 0.0% of all tokens" in n for n in notes)
    warnings = check_dataset("csv", tmp_path, tokenizer=tokenizer, max_tokens=2)["warnings"]
    assert any("100.0% of the captions have more than 2 tokens" in line for line in warnings)  # the end token counts
