"""Augmentation of whole batches on their device: every picture has its own draw from torch's global generator."""

from __future__ import annotations

import torch
from torch import Tensor

from timam.config import DataConfig


def augment(images: Tensor, config: DataConfig) -> Tensor:
    """Applies what the config switches on, in the field's usual order: flip, pad and crop, erase.

    Args:
        images: (B, 3, H, W), normalised floating point; zero is the mean colour.

    Returns:
        The same shape and dtype; the input is left as it is.
    """
    if config.horizontal_flip:
        images = flip(images)
    if config.pad_crop:
        images = pad_crop(images, config.pad_crop)
    if config.random_erasing:
        images = erase(images, config.random_erasing)
    return images


def flip(images: Tensor) -> Tensor:
    """Mirrors each picture left to right with probability 1/2."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def pad_crop(images: Tensor, padding: int) -> Tensor:
    """Shifts each picture by up to `padding` pixels in both axes: a random crop of the zero-padded picture."""
    batch, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, batch, 1), device=images.device)
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device)  # (B, W)
    picture = torch.arange(batch, device=images.device)[:, None, None]
    cropped = padded[picture, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3): indexed axes come first
    return cropped.permute(0, 3, 1, 2)


def erase(images: Tensor, probability: float) -> Tensor:
    """Blanks, with the probability, a rectangle of 2 to 40 % of the area and aspect ratio 0.3 to 3.3 in each picture.

    After Zhong et al., AAAI 2020; the fill is the mean colour. A rectangle too tall or wide is cut to the picture.
    """
    batch, _, height, width = images.shape
    area, ratio, y, x, drawn = torch.rand(5, batch, device=images.device)
    area = (0.02 + 0.38 * area) * height * width
    ratio = torch.exp((2 * ratio - 1) * torch.log(torch.tensor(10 / 3)))
    box_height, box_width = (area * ratio).sqrt().clamp(max=height), (area / ratio).sqrt().clamp(max=width)
    top, left = y * (height - box_height), x * (width - box_width)
    rows = torch.arange(height, device=images.device)[None, :] + 0.5  # pixel centres
    columns = torch.arange(width, device=images.device)[None, :] + 0.5
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (B, W)
    box = in_rows[:, :, None] & in_columns[:, None, :] & (drawn < probability)[:, None, None]
    return images.masked_fill(box[:, None], 0.0)
