"""Decoding and resizing pictures of every mode, also inside Parquet files; batches that are loaded ahead."""

import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layouts
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from timam.data import load_dataset, read_dataset
from timam.embedded import container, open_picture
from timam.images import ImageError, any_to_pixels, read_image, to_pixels
from timam.models.batching import encode_batches
from timam_lab.check import check_dataset

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of an RGB picture, row by row."""
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def saved(image: Image.Image, path, **options) -> Image.Image:
    image.save(path, **options)
    return read_image(path)


NOISE = np.random.default_rng(0).integers(0, 256, (20, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "values", "options", "expected"),
    [
        ("RGBA", [(*RED, 255), (0, 0, 0, 0), (0, 0, 0, 102)], {}, [RED, WHITE, (153,) * 3]),  # 102 / 255 = 0.4 of black
        ("LA", [(100, 255), (0, 0)], {}, [(100,) * 3, WHITE]),
        ("P", [0, 1, 2], {}, [RED, GREEN, BLUE]),
        ("P", [0, 1, 2], {"transparency": 1}, [RED, WHITE, BLUE]),
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
    with pytest.raises(ImageError, match="32 bits a pixel"):
        saved(Image.new("F", (2, 2)), tmp_path / "f.tif")
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
    for file in (tmp_path / "a.png", tmp_path / "a.tiff"):
        found = saved(image, file, exif=exif)
        assert found.size == ((3, 1) if orientation in (1, 3) else (1, 3))
        assert colours(found) == expected
        for same in (found, Image.open(file)):  # whose pixels are not loaded yet
            assert np.array_equal(to_pixels(same, found.height, found.width).transpose(1, 2, 0), np.asarray(found))


def test_malformed_exif_tag_does_not_cost_the_picture(tmp_path):
    """Phones write such tags, as here a width in bytes; orientation 6 beside it still turns the picture."""
    tags = struct.pack("<HHIHHHHI4s", 0x112, 3, 1, 6, 0, 0x100, 7, 4, b"abcd")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4)
    assert saved(Image.new("RGB", (40, 60)), tmp_path / "a.jpg", exif=exif).size == (60, 40)


def test_resizing_is_antialiased():
    # A checkerboard of single pixels, 8 times too fine: the mean of each block, 127.5. Bilinear sampling without
    # antialiasing would give values between 0 and 255 that depend on where the samples fall.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    inner = to_pixels(Image.fromarray(board), 8, 8)[:, 1:-1, 1:-1]
    assert np.abs(inner.astype(float) - 127.5).max() <= 2


def test_every_kind_of_input_gives_the_same_pixels_and_its_own_size_every_pixel(tmp_path):
    picture, path, tensor = Image.fromarray(NOISE), tmp_path / "a.png", torch.from_numpy(NOISE).permute(2, 0, 1)
    picture.save(path)
    for kind in (picture, path, str(path), tensor):
        assert torch.equal(any_to_pixels(kind, 20, 10), tensor)
        smaller = any_to_pixels(kind, 12, 8)
        assert (smaller.dtype, smaller.shape) == (torch.uint8, (3, 12, 8))
        assert torch.equal(smaller, any_to_pixels(path, 12, 8))
    for other in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3).byte(), torch.zeros(1, 3, 4, 4).byte()):
        with pytest.raises(ValueError, match=r"expected \(3, h, w\) torch.uint8"):
            any_to_pixels(other, 4, 4)


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


def test_embedded_pictures_in_any_order_are_their_own_and_a_changed_shard_is_read_anew(tmp_path):
    """In groups of 180 rows, more than are kept of a group; the name in capitals."""
    shard, pictures = tmp_path / "TRAIN.PARQUET", [layouts.picture_bytes(i) for i in range(200)]
    layouts.write_shard(shard, pictures, group=180)

    def found(row: int) -> bytes:
        return open_picture(Path(f"{shard}#image:{row}")).getvalue()

    assert load_dataset("parquet", tmp_path).records[199].image == "TRAIN.PARQUET#image:199"
    for row in [0, 199, 3, 2, 1, 181, 180, 179, 0, *np.random.default_rng(0).permutation(200).tolist()]:
        assert found(row) == pictures[row]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(found, range(200))) == pictures
    layouts.write_shard(shard, pictures[:50][::-1])
    os.utime(shard, ns=(1, 1))
    assert found(3) == pictures[46]


def test_what_is_no_embedded_picture_is_named(tmp_path):
    shard = tmp_path / "train.parquet"
    layouts.write_shard(shard, [{"bytes": None, "path": "0.png"}, {"bytes": b"no picture", "path": "1.png"}])
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
    layouts.write_picture(plain)
    assert container(plain) == plain


def test_one_group_of_rows_of_any_size_is_read_in_bounded_memory(tmp_path):
    """100 MB in one group of rows, at most 16 MB of it at once. (A page, compressed as a whole, is read as a whole.)"""
    rng = np.random.default_rng(0)
    pictures = [{"bytes": rng.bytes(1 << 18), "path": None} for _ in range(400)]
    layouts.write_shard(tmp_path / "test.parquet", pictures, group=400)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    dataset, problems = read_dataset("parquet", tmp_path)
    most = pool.bytes_allocated() - before
    for i, record in enumerate(dataset.records):
        assert open_picture(tmp_path / record.image).getvalue() == pictures[i]["bytes"]
        most = max(most, pool.bytes_allocated() - before)
    assert problems == []
    assert most < 16 << 20
