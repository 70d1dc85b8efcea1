"""timam.data: the layouts that people have in hand; pictures that are read inside Parquet files and tar archives."""

import gzip
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import (
    HF_IMAGE,
    LAYOUTS,
    picture_bytes,
    write_coco_captions,
    write_imagefolder,
    write_parquet,
    write_picture,
    write_sidecar,
    write_table,
    write_tar,
    write_ufine,
    write_webdataset,
)
from PIL import Image

from timam.data import SPLITS, Dataset, load_dataset, read_dataset
from timam.data.parsing import split_of_name
from timam.embedded import container, open_picture
from timam.images import ImageError, read_image
from timam_lab.check import check_dataset


def captions(dataset: Dataset, split: str) -> list[tuple[str, ...]]:
    return [r.captions for r in dataset.records if r.split == split]


def counts(dataset: Dataset) -> list[int]:
    return [len(captions(dataset, split)) for split in SPLITS]


def problems_of(name: str, root: Path, **columns: str) -> list[str]:
    return read_dataset(name, root, columns or None)[1]


# -- what each layout gives -------------------------------------------------------------------------------------


# layout: (what is relevant, pictures of train, val and test, the first picture, its last caption)
GIVES = {
    "rstp-reid": ("identity", [6, 2, 2], "cam_a/p1_0.png", "trousers and a"),
    "ufine6926": ("identity", [8, 2, 4], "images/1.jpg", "trousers and a"),
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
    name, write, _ = LAYOUTS[layout]
    kind, sizes, image, caption = GIVES[layout]
    dataset = load_dataset(name, write(tmp_path))
    assert (dataset.kind, counts(dataset)) == (kind, sizes)
    assert (dataset.records[0].image, caption in dataset.records[0].captions[-1]) == (image, True)
    assert len({read_image(p).tobytes() for p in dataset.split("train").image_paths}) == sizes[0]
    assert check_dataset(name, tmp_path)["problems"] == []
    if name in ("parquet", "imagefolder", "webdataset"):
        assert load_dataset("hf", tmp_path).records == dataset.records  # finds the form by itself
        assert not any("SHA-256" in note for note in dataset.notes)  # splits are those of the names


def test_renamed_columns_are_read_and_said(tmp_path):
    rows = {"train": [{"text": f"a {i}", "person_id": f"p{i}", "width": 8} for i in range(10)]}
    dataset = load_dataset("parquet", write_parquet(tmp_path, rows))
    assert dataset.kind == "identity"
    assert dataset.notes[0] == (
        "columns read: image_path from image; caption from text; identity from person_id; not read: width"
    )
    assert "training data alone: 8/1/1 identities were made train/val/test" in dataset.notes[1]


def test_columns_may_be_named(tmp_path):
    rows = [["photo", "said", "note", "who"], *([f"p/{i}.png", f"a {i}", f"b {i}", f"x{i}"] for i in range(6))]
    root = write_table(tmp_path, rows)
    columns = {"image_path": "photo", "caption": "said,note", "identity": "who"}
    dataset = load_dataset("csv", root, columns=columns)
    assert dataset.records[3].captions == ("a 3", "b 3")
    assert dataset.kind == "identity"
    assert "no column what; it has photo, said" in problems_of("csv", root, image_path="photo", caption="what")[0]
    with pytest.raises(ValueError, match="unknown columns colour: expected some of image_path, caption"):
        read_dataset("csv", root, {"colour": "red"})
    with pytest.raises(ValueError, match="cuhk-pedes has no columns"):
        read_dataset("cuhk-pedes", root, {"caption": "text"})


def test_empty_ones_of_several_captions_are_left_out(tmp_path):
    write_table(tmp_path, [["image_path", "caption_0", "caption_1"], ["p/0.png", "a", ""], ["p/1.png", "", ""]])
    dataset, problems = read_dataset("csv", tmp_path)
    assert [r.captions for r in dataset.records] == [("a",)]
    assert problems == ["captions.csv row 2: it has no captions"]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_the_csv_of_open_clip(tmp_path, separator):
    """And a column of splits with the names of other tools, which is completed."""
    rows = [["filepath", "title", "split"]]
    rows += [[f"p/{i}.png", f"number {i}", "train" if i < 4 else "validation"] for i in range(6)]
    (write_table(tmp_path) / "captions.csv").write_text("\n".join(map(separator.join, rows)))
    dataset = load_dataset("csv", tmp_path)
    assert {r.image: r.captions for r in dataset.records}["p/3.png"] == ("number 3",)
    assert counts(dataset) == [4, 1, 1]
    assert dataset.notes[0] == "columns read: image_path from filepath; caption from title"
    assert "1 of 2 val identities were made the test split" in dataset.notes[1]


def test_sidecar_files(tmp_path):
    root = write_sidecar(tmp_path / "root")
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


@pytest.mark.parametrize(
    ("path", "split"),
    [("data/test-00000-of-00002.parquet", "test"), ("validation/metadata.csv", "val"), ("train2014/x.tar", "train"),
     ("flickr_dev_03.tar", "val"), ("contest.tar", None), ("test_query/0.tar", None), ("0.tar", None)],
)  # fmt: skip
def test_names_that_say_a_split(path, split):
    assert split_of_name(PurePosixPath(path)) == split


def test_pictures_of_no_split_beside_others_are_named(tmp_path):
    root = write_sidecar(tmp_path)
    (root / "0").rename(root / "test")
    (problem,) = problems_of("sidecar", root)
    assert problem == "1/1.txt and 4 more are in no split, others are"


def test_pictures_of_the_hubs_cache_are_links_to_its_blobs(tmp_path):
    blobs = write_imagefolder(tmp_path / "people" / "blobs")
    root = tmp_path / "people" / "snapshots" / "abc"
    shutil.copytree(blobs, root, copy_function=os.symlink)
    assert counts(load_dataset("hf", root)) == [4, 2, 2]
    (root / "train/0.png").unlink()
    write_picture(tmp_path / "other.png")
    (root / "train/0.png").symlink_to(tmp_path / "other.png")
    (problem,) = problems_of("hf", root)
    assert "is a link that leaves the data root" in problem


def test_coco_makes_its_test_split_of_half_the_validation_pictures(tmp_path):
    (note,) = load_dataset("coco-captions", write_coco_captions(tmp_path)).notes
    assert "no test split: 2 of 4 val identities were made the test split" in note
    (tmp_path / "annotations/captions_train2014.json").unlink()  # torchvision's example has val2014 alone
    assert problems_of("coco-captions", tmp_path) == []
    file = tmp_path / "annotations/captions_val2014.json"
    file.write_text(file.read_text().replace('"image_id": 21', '"image_id": 5', 1))
    (problem,) = problems_of("coco-captions", tmp_path)
    assert problem == "annotations/captions_val2014.json annotation 1: image_id 5 is not among the images"


def test_ufine_has_one_annotation_file_of_any_name(tmp_path):
    assert "1 of 5 training identities are held out" in load_dataset("ufine6926", write_ufine(tmp_path)).notes[0]
    (tmp_path / "b.json").write_text("[]")
    problem = problems_of("ufine6926", tmp_path)[0]
    assert "expected one annotation file *.json; found annotations.json, b.json" in problem


# -- embedded pictures ------------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path) -> Path:
    """A Parquet file of 200 pictures in groups of 180 rows, more than are kept of a group; its name in capitals."""
    write_parquet(tmp_path, {"train": [{"caption": f"a {i}"} for i in range(200)]}, group=180)
    return next(tmp_path.rglob("*.parquet")).rename(tmp_path / "TRAIN.PARQUET")


def write_shard(path: Path, pictures: list[bytes | dict], column: str = "image", **options: int) -> None:
    """A Parquet file of pictures, as bytes or as {"bytes": ..., "path": ...}, with a caption each."""
    values = pa.array(pictures, HF_IMAGE if isinstance(pictures[0], dict) else None)
    pq.write_table(pa.table({column: values, "caption": ["a"] * len(pictures)}), path, **options)


def bytes_of(shard: Path, row: int) -> bytes:
    return open_picture(Path(f"{shard}#image:{row}")).getvalue()


def test_embedded_pictures_in_any_order_are_their_own(shard):
    assert len(load_dataset("parquet", shard.parent).records) == 200
    for row in [0, 199, 3, 2, 1, 181, 180, 179, 0, *np.random.default_rng(0).permutation(200).tolist()]:
        assert bytes_of(shard, row) == picture_bytes(row)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(partial(bytes_of, shard), range(200)))
    assert found == [picture_bytes(row) for row in range(200)]


def test_a_changed_shard_is_read_anew(shard):
    before = bytes_of(shard, 3)
    write_shard(shard, [picture_bytes(7)] * 50)
    os.utime(shard, ns=(1, 1))
    assert bytes_of(shard, 3) == picture_bytes(7) != before


def test_what_is_no_embedded_picture_is_named(tmp_path):
    shard = tmp_path / "train.parquet"
    write_shard(shard, [{"bytes": None, "path": "0.png"}, {"bytes": b"no picture", "path": "1.png"}])
    for name, words in (
        ("train.parquet#image:0", "no bytes"),
        ("train.parquet#image:1", "UnidentifiedImageError"),
        ("train.parquet#image:2", "no row 2; it has 2"),
        ("train.parquet#image:-1", "no row -1"),
        ("train.parquet#photo:0", "photo"),
        ("other.parquet#image:0", "no such file"),
    ):
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert len(check_dataset("parquet", shard)["problems"]) == 3  # and no training split
    plain = tmp_path / "a.tar#b.png"  # a file of this name is a file
    write_picture(plain)
    assert container(plain) == plain


@pytest.mark.parametrize("picture", [{"bytes": None, "path": "0.png"}, picture_bytes(5)], ids=["path", "bytes"])
def test_paths_alone_and_plain_bytes_are_pictures_too(tmp_path, picture):
    (tmp_path / "0.png").write_bytes(picture_bytes(5))
    write_shard(tmp_path / "test.parquet", [picture], "img")
    dataset, problems = read_dataset("parquet", tmp_path)
    assert problems == []
    assert dataset.records[0].image == ("0.png" if isinstance(picture, dict) else "test.parquet#img:0")
    assert np.array_equal(read_image(dataset.image_root / dataset.records[0].image), decoded(picture_bytes(5)))


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_one_group_of_rows_of_any_size_is_read_in_bounded_memory(tmp_path):
    """100 MB in one group of rows, at most 16 MB of it at once. (A page, compressed as a whole, is read as a whole.)"""
    rng = np.random.default_rng(0)
    pictures = [{"bytes": rng.bytes(1 << 18), "path": None} for _ in range(400)]
    write_shard(tmp_path / "test.parquet", pictures, row_group_size=400, write_batch_size=4)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    dataset, problems = read_dataset("parquet", tmp_path)
    most = pool.bytes_allocated() - before
    for i, record in enumerate(dataset.records):
        assert open_picture(tmp_path / record.image).getvalue() == pictures[i]["bytes"]
        most = max(most, pool.bytes_allocated() - before)
    assert problems == []
    assert most < 16 << 20


# -- tar archives -----------------------------------------------------------------------------------------------


def test_webdataset_of_json_and_odd_members(tmp_path):
    said = {"caption": ["a man", "in red"], "person_id": 7, "split": "test"}
    members = {
        "set.a/0001.jpg": picture_bytes(1), "set.a/0001.json": json.dumps(said).encode(),
        "set.a/0002.seg.png": b"no picture of ours", "README.md": b"x",
        "0003.jpg": picture_bytes(3),
        "0004.jpg": picture_bytes(4), "0004.json": b"[1]",
        "0005.jpg": picture_bytes(5), "0005.txt": b"word " * 100_000,
    }  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    dataset, problems = read_dataset("webdataset", tmp_path)
    (record,) = dataset.records
    assert (record.image, record.captions, record.identity, record.split) == (
        "0.tar#set.a/0001.jpg", ("a man", "in red"), 7, "test",
    )  # fmt: skip
    assert np.array_equal(read_image(tmp_path / record.image), decoded(picture_bytes(1)))
    assert problems == [
        "0.tar 0005.txt: 500,000 bytes; expected at most 400,000",
        "0.tar 0004.json: expected an object, found list",
        "0.tar 0003.jpg: it has no captions",
        "0.tar 0005.jpg: it has no captions",
    ]


def test_compressed_and_truncated_archives_are_named(tmp_path):
    root = write_webdataset(tmp_path / "a")
    shard = root / "train" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert problems_of("webdataset", root)[0].startswith(f"{shard}: not readable as a tar archive")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.tar.gz").write_bytes(gzip.compress(b"x"))
    assert "no shard *.tar; 0.tar.gz is compressed: decompress it" in problems_of("webdataset", tmp_path / "b")[0]
