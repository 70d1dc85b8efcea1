"""Encoding pictures beside the bare forward pass over normalised tensors in memory, and sentences by their lengths.

    python benchmarks/encoding.py --output reports/benchmarks/encoding.md

512 JPEGs of 500x375 (noise over a gradient), batches of 64, random weights. All contenders take turns in one process.
Decoding needs the cores that the model computes on: only on a GPU can it vanish behind the forward pass.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
import torchvision
import transformers
from PIL import Image
from timing import alternate, seconds

from timam.config import PRESETS, override
from timam.data import load_dataset
from timam.images import any_to_pixels, normalize
from timam.models import TIMAM
from timam.models.text_encoder import word_tokenizer
from timam.provenance import provenance
from timam.search import Gallery
from timam.stores import open_pixels
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians

BATCH = 64
SETTINGS = (  # name, backbone, height, width
    ("MobileNetV2, 128x64 (quick)", "mobilenet_v2", 128, 64),
    ("ResNet-50, 224x224", "resnet50", 224, 224),
)


def write_pictures(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 200, 500)[None, :, None] * np.array([1.0, 0.6, 0.3])
    for i in range(count):
        noise = rng.integers(0, 40, (375, 500, 3))
        Image.fromarray((gradient + noise).astype(np.uint8)).save(folder / f"{i:04d}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


@torch.no_grad()
def forward(model: TIMAM, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        model.image_encoder(batch).cpu()


def stored(model: TIMAM, pixels: np.ndarray) -> None:
    model.encode_pixels(pixels, BATCH)


def decode(files: list[Path], height: int, width: int) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: any_to_pixels(file, height, width), files))


def sentences(device: torch.device, rounds: int) -> tuple[int, dict[str, float]]:
    """How many, and seconds in the order given and sorted by length."""
    with TemporaryDirectory() as name:
        spec = PedestrianSpec(train_identities=330, val_identities=1, test_identities=1, height=64, width=32)
        render_pedestrians(Path(name), spec, progress=False)
        captions = load_dataset("pedestrians", name).split("train").captions
    shape = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    backbone = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    language_model = transformers.BertModel(shape, add_pooling_layer=False)
    config = PRESETS["quick"].model
    model = TIMAM(config, 2, word_tokenizer(captions), backbone, language_model).to(device)
    parts = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
    found = alternate(
        rounds,
        given=partial(seconds, lambda: [model.encode_texts(part, BATCH) for part in parts]),
        sorted=partial(seconds, partial(model.encode_texts, captions, BATCH)),
    )
    return len(captions), found


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--pictures", default=512)
@click.option("--rounds", default=7)
def main(output: Path, pictures: int, rounds: int) -> None:
    """Write the table to OUTPUT."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_pictures(folder, pictures)
        for title, backbone, height, width in SETTINGS:
            size = [f"model.image_height={height}", f"model.image_width={width}"]
            parts = [f"model.backbone={backbone}", "model.backbone_weights=none", "model.language_model=none"]
            config = override(PRESETS["quick"], [*size, *parts]).model
            model = TIMAM.pretrained(config, 2, ["a person"]).to(device).eval()
            pixels = open_pixels(files, height, width, progress=False)
            tensors = [torch.from_numpy(np.array(picture)) for picture in pixels]
            batches = [normalize(torch.stack(tensors[i : i + BATCH]).to(device)) for i in range(0, pictures, BATCH)]
            found = alternate(
                rounds,
                bare=partial(seconds, partial(forward, model, batches)),
                store=partial(seconds, partial(stored, model, pixels)),
                memory=partial(seconds, partial(model.encode_images, tensors, BATCH)),
                decode=partial(seconds, partial(decode, files, height, width)),
                files=partial(seconds, partial(Gallery.build, model, folder)),
            )
            cells = [
                f"{found[k]:.2f} s ({found[k] / found['bare']:.2f})" for k in ("store", "memory", "decode", "files")
            ]
            both = found["bare"] + found["decode"]
            cells.append(f"{found['files'] / both:.2f}")
            rows.append(f"| {title} | {found['bare']:.2f} s | {' | '.join(cells)} |")
    captions, taken = sentences(device, rounds)
    made, command = provenance(device), " ".join(["python", "benchmarks/encoding.py", *sys.argv[1:]])
    lines = [
        "# Encoding a gallery", "",
        f"`{command}` at commit {made['commit']}, {made['device']}, "
        f"{made['threads']} threads, torch {made['torch']}. {pictures} pictures, medians of {rounds}; in brackets the "
        "ratio to the bare forward pass.", "",
        "| | bare forward | pixel store (`embed_split`) | tensors (`encode_images`) | only decoding | files "
        "(`Gallery.build`) | files beside bare + decoding |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"{captions:,} sentences of rendered pedestrians by MiniLM's shape, batches of {BATCH}: in the order given "
        f"{taken['given']:.2f} s, in batches of alike lengths (`encode_texts`) {taken['sorted']:.2f} s: "
        f"{taken['given'] / taken['sorted']:.2f} times as fast.", "",
    ]  # fmt: skip
    output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
