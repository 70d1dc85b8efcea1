"""timam.data.augment: whole batches against single-picture operations."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from timam.config import DataConfig
from timam.data.augment import augment, color_jitter, erase, flip, pad_crop
from timam.images import IMAGENET_MEAN, IMAGENET_STD, normalize


def pictures(batch: int = 64, height: int = 12, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Random pictures without a zero, so that padding and erasing can be told from content."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def redraw(draw):
    """Runs `draw` from the state of torch's generator that the operation after it will start from."""
    state = torch.get_rng_state()
    drawn = draw()
    torch.set_rng_state(state)
    return drawn


@pytest.mark.parametrize("strength", [0.2, 0.9])  # 0.9: much is clamped
def test_color_jitter_equals_torchvision_picture_by_picture(strength):
    pixels = torch.randint(256, (32, 3, 12, 8), dtype=torch.uint8)
    factors = redraw(lambda: 1 + strength * (2 * torch.rand(3, 32) - 1))
    jittered = color_jitter(normalize(pixels), strength)
    for picture, found, (brightness, contrast, saturation) in zip(pixels, jittered, factors.T.tolist(), strict=True):
        expected = F.adjust_brightness(picture.float() / 255, brightness)
        expected = F.adjust_saturation(F.adjust_contrast(expected, contrast), saturation)
        expected = F.normalize(expected, list(IMAGENET_MEAN), list(IMAGENET_STD))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (factors - 1).abs().max() <= strength
    assert len(factors.unique()) == 96  # every picture and step has its own


def test_color_jitter_of_strength_0_is_the_identity():
    images = normalize(torch.randint(256, (32, 3, 12, 8), dtype=torch.uint8))
    torch.testing.assert_close(color_jitter(images, 0.0), images, rtol=0, atol=1e-5)


def test_flip_equals_torchvision_picture_by_picture():
    images = pictures()
    mirrored = redraw(lambda: torch.rand(64) < 0.5)
    expected = [F.horizontal_flip(image) if m else image for image, m in zip(images, mirrored, strict=True)]
    assert torch.equal(flip(images), torch.stack(expected))


def test_pad_crop_equals_torchvision_picture_by_picture():
    images = pictures()
    offsets = redraw(lambda: torch.randint(7, (2, 64, 1)))[:, :, 0].T.tolist()
    expected = [F.crop(F.pad(i, [3] * 4), top, left, 12, 8) for i, (top, left) in zip(images, offsets, strict=True)]
    assert torch.equal(pad_crop(images, 3), torch.stack(expected))


def test_erase_equals_torchvision_picture_by_picture():
    images = pictures(height=48, width=24)
    draws = redraw(lambda: torch.rand(5, 64)).T.tolist()
    for image, found, (area, ratio, y, x, drawn) in zip(images, erase(images, 0.6), draws, strict=True):
        area, ratio = (0.02 + 0.38 * area) * 48 * 24, (10 / 3) ** (2 * ratio - 1)
        height, width = min(math.sqrt(area * ratio), 48), min(math.sqrt(area / ratio), 24)
        top, left = y * (48 - height), x * (24 - width)
        # Pixels whose centres lie in the box: top <= row + 0.5 < top + height.
        first_row, first_column = math.ceil(top - 0.5), math.ceil(left - 0.5)
        rows, columns = math.ceil(top + height - 0.5) - first_row, math.ceil(left + width - 0.5) - first_column
        blanked = F.erase(image, first_row, first_column, rows, columns, v=torch.zeros(3, 1, 1))
        assert torch.equal(found, blanked if drawn < 0.6 else image)


def test_flip_gives_each_picture_or_its_mirror_image():
    images = pictures(400)
    flipped = flip(images)
    mirrored = torch.tensor([torch.equal(a, F.horizontal_flip(b)) for a, b in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 150 <= mirrored.sum() <= 250  # of 400 with probability 1/2: the mean plus or minus 5 standard deviations


@pytest.mark.parametrize("padding", [1, 3, 20])  # 20: more than the picture is wide
def test_pad_crop_gives_crops_of_the_zero_padded_picture(padding):
    images = pictures(30)
    cropped = pad_crop(images, padding)
    _, _, height, width = images.shape
    for image, crop in zip(images, cropped, strict=True):
        padded = F.pad(image, [padding] * 4)
        offsets = itertools.product(range(2 * padding + 1), repeat=2)
        assert any(torch.equal(crop, F.crop(padded, top, left, height, width)) for top, left in offsets)


def test_pad_crop_reaches_every_offset():
    image = torch.arange(1.0, 26).reshape(1, 1, 5, 5).expand(600, 3, 5, 5)
    crops = {tuple(c.flatten().tolist()) for c in pad_crop(image, 1)}
    assert len(crops) == 9  # 3 x 3 offsets; one is missed with probability 9 * (8/9)^600, below 1e-29


def erased_boxes(images: torch.Tensor, erased: torch.Tensor) -> list[tuple[int, int] | None]:
    """(height, width) of the blanked box of each picture, None where there is none; checks that it is a box."""
    boxes: list[tuple[int, int] | None] = []
    for image, result in zip(images, erased, strict=True):
        blank = (result == 0).all(dim=0)
        assert torch.equal(result[:, ~blank], image[:, ~blank])  # the rest is as it was
        rows, columns = blank.any(dim=1), blank.any(dim=0)
        assert torch.equal(blank, rows[:, None] & columns[None, :])
        for line in (rows, columns):  # in one piece
            assert (line.int().diff() != 0).sum() <= 2
        boxes.append((int(rows.sum()), int(columns.sum())) if blank.any() else None)
    return boxes


def test_erased_area_and_aspect_stay_in_bounds():
    images = pictures(300, height=96, width=96)
    boxes = erased_boxes(images, erase(images, 1.0))
    assert None not in boxes
    # A box of h x w pixels comes from one of h +- 1 by w +- 1: edges fall between pixel centres.
    for h, w in boxes:  # type: ignore[misc]
        assert (h + 1) * (w + 1) >= 0.02 * 96 * 96
        assert (h - 1) * (w - 1) <= 0.40 * 96 * 96
        assert (h + 1) / max(w - 1, 1) >= 0.3
        assert (h - 1) / (w + 1) <= 10 / 3
    areas = torch.tensor([h * w for h, w in boxes]) / 96**2  # type: ignore[misc]
    assert 0.18 < areas.mean() < 0.24  # uniform in 0.02 to 0.40: mean 0.21, standard error 0.11 / sqrt(300) = 0.006


@pytest.mark.parametrize(("height", "width"), [(128, 16), (16, 128)])
def test_box_beyond_the_picture_is_cut_to_it(height, width):
    images = pictures(200, height=height, width=width)
    boxes = erased_boxes(images, erase(images, 1.0))
    assert all(box is not None and box[0] <= height and box[1] <= width for box in boxes)
    assert any(box[0] == height or box[1] == width for box in boxes)  # type: ignore[index]


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 74, 166), (1.0, 400, 400)])
def test_erasing_keeps_its_probability(probability, low, high):
    images = pictures(400, height=48, width=48)  # 0.3 of 400: 120 plus or minus 5 standard deviations of 9.2
    count = sum(box is not None for box in erased_boxes(images, erase(images, probability)))
    assert low <= count <= high


ALL = DataConfig(color_jitter=0.4, horizontal_flip=True, pad_crop=2, random_erasing=0.7)
OPERATIONS = {
    "color_jitter": partial(color_jitter, strength=0.4), "flip": flip, "pad_crop": partial(pad_crop, padding=2),
    "erase": partial(erase, probability=0.9),
    "augment": partial(augment, config=ALL),
}  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_input_are_kept(operation, memory, dtype):
    images = pictures(16).to(dtype).contiguous(memory_format=memory)
    before = images.clone()
    result = operation(images)
    assert (result.shape, result.dtype, result.device) == (images.shape, dtype, images.device)
    assert torch.equal(images, before)
    result.zero_()  # where nothing was drawn, the result must not be the input's own memory
    assert torch.equal(images, before)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_memory_format_does_not_change_the_result(operation):
    images = pictures(16)
    torch.manual_seed(5)
    plain = operation(images)
    torch.manual_seed(5)
    assert torch.equal(operation(images.contiguous(memory_format=torch.channels_last)), plain)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_each_picture_has_its_own_draw(operation):
    images = pictures(1).expand(64, -1, -1, -1)  # the same picture 64 times
    assert len({tuple(r.flatten().tolist()) for r in operation(images)}) > 1


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_draws_come_from_torchs_generator(operation):
    images = pictures(64)
    torch.manual_seed(1)
    first = operation(images)
    assert not torch.equal(operation(images), first)
    torch.manual_seed(1)
    assert torch.equal(operation(images), first)


def test_augment_does_only_what_is_switched_on():
    images = pictures()
    off = DataConfig(horizontal_flip=False)
    assert torch.equal(augment(images, off), images)
    torch.manual_seed(2)
    expected = erase(pad_crop(flip(color_jitter(images, 0.4)), 2), 0.7)
    torch.manual_seed(2)
    assert torch.equal(augment(images, ALL), expected)  # in this order
