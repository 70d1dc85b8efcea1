"""Coverage-guided fuzzing of what reads data from others; it is not part of the test suite.

    pip install atheris        # Linux or macOS; an optional tool
    python tests/fuzz.py csv -max_total_time=120
    python tests/fuzz.py       # lists the targets

A target fails on an exception that it must not raise, on an input that takes 20 seconds (`-timeout`), and on what
`layouts.assert_sound` finds wrong. Options are libFuzzer's; a finding is written to crash-..., and running the target
with that file repeats it. Found once, it becomes a case of test_readers.py or test_hostile.py.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import atheris
import torch  # noqa: F401 - what is heavy and not ours comes first: instrumenting imports is slow
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["timam.data", "timam.embedded", "timam.files", "timam.images"]):
    from layouts import LAYOUTS, assert_sound

    from timam.data import DataError, read_dataset
    from timam.images import FORMATS, ImageError, read_image, to_pixels

Target = Callable[[bytes], None]


def reader(layout: str, folder: Path) -> tuple[Target, list[bytes]]:
    """A layout with any content of its file; the seed is the good content."""
    name, write, file = LAYOUTS[layout]
    root = write(folder / "root")
    seed = (root / file).read_bytes()

    def target(content: bytes) -> None:
        (root / file).write_bytes(content)
        dataset, problems = read_dataset(name, root)
        assert_sound(dataset, problems, root)
        str(DataError("data", problems))

    return target, [seed]


def picture(folder: Path) -> tuple[Target, list[bytes]]:
    path, seeds = folder / "a.jpg", []
    for name in FORMATS:
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


TARGETS = {**{name: partial(reader, name) for name in LAYOUTS}, "picture": picture}

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
