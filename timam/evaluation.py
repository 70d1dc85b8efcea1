"""Embedding a split once, and everything that is measured on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from timam.files import replacing_file
from timam.gap import modality_gap
from timam.metrics import chance, class_retrieval_metrics, open_set_metrics, query_metrics, two_way_metrics
from timam.models import TIMAM
from timam.stores import StoredSplit

DIRECTIONS = ("text_to_image", "image_to_text")
MIN_OPEN_SET = 10  # identities: with fewer, an open-set measure would mean nothing


@dataclass(frozen=True)
class Embeddings:
    """A split in the joint space, on the CPU: N pictures, M captions, width D."""

    images: Tensor  # (N, D) float32, not unit length
    texts: Tensor  # (M, D)
    image_labels: Tensor  # (N,) int64
    text_labels: Tensor  # (M,)

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        with replacing_file(path) as temporary:
            save_file({k: v.contiguous() for k, v in vars(self).items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> "Embeddings":
        """Raises FileNotFoundError, and SafetensorError for a damaged file."""
        return cls(**load_file(path))

    def direction(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query and gallery embeddings, query and gallery labels of "text_to_image" or "image_to_text"."""
        if name == "text_to_image":
            return self.texts, self.images, self.text_labels, self.image_labels
        return self.images, self.texts, self.image_labels, self.text_labels


def embed_split(model: TIMAM, stored: StoredSplit, batch_size: int = 64, progress: bool = False) -> Embeddings:
    """Encodes every picture and caption of a split. Stored outputs of frozen layers must be this model's."""
    split = stored.split
    images = model.encode_pixels(stored.pixels if stored.blocks is None else stored.blocks, batch_size, progress)
    if stored.words is None:
        texts = model.encode_texts(split.captions, batch_size, progress)
    else:
        texts = model.encode_word_states(stored.words, batch_size)
    labels = torch.from_numpy(split.image_labels), torch.from_numpy(split.caption_labels)
    return Embeddings(images, texts, *labels)


def evaluate(
    embeddings: Embeddings, kind: str = "identity", folds: int = 1, validation: Embeddings | None = None
) -> dict[str, Any]:
    """Everything that is reported of a split; kind and folds are those of the `timam.data.Dataset`.

    Returns {"text_to_image": {"rank_1", ..., "mAP", "mINP", "queries", "gallery", "chance" (of rank-1)},
    "image_to_text": {the same}}, and "class_level" (`class_retrieval_metrics`) for the kind "class", "folds"
    (`evaluate_folds`) for several non-empty folds, "open_set" (`evaluate_open_set`) for at least 10 identities.
    """
    e, results = embeddings, _both_directions(embeddings)
    if kind == "class":
        results["class_level"] = class_retrieval_metrics(e.images, e.image_labels, e.texts, e.text_labels)
    if 1 < folds <= len(embeddings.images):
        results["folds"] = evaluate_folds(embeddings, folds)
    if len(embeddings.text_labels.unique()) >= MIN_OPEN_SET:
        results["open_set"] = evaluate_open_set(embeddings, validation)
    return results


def _both_directions(embeddings: Embeddings) -> dict[str, Any]:
    results: dict[str, Any] = dict(two_way_metrics(*vars(embeddings).values()))
    for name in DIRECTIONS:
        queries, gallery, *labels = embeddings.direction(name)
        results[name] |= {"queries": len(queries), "gallery": len(gallery), "chance": chance(*labels)}
    return results


def evaluate_open_set(embeddings: Embeddings, validation: Embeddings | None = None) -> dict[str, Any]:
    """Open-set measures of text-to-image search: the pictures of every second identity are taken out of the gallery.

    The captions of those identities then have no right answer, and a search should say that nothing fits.

    Returns {"text_to_image": {"queries", "unknown", "gallery", ...}}: numbers of captions, of those without a right
    answer and of pictures, and `open_set_metrics` with thresholds chosen on this split, keyed by rates as text. With
    a validation split that is large enough also {"threshold": chosen on that, "at_threshold": {the rates here}}.
    """
    texts, images, text_labels, image_labels = embeddings.direction("text_to_image")
    absent = text_labels.unique()[1::2]
    present = ~torch.isin(image_labels, absent)
    searched = texts, images[present], text_labels, image_labels[present]
    unknown = int(torch.isin(text_labels, absent).sum())
    sizes = {"queries": len(texts), "unknown": unknown, "gallery": int(present.sum())}
    result: dict[str, Any] = {"text_to_image": sizes | _by_name(open_set_metrics(*searched))}
    if validation is not None and len(validation.text_labels.unique()) >= MIN_OPEN_SET:
        chosen = evaluate_open_set(validation)["text_to_image"]["threshold"]
        thresholds = {float(rate): cosine for rate, cosine in chosen.items()}
        found = _by_name(open_set_metrics(*searched, thresholds=thresholds))
        result |= {"threshold": found.pop("threshold"), "at_threshold": found}
    return result


def _by_name(measures: dict[str, dict[float, float]]) -> dict[str, dict[str, float]]:
    """With the rates as text, which is how JSON has them."""
    return {name: {f"{rate:g}": value for rate, value in values.items()} for name, values in measures.items()}


def evaluate_folds(embeddings: Embeddings, folds: int = 5) -> dict[str, Any]:
    """Parts of a split searched on their own, and averaged: COCO's "1K test" is the mean over 5 x 1,000 pictures.

    The parts are contiguous in the pictures' order, which is the annotation file's (Karpathy and Fei-Fei, CVPR 2015),
    of N // folds pictures each and their captions; the last one takes the rest. Each picture has a label of its own.

    Returns {"folds", "text_to_image", "image_to_text"}: plain means over the parts, also of "queries" and "gallery".
    """
    e, count = embeddings, len(embeddings.images)
    image_fold = (torch.arange(count) // (count // folds)).clamp(max=folds - 1)
    parts = []
    for fold in range(folds):
        i = image_fold == fold
        t = torch.isin(e.text_labels, e.image_labels[i])
        parts.append(_both_directions(Embeddings(e.images[i], e.texts[t], e.image_labels[i], e.text_labels[t])))
    means = {d: {key: float(np.mean([p[d][key] for p in parts])) for key in parts[0][d]} for d in DIRECTIONS}
    return {"folds": folds, **means}


def per_query(embeddings: Embeddings, direction: str) -> dict[str, np.ndarray]:
    """`timam.metrics.query_metrics` of one direction, with each query's identity label as "identity"."""
    queries = embeddings.direction(direction)
    return {**query_metrics(*queries), "identity": queries[2].numpy()}


def gap(embeddings: Embeddings) -> dict[str, float]:
    """`timam.gap.modality_gap` of a split; empty for a single identity, as probes need two."""
    if len(embeddings.text_labels.unique()) < 2:
        return {}
    return modality_gap(*(t.numpy() for t in vars(embeddings).values()))
