"""Augmentation of whole batches on their device; every picture has its own random draw (torch's global generator).

Pictures are (B, 3, H, W), normalised floating point; zero is the mean colour. Functions keep shape, dtype and input.
"""

import torch
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from timam.config import DataConfig
from timam.images import IMAGENET_MEAN, IMAGENET_STD


def augments(config: DataConfig) -> bool:
    """Whether the config changes pictures at random."""
    return bool(config.color_jitter or config.horizontal_flip or config.pad_crop or config.random_erasing)


def augment(images: Tensor, config: DataConfig) -> Tensor:
    """Applies what the config switches on, in the usual order: colour jitter, flip, pad and crop, erase."""
    if config.color_jitter:  # before padding, so that the padding keeps the mean colour
        images = color_jitter(images, config.color_jitter)
    if config.horizontal_flip:
        images = flip(images)
    if config.pad_crop:
        images = pad_crop(images, config.pad_crop)
    if config.random_erasing:
        images = erase(images, config.random_erasing)
    return images


def color_jitter(images: Tensor, strength: float) -> Tensor:
    """Changes brightness, contrast and saturation, in this order, by factors uniform in [1 - strength, 1 + strength].

    Each step equals torchvision's on colours in [0, 1], clamping included. The hue stays, as captions name colours.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, device=images.device) - 1)
    brightness, contrast, saturation = factors
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # half precision has too few bits for colours
    mean, std = (exact.new_tensor(c).view(3, 1, 1) for c in (IMAGENET_MEAN, IMAGENET_STD))
    colours = ((exact * std + mean) * brightness).clamp(0, 1)
    grey = rgb_to_grayscale(colours).mean(dim=(1, 2, 3), keepdim=True)
    colours = torch.lerp(grey, colours, contrast.to(exact)).clamp(0, 1)
    colours = torch.lerp(rgb_to_grayscale(colours), colours, saturation.to(exact)).clamp(0, 1)
    return ((colours - mean) / std).to(images.dtype)


def flip(images: Tensor) -> Tensor:
    """Mirrors each picture left to right with probability 1/2."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def pad_crop(images: Tensor, padding: int) -> Tensor:
    """A random crop, of the original size, of each zero-padded picture."""
    batch, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, batch, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device)  # (B, W)
    picture = torch.arange(batch, device=images.device)[:, None, None]
    cropped = padded[picture, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3): indexed axes come first
    return cropped.permute(0, 3, 1, 2)


def erase(images: Tensor, probability: float) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020): sets a rectangle to the mean colour, with this probability.

    Its area is 2 to 40 % of the picture's, its aspect ratio 0.3 to 3.3. It is cropped to the picture.
    """
    batch, _, height, width = images.shape
    area, ratio, y, x, drawn = torch.rand(5, batch, device=images.device)
    area = (0.02 + 0.38 * area) * height * width
    ratio = torch.exp((2 * ratio - 1) * torch.log(torch.tensor(10 / 3)))
    box_height, box_width = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = y * (height - box_height), x * (width - box_width)
    rows, columns = (torch.arange(size, device=images.device) + 0.5 for size in (height, width))  # pixel centres
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (B, W)
    box = in_rows[:, :, None] & in_columns[:, None, :] & (drawn < probability)[:, None, None]
    return images.masked_fill(box[:, None], 0.0)
