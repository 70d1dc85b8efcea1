"""Which words and which regions of a picture a similarity rests on, by leaving each of them out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor

from timam.models import TIMAM


def word_effects(model: TIMAM, sentence: str, picture: Tensor) -> pd.DataFrame:
    """What each word contributes to a similarity: that of the whole sentence minus that of the sentence without it.

    Args:
        picture: (D,) embedding.

    Returns:
        One row per word in the sentence's order: word, effect (difference of cosine similarities; positive: the word
        speaks for the picture). Empty for a sentence of one word.
    """
    words = sentence.split()
    if len(words) < 2:
        return pd.DataFrame({"word": [], "effect": []})
    shortened = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    similarity = F.normalize(model.encode_texts([sentence, *shortened]), dim=1) @ F.normalize(picture, dim=0)
    return pd.DataFrame({"word": words, "effect": (similarity[0] - similarity[1:]).numpy()})


def occlusion_map(model: TIMAM, pixels: Tensor, text: Tensor, rows: int = 12, columns: int = 6) -> np.ndarray:
    """What each region contributes to a similarity: that of the picture minus that with a grey patch over the region.

    Args:
        pixels: (3, H, W) uint8.
        text: (D,) embedding.
        rows, columns: of the grid of regions; a patch covers 2 x 2 of them.

    Returns:
        (rows, columns) float32 differences of cosine similarities; positive: the region speaks for the sentence.
    """
    height, width = pixels.shape[1:]
    tops, lefts = np.linspace(0, height, rows + 1).astype(int), np.linspace(0, width, columns + 1).astype(int)
    covered = pixels.repeat(rows * columns + 1, 1, 1, 1)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        top, bottom = tops[max(row - 1, 0)], tops[row + 1]
        left, right = lefts[max(column - 1, 0)], lefts[column + 1]
        covered[index + 1, :, top:bottom, left:right] = 124  # near ImageNet's mean: little contrast of its own
    similarity = F.normalize(model.encode_images(list(covered)), dim=1) @ F.normalize(text, dim=0)
    return (similarity[0] - similarity[1:]).reshape(rows, columns).numpy()
