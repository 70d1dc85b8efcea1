"""timam data check: counts beside the published ones, known wrong versions, and what is no obstacle but misleads."""

import json
import shutil
from dataclasses import replace

import layouts
import pytest
import tokenizers

from timam.data import DATASETS
from timam.models.text_encoder import word_tokenizer
from timam_lab.check import check_dataset, found_beside_published


def test_report_stands_beside_what_is_published(tmp_path):
    report = check_dataset("cub", layouts.write_reed(tmp_path))
    assert json.loads(json.dumps(report)) == report
    assert report["protocol"].startswith("class: ")
    assert report["problems"] == []
    few = "the {} split has 1 identity: too few for rank-1 to mean anything"
    assert report["warnings"] == [few.format("val"), few.format("test")]
    rows = {row["split"]: row for row in found_beside_published(report)}
    assert (rows["train"]["identities"], rows["train"]["identities (published)"]) == (2, 100)
    assert (rows["train+val+test"]["images"], rows["train+val+test"]["images (published)"]) == (12, 11_788)
    assert rows["train"]["images (published)"] is None
    (note,) = report["notes"]
    assert "2 identities in train, published 100" in note


def test_counts_are_compared_with_the_published_ones_and_those_of_known_wrong_versions(tmp_path, monkeypatch):
    small = {"train": (12, 24, 6), "val": (6, 12, 3), "test": (6, 12, 3)}
    monkeypatch.setitem(DATASETS, "cuhk-pedes", replace(DATASETS["cuhk-pedes"], published=small))
    report = check_dataset("cuhk-pedes", layouts.write_person_search(tmp_path / "a"))
    assert not any("another version" in note for note in report["notes"])
    assert report["warnings"] == []
    assert "the test split has 3 identities: too few for rank-1 to mean anything" in report["notes"]
    spec = DATASETS["rstp-reid"]
    (message,) = spec.versions
    assert spec.versions[message] == {s: [None, None, n] for s, n in {"train": 3901, "val": 100, "test": 100}.items()}
    old = {s: (None, None, n) for s, n in {"train": 3, "val": 1, "test": 1}.items()}
    monkeypatch.setitem(DATASETS, "rstp-reid", replace(spec, versions={message: old}))
    warning = check_dataset("rstp-reid", layouts.write_layout("rstp-reid", tmp_path / "b"))["warnings"][0]
    assert warning.startswith("not the published version: the old split of 3,901/100/100")


def test_what_is_no_obstacle_but_misleads_is_named(tmp_path):
    records = layouts.person_search_records()
    for record in records[:6]:  # identities 1 to 3
        record["file_path"] = record["file_path"].replace("cam_a", "Market")
    texts = ["A person walks."] * 4 + ["a man in red"] * 3 + ["a woman in blue"] * 2  # two persons may look alike
    for record, text in zip(records[6::2], texts, strict=True):  # the first picture of each other identity
        record["captions"][0] = text
    records[11]["captions"][1] = records[11]["captions"][0]
    records[7]["captions"][1], records[9]["captions"][0] = "word " * 122, "word " * 121
    root = layouts.write_person_search(tmp_path, records)
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
        "1 pictures have one caption several times, each time a query of its own; the first is reid_raw.json record 11",
    ]
    assert not any("words" in line for line in check_dataset("cuhk-pedes", root, max_words=122)["warnings"])


def test_same_embedded_bytes_are_named_and_within_a_split_where_each_picture_is_an_identity(tmp_path):
    """A row for each caption, the picture again in each: every copy would count as a wrong answer."""
    pictures = [{"bytes": layouts.picture_bytes(i // 2 % 4), "path": f"{i}.png"} for i in range(9)]
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 3  # the last picture is also the first
    layouts.write_shard(tmp_path / "a.parquet", pictures, caption=["a"] * 9, split=splits)
    (across, within) = (w for w in check_dataset("parquet", tmp_path)["warnings"] if "bytes" in w)
    place = "has the bytes of a.parquet#image:0 (split train; a.parquet row 1)"
    assert across == f"a.parquet row 9: picture a.parquet#image:8 (split test) {place}"
    assert within.startswith("4 pictures have the bytes of another one in their split: each counts as a picture of")
    assert within.endswith("a.parquet#image:1 (a.parquet row 2) those of a.parquet#image:0 (a.parquet row 1)")


def test_copy_that_lost_its_identities_is_recognised(tmp_path, monkeypatch):
    root = layouts.write_table(tmp_path, [["image_path", "caption"], *([f"p/{i}.png", "a caption"] for i in range(6))])
    report = check_dataset("csv", root)
    assert report["problems"] == []
    assert not any("no identities" in w for w in report["warnings"])
    small = replace(DATASETS["cuhk-pedes"], published={"train": (4, 8, 2), "test": (2, 4, 1)})
    monkeypatch.setitem(DATASETS, "cuhk-pedes", small)
    (warning,) = (w for w in check_dataset("csv", root)["warnings"] if "no identities" in w)
    assert warning.startswith("6 pictures, as cuhk-pedes has, but no identities: every picture counts as its own")


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize(
    ("max_tokens", "word", "cut", "unknown", "kind"),
    [(3, "red", "100.0%", "0.0%", "warnings"), (4, "red", "0.0%", "0.0%", "notes"),
     (4, "very", "0.0%", "8.3%", "warnings")],
)  # fmt: skip
def test_captions_that_are_cut_and_unknown_tokens_are_counted(tmp_path, max_tokens, word, cut, unknown, kind, end):
    """2 of 6 x 4 words are unknown. An end token that is also the unknown one, as CLIP's, is not; it takes a place."""
    tokenizer = word_tokenizer(["a man in red"] * 2)
    if end:
        token = (tokenizer.unk_token, tokenizer.unk_token_id)
        added = tokenizers.processors.TemplateProcessing(f"$A {token[0]}", None, [token])
        tokenizer.backend_tokenizer.post_processor = added
    rows = [[f"p/{i}.png", f"a man in {word if i < 2 else 'red'}"] for i in range(6)]
    root = layouts.write_table(tmp_path, [["image_path", "caption"], *rows])
    report = check_dataset("csv", root, tokenizer=tokenizer, max_tokens=max_tokens + end)
    line = f"{cut} of the captions have more than {max_tokens + end} tokens and are cut; {unknown} of all tokens"
    assert f"{line} are unknown to the tokenizer" in report[kind]
