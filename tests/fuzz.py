"""Coverage-guided fuzzing of what reads files from others; it is not part of the test suite.

    pip install atheris        # Linux or macOS; an optional tool
    python tests/fuzz.py csv -max_total_time=120
    python tests/fuzz.py       # lists the targets

A target fails on any exception but the ones it may raise, on an input that takes 20 seconds (`-timeout`), and on what
`layouts.assert_sound` finds wrong. Options are libFuzzer's; a finding is written to crash-..., and running the
target with that file repeats it. Found once, it becomes a case of test_readers.py or test_hostile.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401 - what is heavy and not ours comes first: instrumenting imports is slow
import atheris
import transformers  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["timam.config", "timam.data", "timam.files", "timam.images"]):
    from conftest import tiny_language_model, word_piece_tokenizer
    from layouts import LAYOUTS, assert_sound

    from timam import TIMAM
    from timam import config as configs
    from timam.data import DataError, read_dataset
    from timam.images import ImageError, read_image, to_pixels
    from timam.models.weights import build_backbone


def reader(layout: str, folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    name, write, file = LAYOUTS[layout]
    root = write(folder / "root")
    seed = (root / file).read_bytes()

    def target(content: bytes) -> None:
        (root / file).write_bytes(content)
        dataset, problems = read_dataset(name, root)
        assert_sound(dataset, problems, root)
        str(DataError("data", problems))

    return target, [seed]


def parquet(folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = LAYOUTS["csv"][1](folder / "root")
    (root / "captions.csv").unlink()
    path = root / "captions.parquet"
    pq.write_table(pa.table({"image_path": ["p/0.png"], "caption": ["a man"], "identity": [1.0]}), path)
    seed = path.read_bytes()

    def target(content: bytes) -> None:
        path.write_bytes(content)
        assert_sound(*read_dataset("csv", root), root)

    return target, [seed]


def picture(folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    import io

    from PIL import Image

    path, seeds = folder / "a.jpg", []
    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 7), (200, 10, 60)).save(buffer, name)
        seeds.append(buffer.getvalue())

    def target(content: bytes) -> None:
        path.write_bytes(content)
        try:
            to_pixels(read_image(path), 8, 4)
        except ImageError as error:
            if str(path) not in str(error):
                raise

    return target, seeds


def model(file: str, folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    settings = configs.ModelConfig(
        backbone="squeezenet1_1", backbone_weights="none", image_height=64, image_width=32, max_tokens=16,
        lstm_hidden=8, embedding_dim=16, discriminator_hidden=8,
    )  # fmt: skip
    tokenizer = word_piece_tokenizer()
    words = tiny_language_model(len(tokenizer))
    TIMAM(settings, 4, tokenizer, build_backbone("squeezenet1_1", "none"), words).save_pretrained(folder)
    seed = (folder / file).read_bytes()
    head = seed[:20_000] if file.endswith(".safetensors") else seed  # libFuzzer changes the header; the rest stays

    def target(content: bytes) -> None:
        (folder / file).write_bytes(content + seed[len(head) :])
        named(lambda: TIMAM.from_pretrained(folder).encode_texts(["a man in a red hat"]), folder)

    return target, [head]


def named(call: Callable[[], object], path: Path) -> None:
    """Any refusal must be a ValueError (or say that a file is absent) with the path in it."""
    try:
        call()
    except (FileNotFoundError, ValueError) as error:
        if str(path) not in str(error):
            raise


TARGETS: dict[str, Callable[[Path], tuple[Callable[[bytes], None], list[bytes]]]] = {
    **{name: lambda folder, name=name: reader(name, folder) for name in LAYOUTS},
    "parquet": parquet,
    "picture": picture,
    "model config": lambda folder: model("config.json", folder),
    "model weights": lambda folder: model("model.safetensors", folder),
    "tokenizer": lambda folder: model("tokenizer/tokenizer.json", folder),
    "tokenizer config": lambda folder: model("tokenizer/tokenizer_config.json", folder),
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"{__doc__}\ntargets: {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "data").mkdir()
        (folder / "corpus").mkdir()
        target, seeds = TARGETS[sys.argv[1]](folder / "data")
        for i, content in enumerate(seeds):
            (folder / "corpus" / str(i)).write_bytes(content)
        atheris.Setup([sys.argv[0], str(folder / "corpus"), "-timeout=20", *sys.argv[2:]], target)
        atheris.Fuzz()
