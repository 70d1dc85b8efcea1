"""timam.data.augment: whole batches against single-picture operations."""

import math
from functools import partial

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from timam.config import DataConfig
from timam.data.augment import augment, color_jitter, erase, flip, pad_crop
from timam.images import normalize


def pictures(batch: int = 64, height: int = 12, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Random pictures without a zero, so that padding and erasing can be told from content."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def redraw(draw):
    """Runs `draw` from the state of torch's generator that the operation after it will start from."""
    with torch.random.fork_rng():
        return draw()


@pytest.mark.parametrize("strength", [0.2, 0.9])  # 0.9: much is clamped
def test_color_jitter_equals_torchvision_picture_by_picture(strength):
    pixels = torch.randint(256, (32, 3, 12, 8), dtype=torch.uint8)
    factors = redraw(lambda: 1 + strength * (2 * torch.rand(3, 32) - 1))
    jittered = color_jitter(normalize(pixels), strength)
    for picture, found, (brightness, contrast, saturation) in zip(pixels, jittered, factors.T.tolist(), strict=True):
        expected = F.adjust_brightness(picture.float() / 255, brightness)
        expected = F.adjust_saturation(F.adjust_contrast(expected, contrast), saturation)
        expected = F.normalize(expected, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flip_equals_torchvision_picture_by_picture():
    images = pictures(400)
    mirrored = redraw(lambda: torch.rand(400) < 0.5)
    expected = [F.horizontal_flip(image) if m else image for image, m in zip(images, mirrored, strict=True)]
    assert torch.equal(flip(images), torch.stack(expected))


@pytest.mark.parametrize("padding", [1, 3, 20])  # 20: more than the picture is wide
def test_pad_crop_equals_torchvision_picture_by_picture(padding):
    images = pictures()
    draws = redraw(lambda: torch.randint(2 * padding + 1, (2, 64, 1)))
    offsets = draws[:, :, 0].T.tolist()
    padded = [F.pad(i, [padding] * 4) for i in images]
    expected = [F.crop(i, top, left, 12, 8) for i, (top, left) in zip(padded, offsets, strict=True)]
    assert torch.equal(pad_crop(images, padding), torch.stack(expected))
    assert (draws.min(), draws.max()) == (0, 2 * padding) or padding == 20  # every offset is drawn


@pytest.mark.parametrize(
    ("height", "width", "probability"), [(48, 24, 0.0), (48, 24, 0.3), (128, 16, 1.0), (16, 128, 1.0)]
)  # long pictures: boxes are cut to them
def test_erase_equals_torchvision_picture_by_picture(height, width, probability):
    images = pictures(height=height, width=width)
    draws = redraw(lambda: torch.rand(5, 64)).T.tolist()
    erased = erase(images, probability)
    for image, found, (area, ratio, y, x, drawn) in zip(images, erased, draws, strict=True):
        area, ratio = (0.02 + 0.38 * area) * height * width, (10 / 3) ** (2 * ratio - 1)
        box_height, box_width = min(math.sqrt(area * ratio), height), min(math.sqrt(area / ratio), width)
        top, left = y * (height - box_height), x * (width - box_width)
        # Pixels whose centres lie in the box: top <= row + 0.5 < top + box_height.
        first_row, first_column = math.ceil(top - 0.5), math.ceil(left - 0.5)
        rows, columns = math.ceil(top + box_height - 0.5) - first_row, math.ceil(left + box_width - 0.5) - first_column
        blanked = F.erase(image, first_row, first_column, rows, columns, v=torch.zeros(3, 1, 1))
        assert torch.equal(found, blanked if drawn < probability else image)


@pytest.mark.parametrize(
    "operation",
    [partial(color_jitter, strength=0.4), flip, partial(pad_crop, padding=2), partial(erase, probability=0.9)],
    ids=["color_jitter", "flip", "pad_crop", "erase"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_picture_has_its_own_draw_and_shape_dtype_and_input_are_kept(operation, dtype):
    images = pictures(1).to(dtype).expand(64, -1, -1, -1).contiguous()  # the same picture 64 times
    before, other = images.clone(), images.contiguous(memory_format=torch.channels_last)
    first = operation(images)
    assert (first.shape, first.dtype, first.device) == (images.shape, dtype, images.device)
    assert len({tuple(r.flatten().tolist()) for r in first}) > 1
    assert not torch.equal(operation(images), first)
    torch.manual_seed(0)
    again = operation(other)
    assert torch.equal(again, first)
    for result in (first, again):
        result.zero_()  # where nothing was drawn, the result must not be the input's own memory
    assert torch.equal(images, before)
    assert torch.equal(other, before)


def test_augment_does_only_what_is_switched_on():
    images = pictures()
    assert torch.equal(augment(images, DataConfig(horizontal_flip=False)), images)
    expected = redraw(lambda: erase(pad_crop(flip(color_jitter(images, 0.4)), 2), 0.7))
    config = DataConfig(color_jitter=0.4, horizontal_flip=True, pad_crop=2, random_erasing=0.7)
    assert torch.equal(augment(images, config), expected)  # in this order
