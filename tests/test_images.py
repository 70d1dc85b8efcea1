"""Decoding, resizing and normalising pictures of every mode, and damaged files."""

import io
import struct
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from timam.images import (
    FORMATS,
    SUFFIXES,
    ImageError,
    any_to_pixels,
    find_unreadable,
    normalize,
    read_image,
    to_pixels,
)
from timam.models.batching import encode_batches

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of an RGB picture, row by row."""
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def saved(image: Image.Image, path, **options) -> Image.Image:
    image.save(path, **options)
    return read_image(path)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "values", "options", "expected"),
    [
        ("RGBA", [(*RED, 255), (0, 0, 0, 0), (0, 0, 0, 102)], {}, [RED, WHITE, (153,) * 3]),  # 102 / 255 = 0.4 of black
        ("LA", [(100, 255), (0, 0)], {}, [(100,) * 3, WHITE]),
        ("P", [0, 1, 2], {}, [RED, GREEN, BLUE]),
        ("P", [0, 1, 2], {"transparency": 1}, [RED, WHITE, BLUE]),
        ("L", [77, 0], {}, [(77,) * 3, (0,) * 3]),
        ("1", [1, 0], {}, [WHITE, (0,) * 3]),
    ],
)
def test_every_mode_becomes_rgb_with_transparency_laid_on_white(tmp_path, mode, values, options, expected):
    image = Image.new(mode, (len(values), 1))
    if mode == "P":
        image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata(values)
    assert colours(saved(image, tmp_path / "a.png", **options)) == expected


def test_sixteen_bit_gray_is_scaled_not_clipped_and_cmyk_converted(tmp_path):
    values = np.array([[0, 255, 256, 12800, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        found = saved(Image.fromarray(values), tmp_path / name)
        assert [c[0] for c in colours(found)] == [0, 0, 1, 50, 128, 255]  # the high byte of each
    # Cyan ink takes the red away; JPEG is lossy by a few levels.
    found = np.array(colours(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "a.jpg", quality=95)))
    assert np.abs(found - [0, 255, 255]).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, [RED, GREEN, BLUE]), (3, [BLUE, GREEN, RED]), (6, [RED, GREEN, BLUE]), (8, [BLUE, GREEN, RED])],
)
def test_exif_turns_the_picture_once(tmp_path, orientation, expected):
    # Three pixels side by side: 3 turns by 180 degrees, 6 and 8 by 90 make them stand above each other.
    image = Image.new("RGB", (3, 1))
    image.putdata([RED, GREEN, BLUE])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(image, tmp_path / "a.png", exif=exif)
    assert found.size == ((3, 1) if orientation in (1, 3) else (1, 3))
    assert colours(found) == expected
    height, width = found.size[1], found.size[0]
    assert to_pixels(found, height, width).transpose(1, 2, 0).reshape(-1, 3).tolist() == [list(c) for c in expected]


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [(0x11A, 10, struct.pack("<ii", -1, 0)), (0x100, 7, b"abcd"), (0x100, 9, struct.pack("<i", -5))],
    ids=["resolution -1/0", "width as bytes", "width negative"],
)
def test_malformed_exif_tag_does_not_cost_the_picture(tmp_path, tag, kind, value):
    """Phones write such tags; orientation 6 beside them still turns the picture."""
    entry = struct.pack("<HHI", tag, kind, 4 if kind == 7 else 1)
    entry += value if len(value) == 4 else struct.pack("<I", 38)  # longer values stand behind both entries
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + entry + bytes(4) + value
    exif = b"Exif\0\0" + tags
    buffer = io.BytesIO()
    Image.new("RGB", (40, 60), "red").save(buffer, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[:2] + segment + buffer.getvalue()[2:])
    assert read_image(tmp_path / "a.jpg").size == (60, 40)


def test_suffixes_are_all_that_pillow_has_for_the_formats():
    found = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(SUFFIXES) == found - {".pfm"}  # floating point, which has no range


JPEG = io.BytesIO()
Image.fromarray(noise(64, 64)).save(JPEG, "JPEG")
DAMAGED = {
    "truncated": JPEG.getvalue()[: len(JPEG.getvalue()) // 2],
    "header only": JPEG.getvalue()[:20],
    "text": b"a man in a red hat\n",
    "empty": b"",
    "signature only": b"\x89PNG\r\n\x1a\n",
}


def test_damaged_files_are_named_in_order(tmp_path):
    paths = [tmp_path / f"{name}.jpg" for name in DAMAGED]
    for path in paths:
        path.write_bytes(DAMAGED[path.stem])
        with pytest.raises(ImageError, match=rf"{path.name}: not a readable picture"):
            read_image(path)
    (tmp_path / "good.jpg").write_bytes(JPEG.getvalue())
    problems = find_unreadable([tmp_path / "nobody.jpg", tmp_path / "good.jpg", *paths, tmp_path])
    assert f"{tmp_path}/nobody.jpg: no such file" in problems[0]
    assert [str(p) in line for p, line in zip([*paths, tmp_path], problems[1:], strict=True)] == [True] * 6


# -- resizing --------------------------------------------------------------------------------------------------------


def test_resizing_is_antialiased():
    # A checkerboard of single pixels, 8 times too fine: the mean of each block, 127.5. Bilinear sampling without
    # antialiasing would give values between 0 and 255 that depend on where the samples fall.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inner = to_pixels(Image.fromarray(board), 8, 8)[:, 1:-1, 1:-1]
    assert np.abs(inner.astype(float) - 127.5).max() <= 2


def test_every_kind_of_input_gives_the_same_pixels_and_its_own_size_every_pixel(tmp_path):
    picture = noise(20, 10)
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    for kind in (Image.fromarray(picture), path, str(path), tensor):
        assert torch.equal(any_to_pixels(kind, 20, 10), tensor)
        smaller = any_to_pixels(kind, 12, 8)
        assert (smaller.dtype, smaller.shape) == (torch.uint8, (3, 12, 8))
        assert torch.equal(smaller, any_to_pixels(path, 12, 8))
    for other in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3).byte(), torch.zeros(1, 3, 4, 4).byte()):
        with pytest.raises(ValueError, match=r"expected \(3, h, w\) torch.uint8"):
            any_to_pixels(other, 4, 4)


def test_normalize_constants():
    # A pixel of ImageNet's mean is 0, one standard deviation above it 1; black is -mean / std.
    pixels = torch.zeros(1, 3, 2, 1, dtype=torch.uint8)
    pixels[0, :, 1] = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None]  # 255 x mean, rounded
    found = normalize(pixels)
    assert found.dtype == torch.float32
    expected = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor(expected), rtol=1e-6, atol=0)
    assert found[0, :, 1].abs().max() < 0.5 / (255 * 0.224) + 1e-3
    white = normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(white, torch.tensor(expected) + 1 / torch.tensor([0.229, 0.224, 0.225]))


def test_batches_are_loaded_one_ahead_and_no_more_and_raise_in_their_turn():
    begun, model = [threading.Event() for _ in range(5)], torch.nn.Identity()
    model.device = torch.device("cpu")

    def load(i):
        begun[i].set()
        return (torch.tensor([10 // (3 - i)]),)

    items = encode_batches(model, range(5), load, lambda first: first)
    assert next(items).tolist() == [3]
    assert begun[1].wait(10)  # while the caller is at item 0
    assert not begun[2].wait(0.2)
    assert [next(items).tolist(), next(items).tolist()] == [[5], [10]]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert list(encode_batches(model, [], load, lambda first: first)) == []
