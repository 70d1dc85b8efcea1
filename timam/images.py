"""Decoding, resizing and normalising pictures: training, evaluation and saved models all do it here."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm.auto import tqdm

from timam.embedded import open_picture
from timam.files import files_below

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What makes a picture upright whose EXIF orientation tag is 2, 3, ..., 8.
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
# Pillow reads 40 more. Some start a program (PostScript), others have decoders that few have checked for safety.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LONGEST_SIDE = 65_535  # pixels, as in JPEG; resizing a row of 90 million pixels would take gigabytes
_NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".dng")  # of phones and cameras
SUFFIXES = tuple(sorted(s for s, kind in Image.registered_extensions().items() if kind in FORMATS and s != ".pfm"))


class ImageError(ValueError):
    """A picture that cannot be read; the message names the file and the reason."""


def read_image(path: Path) -> Image.Image:
    """Decodes a whole picture, of a file or embedded, as RGB, turned upright by EXIF, with transparency laid on white.

    Raises ImageError: missing, empty, truncated, not one of `FORMATS`, or too large: a side above `LONGEST_SIDE`, or
    more pixels than Pillow's limit of 179 million (0.5 GB decoded). Pillow warns from half of that on.
    """
    try:
        with Image.open(open_picture(path), formats=FORMATS) as image:
            if max(image.size) > LONGEST_SIDE:
                raise ValueError(f"{image.width}x{image.height} pixels, expected at most {LONGEST_SIDE:,} a side")
            return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise ImageError(f"{path}: not a readable picture ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # before the orientation is read, as Pillow itself turns a TIFF here
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("32 bits a pixel, of which the brightest is not known; expected 8 or 16")
    turn = None
    with suppress(Exception):  # Pillow raises many kinds for damaged metadata; the pixels may be whole
        turn = dict(enumerate(_TURNS, 2)).get(int(image.getexif().get(0x0112, 1)))
    if image.mode == "RGB" and "transparency" not in image.info and turn is None:
        return image  # each of the steps below would copy it
    if turn is not None:  # ImageOps.exif_transpose writes all tags anew, which fails where any of them is malformed
        transparency = image.info.get("transparency")
        image = image.transpose(Image.Transpose[turn])
        image.info = {} if transparency is None else {"transparency": transparency}  # without the orientation
    if image.mode.startswith("I"):  # 16 bits a channel: convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def to_pixels(image: Image.Image, height: int, width: int) -> np.ndarray:
    """A picture of any mode resized (antialiased bilinear, aspect ratio not kept) to (3, height, width) uint8."""
    resized = _to_rgb(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)


def any_to_pixels(image: Image.Image | str | Path | Tensor, height: int, width: int) -> Tensor:
    """A PIL image, a path or a uint8 tensor (3, h, w) as uint8 pixels (3, height, width).

    Raises ImageError for an unreadable file, and ValueError for a tensor of another shape or dtype.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"image tensor {tuple(image.shape)} {image.dtype}: expected (3, h, w) torch.uint8")
        picture = to_pil_image(image.cpu())
    else:
        picture = image if isinstance(image, Image.Image) else read_image(Path(image))
    return torch.from_numpy(to_pixels(picture, height, width).copy())


def normalize(pixels: Tensor) -> Tensor:
    """Pixels normalised by ImageNet's mean and standard deviation: (B, 3, H, W) float32 in channels-last memory.

    `pixels` are (B, 3, H, W) uint8 in any memory format; channels-last, as a pixel store gives them, is fastest.
    """
    width = pixels.shape[3]
    # The constants are repeated along a line of a picture, as broadcasting over 3 channels is many times slower.
    mean = (torch.tensor(IMAGENET_MEAN, device=pixels.device) * 255).repeat(width)
    std = (torch.tensor(IMAGENET_STD, device=pixels.device) * 255).repeat(width)
    lines = pixels.permute(0, 2, 3, 1).reshape(-1, width * 3).to(torch.float32, copy=True).sub_(mean).div_(std)
    return lines.view(len(pixels), -1, width, 3).permute(0, 3, 1, 2)


def unread_kinds(folder: Path) -> list[str]:
    """A line for each kind of picture below a folder that is not read at all, with their number."""
    counts = Counter(path.suffix.lower() for path in files_below(folder, _NOT_READ))
    told = "{}: {} pictures ({:,}) are not read; convert them to .jpg".format
    return [told(folder, *kind) for kind in sorted(counts.items())]


def find_unreadable(
    paths: Sequence[Path], progress: bool = False, use: Callable[[int, Image.Image], object] = lambda row, image: None
) -> list[str]:
    """Decodes pictures in threads: a line for each that fails, in order. `use` gets row and picture of each other."""

    def check(row: int) -> str:
        try:
            use(row, read_image(paths[row]))
        except ImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(check, range(len(paths)))
        return list(filter(None, tqdm(found, "decoding", len(paths), unit="picture", disable=not progress)))
