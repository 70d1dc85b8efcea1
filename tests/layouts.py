"""Small data sets in the benchmarks' layouts, and a tiny config and language model to train on them in a second."""

import csv
import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

from timam.config import PRESETS, Config, override
from timam.data import SPLITS
from timam.models.text_encoder import word_tokenizer

COLOURS = {
    "red": (210, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 210), "yellow": (230, 220, 40),
    "purple": (130, 40, 160), "orange": (240, 140, 20), "white": (240, 240, 240), "black": (20, 20, 20),
}  # fmt: skip
PAIRS = [(upper, lower) for upper in COLOURS for lower in COLOURS if upper != lower]  # 56 outfits


def write_picture(path: Path, upper: str = "red", lower: str = "blue", seed: int = 0, size: tuple[int, int] = (32, 64)):
    """A figure of two colours with noise, as a lossless PNG of size (width, height)."""
    width, height = size
    pixels = np.empty((height, width, 3), dtype=np.int64)
    pixels[: height // 2], pixels[height // 2 :] = COLOURS[upper], COLOURS[lower]
    pixels += np.random.default_rng(seed).integers(-15, 16, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def person_search_records(train: int = 6, val: int = 3, test: int = 3, captions: int = 2) -> list[dict[str, Any]]:
    """Records of CUHK-PEDES, two an identity: numbered from 1 through the splits, each with its own outfit."""
    records = []
    for identity, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test, start=1):
        upper, lower = PAIRS[(identity * 11) % len(PAIRS)]  # 11 and 56 share no divisor: every outfit once
        for i in range(2):
            texts = [f"a person in a {upper} coat and {lower} trousers", f"{lower} trousers and a {upper} coat"]
            path = f"cam_a/p{identity}_{i}.png"
            records.append({"split": split, "captions": texts[:captions], "file_path": path, "id": identity})
    return records


def write_person_search(
    root: Path, records: list[Any] | None = None, file: str = "reid_raw.json", path_key: str = "file_path", **sizes: int
) -> Path:
    """An annotation file with imgs/ below it, and a picture for every record. Returns the root."""
    records = person_search_records(**sizes) if records is None else records
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    content = [{path_key if k == "file_path" else k: v for k, v in record.items()} for record in records]
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    for seed, record in enumerate(records):
        upper, lower = PAIRS[(record["id"] * 11) % len(PAIRS)]
        write_picture(root / "imgs" / record["file_path"], upper, lower, seed)
    return root


def karpathy_images(train: int = 2, val: int = 1, test: int = 1) -> list[dict[str, Any]]:
    """Entries of Karpathy's json."""
    images = []
    for i, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        sentences = [{"tokens": ["picture"], "raw": f"Picture {i}, sentence {k}."} for k in range(5)]
        images.append({"sentences": sentences, "split": split, "filename": f"{1000 + i}.jpg"})
    return images


def write_karpathy(
    root: Path, images: list[Any] | None = None, folder: str = "flickr30k-images", name: str = "flickr30k"
) -> Path:
    """dataset_NAME.json with its pictures. Returns the root."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    content = {"images": images or karpathy_images(), "dataset": name}
    (root / f"dataset_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for image in content["images"]:
        write_picture(root / folder / image.get("filepath", "") / image["filename"], seed=int(image["filename"][:4]))
    return root


CLASSES = {"train": ["001.A", "002.B"], "val": ["003.C"], "test": ["004.D"]}


def write_reed(
    root: Path, classes: dict[str, list[str]] = CLASSES, flat: bool = False, images: int = 3, captions: int = 10
) -> Path:
    """text_c10 as Reed et al. publish it, mixed with .t7 and .h5 files, class lists, and pictures. Returns the root.

    `flat`: as Flowers, jpg/image_NNNNN.jpg; else as CUB, CUB_200_2011/images/CLASS/NAME.jpg and an images/ of features.
    """
    root.mkdir(parents=True, exist_ok=True)
    for list_name, members in classes.items():
        (root / f"{list_name}classes.txt").write_text("".join(f"{m}\n" for m in members))
    for c, class_name in enumerate(sorted({c for members in classes.values() for c in members})):
        folder = root / "text_c10" / class_name
        folder.mkdir(parents=True)
        for features in ("text_c10",) if flat else ("text_c10", "images"):
            (root / features).mkdir(exist_ok=True)
            (root / features / f"{class_name}.t7").write_bytes(b"\x04\x00torch")
        upper, lower = PAIRS[(c * 11) % len(PAIRS)]
        for i in range(images):
            stem = f"image_{c * images + i + 1:05d}" if flat else f"{class_name.split('.')[-1]}_{i:04d}"
            lines = [f"the {upper} bird number {i} has a {lower} belly, said {k}." for k in range(captions)]
            (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")
            (folder / f"{stem}.h5").write_bytes(b"\x89HDF\r\n")
            pictures = root / "jpg" if flat else root / "CUB_200_2011" / "images" / class_name
            write_picture(pictures / f"{stem}.jpg", upper, lower, seed=c * images + i)
    return root


def write_table(root: Path, rows: list[list[str]] | None = None, file: str = "captions.csv") -> Path:
    """A CSV or Parquet file of pictures p/0.png to p/5.png of 6 identities, or with the rows given. Returns root."""
    (root / "p").mkdir(parents=True, exist_ok=True)
    for i in range(6):
        write_picture(root / f"p/{i}.png", seed=i)
    default = [["image_path", "caption", "identity", "split"]]
    default += [[f"p/{i}.png", f"sentence {k} of {i}", str(i), SPLITS[i // 2]] for i in range(6) for k in range(2)]
    header, *values = default if rows is None else rows
    if file.endswith(".parquet"):
        pq.write_table(pa.table(dict(zip(header, zip(*values, strict=True), strict=True))), root / file)
        return root
    with (root / file).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *values])
    return root


def picture_bytes(seed: int = 0) -> bytes:
    """A PNG of noise."""
    stream, noise = io.BytesIO(), np.random.default_rng(seed).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, pictures: list[Any], name: str = "image", group: int | None = None, **others: Any) -> None:
    """A Parquet file of pictures, bytes or {"bytes", "path"} as Hugging Face has them, with a caption or others."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if isinstance(pictures[0], dict) else pa.binary()
    columns = {name: pa.array(pictures, kind), **(others or {"caption": ["a"] * len(pictures)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group, write_batch_size=4)


def write_parquet(root: Path, rows: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    """data/SPLIT-00000-of-00001.parquet with embedded pictures, rows of {"captions": [...], ...}. Returns the root."""
    sizes = {"train": 4, "val": 2, "test": 2}
    default = {split: [{"caption": [f"picture {i}", "in red"]} for i in range(n)] for split, n in sizes.items()}
    for number, (split, columns) in enumerate((rows or default).items()):
        pictures = [{"bytes": picture_bytes(100 * number + i), "path": f"{i}.png"} for i in range(len(columns))]
        others = {k: [r[k] for r in columns] for k in columns[0]}
        write_shard(root / "data" / f"{split}-00000-of-00001.parquet", pictures, group=2, **others)
    return root


def write_imagefolder(root: Path, file: str = "metadata.jsonl") -> Path:
    """train/, validation/ and test/ with pictures and a metadata file, as jxie/flickr8k comes from. Returns root."""
    for split, n in (("train", 4), ("validation", 2), ("test", 2)):
        rows = [{"file_name": f"{i}.png", "caption_0": f"{split} {i}", "caption_1": "in red"} for i in range(n)]
        for i in range(n):
            write_picture(root / split / f"{i}.png", seed=i)
        lines = [",".join(row) for row in (rows[0], *(row.values() for row in rows))]
        lines = lines if file.endswith(".csv") else list(map(json.dumps, rows))
        (root / split / file).write_text("\n".join(lines) + "\n")
    return root


def write_sidecar(root: Path) -> Path:
    """Ten pictures in two folders, each with a .txt beside it. Returns the root."""
    for i in range(10):
        path = root / f"{i % 2}" / f"{i}.png"
        write_picture(path, seed=i)
        path.with_suffix(".txt").write_text(f"picture {i}\n\nin red\n")
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_webdataset(root: Path) -> Path:
    """train/0.tar, val/0.tar and test/0.tar as clip-benchmark/wds_flickr30k: KEY.jpg, KEY.txt, KEY.json."""
    for split, n in (("train", 4), ("val", 2), ("test", 2)):
        members = {}
        for i in range(n):
            members[f"{i:05d}.jpg"] = picture_bytes(i)
            members[f"{i:05d}.txt"] = f"{split} {i}\nin red\n".encode()
            members[f"{i:05d}.json"] = json.dumps({"width": 8, "height": 16}).encode()
        write_tar(root / split / "0.tar", members)
    return root


def write_coco_captions(root: Path) -> Path:
    """annotations/captions_{train,val}2014.json and train2014/, val2014/ as COCO distributes them. Returns the root."""
    (root / "annotations").mkdir(parents=True)
    for split, first, n in (("train2014", 10, 4), ("val2014", 20, 4)):
        images = [{"id": first + i, "file_name": f"COCO_{split}_{first + i:012d}.jpg", "license": 3} for i in range(n)]
        annotations = [{"image_id": image["id"], "id": 10 * image["id"] + k, "caption": f"picture {image['id']}, {k}"}
                       for k in range(2) for image in images]  # fmt: skip
        for image in images:
            write_picture(root / split / image["file_name"], seed=image["id"])
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return root


def write_flickr_token(root: Path) -> Path:
    """results_20130124.token and flickr30k-images/ as torchvision reads them. Returns the root."""
    lines = []
    for i in range(10):
        write_picture(root / "flickr30k-images" / f"{1000 + i}.jpg", seed=i)
        lines += [f"{1000 + i}.jpg#{k}\tPicture {i} , sentence {k} ." for k in range(5)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return root


def write_ufine(root: Path) -> Path:
    """As UFine6926's README has it: {split, id, file_path: images/1.jpg, captions}; no validation split."""
    records = person_search_records(train=5, val=0, test=2)
    for i, record in enumerate(records, 1):
        record["file_path"] = f"images/{i}.jpg"
        write_picture(root / record["file_path"], seed=i)
    (root / "annotations.json").write_text(json.dumps(records))
    return root


_small = partial(write_person_search, train=3, val=1, test=1)
_reed = partial(write_reed, images=1, captions=2)

# every layout: (name of the data set, how to write it, the file that the tests replace by hostile content)
LAYOUTS = {
    "pedestrians": ("pedestrians", _small, "reid_raw.json"),
    "cuhk-pedes": ("cuhk-pedes", _small, "reid_raw.json"),
    "icfg-pedes": ("icfg-pedes", partial(_small, file="ICFG-PEDES.json"), "ICFG-PEDES.json"),
    "rstp-reid": ("rstp-reid", partial(_small, file="data_captions.json", path_key="img_path"), "data_captions.json"),
    "flickr8k": ("flickr8k", partial(write_karpathy, folder="images", name="flickr8k"), "dataset_flickr8k.json"),
    "flickr30k": ("flickr30k", write_karpathy, "dataset_flickr30k.json"),
    "coco": ("coco", partial(write_karpathy, folder="images", name="coco"), "dataset_coco.json"),
    "cub": ("cub", _reed, "trainclasses.txt"),
    "cub captions": ("cub", _reed, "text_c10/001.A/A_0000.txt"),
    "flowers": ("flowers", partial(_reed, flat=True), "testclasses.txt"),
    "coco-captions": ("coco-captions", write_coco_captions, "annotations/captions_val2014.json"),
    "flickr30k-token": ("flickr30k-token", write_flickr_token, "results_20130124.token"),
    "ufine6926": ("ufine6926", write_ufine, "annotations.json"),
    "csv": ("csv", write_table, "captions.csv"),
    "csv parquet": ("csv", partial(write_table, file="captions.parquet"), "captions.parquet"),
    "parquet": ("parquet", write_parquet, "data/train-00000-of-00001.parquet"),
    "imagefolder": ("imagefolder", write_imagefolder, "train/metadata.jsonl"),
    "imagefolder csv": ("imagefolder", partial(write_imagefolder, file="metadata.csv"), "test/metadata.csv"),
    "webdataset": ("webdataset", write_webdataset, "train/0.tar"),
    "sidecar": ("sidecar", write_sidecar, "0/0.txt"),
}


def write_layout(name: str, root: Path) -> Path:
    return LAYOUTS[name][1](root)


def write_language_model(folder: Path) -> Path:
    """A BERT of one small layer (with dropout) and its tokenizer, as transformers saves them. Returns the folder."""
    tokenizer = word_tokenizer([c for r in person_search_records(50) for c in r["captions"]])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The smallest torchvision backbone with batch normalisation (0.3 M parameters without its head).
TINY_SETTINGS = (
    "model.backbone=shufflenet_v2_x0_5", "model.backbone_weights=none", "model.image_height=64",
    "model.image_width=32", "model.language_model=none", "model.word_embedding_dim=16", "model.lstm_hidden=16",
    "model.embedding_dim=16", "model.max_tokens=16", "data.batch_size=4", "train.max_steps=none",
    "train.image_lr=5e-4", "train.text_lr=1e-3", "train.frozen_blocks=0",  # own ones: presets may be tuned
)  # fmt: skip


def tiny_config(root: Path, *settings: str) -> Config:
    """The smoke preset made smaller still, on data in the layout of CUHK-PEDES."""
    return override(PRESETS["smoke"], ["data.dataset=cuhk-pedes", f"data.root={root}", *TINY_SETTINGS, *settings])
