"""Small data sets in the benchmarks' layouts, and a tiny config and language model to train on them in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from timam.config import PRESETS, Config, override
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


def person_search_records(
    train: int = 6, val: int = 3, test: int = 3, images: int = 2, captions: int = 2
) -> list[dict[str, Any]]:
    """Records of CUHK-PEDES: identities numbered from 1 through the splits, each with its own outfit."""
    records = []
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    for identity, split in enumerate(splits, start=1):
        upper, lower = PAIRS[(identity * 11) % len(PAIRS)]  # 11 and 56 share no divisor: every outfit once
        sentences = [f"a person in a {upper} coat and {lower} trousers", f"{lower} trousers and a {upper} coat"]
        records += [
            {
                "split": split,
                "captions": [sentences[k % 2] for k in range(captions)],
                "file_path": f"cam_a/p{identity}_{i}.png",
                "id": identity,
            }
            for i in range(images)
        ]
    return records


def write_person_search(root: Path, records: list[Any] | None = None, **sizes: int) -> Path:
    """reid_raw.json with imgs/ below it; a picture for every record whose path is a plain one. Returns the root."""
    records = person_search_records(**sizes) if records is None else records
    root.mkdir(parents=True, exist_ok=True)
    (root / "imgs").mkdir(exist_ok=True)
    (root / "reid_raw.json").write_text(json.dumps(records), encoding="utf-8")
    for seed, record in enumerate(records):
        upper, lower = PAIRS[(record["id"] * 11) % len(PAIRS)]
        write_picture(root / "imgs" / record["file_path"], upper, lower, seed)
    return root


def karpathy_images(train: int = 3, val: int = 2, test: int = 2, sentences: int = 5) -> list[dict[str, Any]]:
    """Entries of Karpathy's json, with the keys of the distributed files that no reader needs."""
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    return [
        {
            "sentids": [i * sentences + k for k in range(sentences)],
            "imgid": i,
            "sentences": [
                {"tokens": ["picture", str(i)], "raw": f"Picture {i}, sentence {k}.", "imgid": i, "sentid": k}
                for k in range(sentences)
            ],
            "split": split,
            "filename": f"{1000 + i}.jpg",
        }
        for i, split in enumerate(splits)
    ]


def write_karpathy(root: Path, images: list[Any], folder: str = "flickr30k-images", name: str = "flickr30k") -> Path:
    """dataset_NAME.json with its pictures. Returns the root."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    content = {"images": images, "dataset": name}
    (root / f"dataset_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for image in images:
        write_picture(root / folder / image.get("filepath", "") / image["filename"])
    return root


def write_reed(
    root: Path, classes: dict[str, list[str]], flat: bool = False, images: int = 3, captions: int = 10
) -> Path:
    """text_c10 as Reed et al. publish it, mixed with their .t7 and .h5 files, class lists, and pictures. Returns root.

    Args:
        classes: list ("train", "val", "trainval", "test") -> names of classes.
        flat: as Flowers, jpg/image_NNNNN.jpg; else as CUB, CUB_200_2011/images/CLASS/NAME.jpg, beside an images/ of
            features.
    """
    names = sorted({c for members in classes.values() for c in members})
    for list_name, members in classes.items():
        write = root / f"{list_name}classes.txt"
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text("".join(f"{m}\n" for m in members))
    for c, class_name in enumerate(names):
        folder = root / "text_c10" / class_name
        folder.mkdir(parents=True)
        (root / "text_c10" / f"{class_name}.t7").write_bytes(b"\x04\x00torch")
        upper, lower = PAIRS[(c * 11) % len(PAIRS)]
        for i in range(images):
            stem = f"image_{c * images + i + 1:05d}" if flat else f"{class_name.split('.')[-1]}_{i:04d}"
            lines = [f"the {upper} bird number {i} has a {lower} belly, said {k}." for k in range(captions)]
            (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")
            (folder / f"{stem}.h5").write_bytes(b"\x89HDF\r\n")
            pictures = root / "jpg" if flat else root / "CUB_200_2011" / "images" / class_name
            write_picture(pictures / f"{stem}.jpg", upper, lower, seed=c * images + i)
        if not flat:
            (root / "images").mkdir(exist_ok=True)
            (root / "images" / f"{class_name}.t7").write_bytes(b"\x04\x00torch")
    return root


def write_language_model(folder: Path, hidden: int = 16, seed: int = 0) -> Path:
    """A BERT of one small layer (with dropout) and its tokenizer, as transformers saves them. Returns the folder."""
    tokenizer = word_tokenizer([c for r in person_search_records(50) for c in r["captions"]])
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# The smallest torchvision backbone with batch normalisation (0.3 M parameters without its head).
TINY_SETTINGS = (
    "model.backbone=shufflenet_v2_x0_5", "model.backbone_weights=none", "model.image_height=64",
    "model.image_width=32", "model.language_model=none", "model.word_embedding_dim=16", "model.lstm_hidden=16",
    "model.embedding_dim=16", "model.max_tokens=16", "data.batch_size=4", "train.max_steps=none",
    "train.image_lr=5e-4", "train.text_lr=1e-3",  # own rates: presets may be tuned
)  # fmt: skip


def tiny_config(root: Path, *settings: str) -> Config:
    """The smoke preset made smaller still, on data in the layout of CUHK-PEDES."""
    return override(PRESETS["smoke"], ["data.dataset=cuhk-pedes", f"data.root={root}", *TINY_SETTINGS, *settings])
