"""Coverage-guided fuzzing of what reads data from others; it is not part of the test suite.

    pip install atheris        # Linux or macOS; an optional tool
    python tests/fuzz.py csv -max_total_time=120    # or another layout, or picture; the options are libFuzzer's

A target fails on an exception that it must not raise, on an input that takes 20 seconds, and on what
`layouts.assert_sound` finds wrong. The input is written to crash-...: it becomes a case of test_readers.py or
test_hostile.py.
"""

import sys
import tempfile
from pathlib import Path

import atheris
import torch  # noqa: F401 - what is heavy and not ours comes first: instrumenting imports is slow
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["timam.data", "timam.embedded", "timam.files", "timam.images"]):
    from layouts import LAYOUTS, assert_sound

    from timam.data import DataError, read_dataset
    from timam.images import FORMATS, ImageError, read_image, to_pixels


def reader(layout: str, folder: Path):
    """Reads any content of a layout's file; the good content is a seed."""
    name, write, file = LAYOUTS[layout]
    root = write(folder)

    def target(content: bytes) -> None:
        (root / file).write_bytes(content)
        dataset, problems = read_dataset(name, root)
        assert_sound(dataset, problems, root)
        str(DataError("data", problems))

    return target, [(root / file).read_bytes()]


def picture(folder: Path):
    path, seeds = folder / "a.jpg", []
    for name in FORMATS:
        Image.new("RGB", (9, 7), (200, 10, 60)).save(path, name)
        seeds.append(path.read_bytes())

    def target(content: bytes) -> None:
        path.write_bytes(content)
        try:
            to_pixels(read_image(path), 8, 4)
        except ImageError as error:
            if str(path) not in str(error):
                raise

    return target, seeds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as corpus:
        target, seeds = picture(Path(data)) if sys.argv[1] == "picture" else reader(sys.argv[1], Path(data))
        for i, content in enumerate(seeds):
            Path(corpus, str(i)).write_bytes(content)
        atheris.Setup([sys.argv[0], corpus, "-timeout=20", *sys.argv[2:]], target)
        atheris.Fuzz()
