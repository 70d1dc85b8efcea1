"""The readings of the class protocol (CUB, Oxford Flowers) in which papers differ."""

from __future__ import annotations

import torch
from torch import Tensor

from timam.metrics import class_means, class_retrieval_metrics, hits_among_first

CLASS_OPTIONS = {  # the first of each is that of `class_retrieval_metrics`
    "query": ("class_mean", "caption"),
    "gallery": ("caption", "class_mean"),
    "similarity": ("cosine", "dot"),
}


def class_readings(
    images: Tensor, image_classes: Tensor, captions: Tensor, caption_classes: Tensor, k: int = 50, **options: str
) -> dict[str, float]:
    """`timam.metrics.class_retrieval_metrics` in another reading; Reed et al.'s code has "class_mean", "class_mean",
    "dot". ValueError also for an unknown option.

    Args:
        query: of text-to-image. "class_mean": the mean of a class's captions is its one query. "caption": every caption
            is one; the mean is over those of a class, then over the classes.
        gallery: of image-to-text. "caption": the nearest caption must be of the image's class. "class_mean": the
            nearest mean of a class's captions must be. Either way the mean is over the images.
        similarity: "cosine" or "dot", the inner product, which favours long gallery vectors.
    """
    chosen = {name: values[0] for name, values in CLASS_OPTIONS.items()} | options
    for name, value in chosen.items():
        if value not in CLASS_OPTIONS.get(name, ()):
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(CLASS_OPTIONS.get(name, CLASS_OPTIONS))}")
    class_retrieval_metrics(images, image_classes, captions, caption_classes, k)  # refuses what does not fit
    images, captions = (e if e.dtype == torch.float64 else e.float() for e in (images, captions))
    single, averaged = (captions, caption_classes), class_means(captions, caption_classes)
    queries, query_classes = averaged if chosen["query"] == "class_mean" else single
    texts, text_classes = averaged if chosen["gallery"] == "class_mean" else single
    nearest_of, first_of = (images, texts), (queries, images)
    if chosen["similarity"] == "dot":
        nearest_of, first_of = _lift(*nearest_of), _lift(*first_of)
    nearest = hits_among_first(1, *nearest_of, image_classes, text_classes)
    precision = hits_among_first(k, *first_of, query_classes, image_classes) / min(k, len(images))
    by_class, _ = class_means(torch.from_numpy(precision)[:, None], query_classes.cpu())
    return {"image_to_text_rank_1": float(nearest.mean()), f"text_to_image_ap_{k}": float(by_class.mean())}


def _lift(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one more coordinate, so that the cosine is q.g / (|q| max|g|): in the order of the inner products.

    The gallery's makes all of its vectors as long as the longest; the queries' is 0.
    """
    squares = gallery.square().sum(dim=1, keepdim=True)
    rest = (squares.max() - squares).clamp(min=0).sqrt()
    return torch.cat([queries, torch.zeros_like(queries[:, :1])], dim=1), torch.cat([gallery, rest], dim=1)
