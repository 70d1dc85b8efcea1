"""Searching any folder of pictures with a sentence."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from timam.images import SUFFIXES, ImageError, read_image, to_pixels
from timam.models import TIMAM


def search_folder(model: TIMAM, sentence: str, folder: Path, k: int = 10) -> tuple[list[tuple[Path, float]], list[str]]:
    """The k pictures below a folder that fit a sentence best.

    Returns:
        (path, cosine similarity in [-1, 1]) best first, equal ones in the order of their paths; and a line for each
        picture that could not be read and was passed over.

    Raises:
        FileNotFoundError: no such folder, or no readable picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    size = model.model_config.image_height, model.model_config.image_width
    paths, pixels, problems = [], [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            pixels.append(torch.from_numpy(to_pixels(read_image(path), *size).copy()))
            paths.append(path)
        except ImageError as error:
            problems.append(str(error))
    if not paths:
        raise FileNotFoundError(f"{folder}: no readable pictures ({', '.join(SUFFIXES)}) in it")
    gallery = F.normalize(model.encode_images(pixels, progress=len(paths) > 200), dim=1)
    scores = gallery @ F.normalize(model.encode_texts([sentence]), dim=1)[0]
    order = torch.argsort(scores, descending=True, stable=True)[:k]
    return [(paths[i], float(scores[i])) for i in order.tolist()], problems
