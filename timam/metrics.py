"""Retrieval metrics: cosine similarity, relevance by identity or class, ties count against the query.

All values are fractions in [0, 1]. AP is the mean over a query's relevant items of the precision at each one's
rank (non-interpolated; the trapezoid rule that some person-search code uses gives lower values).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

_CHUNK = 1 << 25  # similarities held at a time: 128 MB in float32, twice that for both directions at once
_SLICE = 1 << 18  # of them, compared at a time: what a core's cache holds
_COUNTED = 128  # up to so many relevant items a query, counting what lies above each is faster than a sort
_TIE = 32  # similarities closer than this many machine epsilons tie: equal vectors' products differ by 2 to 14 of them


def query_metrics(
    query_embeddings: Tensor, gallery_embeddings: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> dict[str, np.ndarray]:
    """Each query's results; `retrieval_metrics` averages them and a bootstrap resamples them.

    Args: as `retrieval_metrics`.

    Returns:
        {"rank", "average_precision", "inverse_penalty"}, (Q,) float64 each: the rank (from 1) of the first relevant
        gallery item; AP; and the number of relevant items over the rank of the last of them (INP, whose mean is
        mINP). All three are NaN for a query without a relevant item.

    Raises:
        ValueError: shapes that do not fit, an empty gallery or query set, or embeddings that are not finite.
    """
    sides = _unit_sides("query", query_embeddings, query_labels, "gallery", gallery_embeddings, gallery_labels)
    return _by_chunk(_chunk_metrics, *sides)


def _unit_sides(
    one: str, embeddings: Tensor, labels: Tensor, other: str, other_embeddings: Tensor, other_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides' embeddings, checked and of unit length, and both sides' labels."""
    embeddings, labels = _checked(one, embeddings, labels)
    other_embeddings, other_labels = _checked(other, other_embeddings, other_labels)
    _check_width(**{one: embeddings, other: other_embeddings})
    return F.normalize(embeddings, dim=1), F.normalize(other_embeddings, dim=1), labels, other_labels


def _checked(role: str, embeddings: Tensor, labels: Tensor, kind: str = "labels") -> tuple[Tensor, Tensor]:
    """Embeddings in float32 or float64 and labels on their device, or a ValueError that names role and kind."""
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"{role}_embeddings {tuple(embeddings.shape)}: expected (N, D) with N at least 1")
    if labels.shape != (len(embeddings),):
        raise ValueError(
            f"{role}_{kind} {tuple(labels.shape)}: expected ({len(embeddings)},) to match {tuple(embeddings.shape)}"
        )
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"{role}_embeddings: {int((~torch.isfinite(embeddings)).sum())} values are not finite")
    full = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return full, labels.to(embeddings.device)


def _check_width(**sides: Tensor) -> None:
    (one, a), (other, b) = sides.items()
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{one}_embeddings {tuple(a.shape)} and {other}_embeddings {tuple(b.shape)}: D differs")


def _by_chunk(
    function: Callable[..., dict[str, Tensor]], queries: Tensor, gallery: Tensor, query_labels: Tensor,
    gallery_labels: Tensor, similarity: Tensor | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """`function(similarity (q, G), order (G,), start (q,), count (q,))` of as many queries at a time as fit.

    `order` is the gallery by label; a query's relevant items are the `count` ones in it from `start`.
    """
    _, label = torch.cat([query_labels, gallery_labels]).unique(return_inverse=True)
    of_query, of_gallery = label[: len(queries)], label[len(queries) :]
    order, numbers = of_gallery.argsort(), of_gallery.bincount(minlength=int(label.max()) + 1)
    start, count = (numbers.cumsum(0) - numbers)[of_query], numbers[of_query]
    step = max(1, _CHUNK // len(gallery))
    chunks = []
    for rows in (slice(first, first + step) for first in range(0, len(queries), step)):
        scores = queries[rows] @ gallery.T if similarity is None else similarity[rows]
        chunks.append(function(scores, order, start[rows], count[rows]))
    return {key: torch.cat([c[key] for c in chunks]).cpu().numpy() for key in chunks[0]}


def _relevant_ranks(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Ranks (q, P) float64 of each row's relevant items, ascending and then inf.

    P is the largest of the counts, at least 1. Similarities are in [-1, 1], or the tolerance for ties is wrong.
    """
    place = torch.arange(max(1, int(count.max())), device=similarity.device)  # (P,)
    padding = place >= count[:, None]  # (q, P)
    relevant = order[(start[:, None] + place).clamp(max=len(order) - 1)]  # (q, P) gallery items
    scores = similarity.gather(1, relevant).masked_fill(padding, float("-inf")).sort(dim=1).values  # best last
    lowest = scores - _TIE * torch.finfo(scores.dtype).eps
    # Rank of the i-th relevant item: i, plus every irrelevant item that is at least as similar.
    irrelevant = _at_least(similarity, lowest) - (len(place) - torch.searchsorted(scores, lowest))
    return (place + 1 + irrelevant.flip(1)).masked_fill(padding, float("inf"))


def _at_least(similarity: Tensor, lowest: Tensor) -> Tensor:
    """How many of each row's similarities (q, G) are `lowest` (q, P) or more: (q, P) float64."""
    above = torch.zeros(lowest.shape, dtype=torch.float64, device=lowest.device)
    columns = min(similarity.shape[1], _SLICE)
    rows = max(1, _SLICE // columns)
    for first in range(0, len(similarity), rows):
        some, bounds = similarity[first : first + rows], lowest[first : first + rows]
        if lowest.shape[1] > _COUNTED:
            above[first : first + rows] = some.shape[1] - torch.searchsorted(some.sort(dim=1).values, bounds)
            continue
        for part in some.split(columns, dim=1):
            # 1 or 0 in floating point, whose sum is many times faster than that of booleans.
            found = torch.empty_like(part)
            for i in range(lowest.shape[1]):
                above[first : first + rows, i] += torch.ge(part, bounds[:, i, None], out=found).sum(dim=1)
    return above


def _chunk_metrics(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Similarities (q, G) -> the three metrics (q,) of each row."""
    rank = _relevant_ranks(similarity, order, start, count)
    precision = torch.arange(1, rank.shape[1] + 1, device=rank.device) / rank  # (q, P), 0 past the last relevant item
    last = rank.gather(1, (count - 1).clamp(min=0)[:, None]).squeeze(1)
    nothing = count == 0
    return {
        "rank": rank[:, 0].masked_fill(nothing, float("nan")),
        "average_precision": (precision.sum(dim=1) / count).masked_fill(nothing, float("nan")),
        "inverse_penalty": (count / last).masked_fill(nothing, float("nan")),
    }


def retrieval_metrics(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    ranks: Sequence[int] = (1, 5, 10),
    drop_without_positive: bool = False,
) -> dict[str, float]:
    """Rank-k, mAP and mINP of ranking a gallery by cosine similarity to each query.

    Args:
        query_embeddings: (Q, D) floating point, of any norm. Queries are taken in chunks, so that the Q x G
            similarities never stand in memory at once.
        gallery_embeddings: (G, D) floating point. List each gallery item once.
        query_labels: (Q,) integers; relevant are the gallery items of the same label.
        gallery_labels: (G,) integers.
        ranks: k of rank-k: the share of queries with a relevant item among the first k. A gallery smaller than k
            is no error.
        drop_without_positive: leaves queries without a relevant item out of every mean.

    Returns:
        {"rank_1", ..., "mAP", "mINP"} in [0, 1].

    Raises:
        ValueError: as `query_metrics`; a query without a relevant item unless they are dropped; a k below 1.
    """
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks = {tuple(ranks)}: expected 1 or more")
    per_query = query_metrics(query_embeddings, gallery_embeddings, query_labels, gallery_labels)
    return _all_found(per_query, ranks, drop_without_positive)


def two_way_metrics(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """`retrieval_metrics` of both directions, from one product of the embeddings where it fits in a chunk.

    Returns:
        {"text_to_image": {...}, "image_to_text": {...}}.

    Raises:
        ValueError: as `retrieval_metrics` of either direction.
    """
    images, texts, image_labels, text_labels = _unit_sides(
        "image", image_embeddings, image_labels, "text", text_embeddings, text_labels
    )
    similarity = texts @ images.T if len(texts) * len(images) <= _CHUNK else None
    back = None if similarity is None else similarity.T.contiguous()  # a third of what the other product would take
    found = {
        "text_to_image": _by_chunk(_chunk_metrics, texts, images, text_labels, image_labels, similarity),
        "image_to_text": _by_chunk(_chunk_metrics, images, texts, image_labels, text_labels, back),
    }
    return {direction: _all_found(per_query, ranks) for direction, per_query in found.items()}


def _all_found(
    per_query: dict[str, np.ndarray], ranks: Sequence[int], drop_without_positive: bool = False
) -> dict[str, float]:
    """`summarize` of queries that all have a relevant item, of which the others may be dropped."""
    without = np.isnan(per_query["rank"])
    if without.any():
        if not drop_without_positive or without.all():
            raise ValueError(f"{without.sum()} of {len(without)} queries have no item of their label in the gallery")
        per_query = {key: values[~without] for key, values in per_query.items()}
    return summarize(per_query, ranks)


def summarize(per_query: dict[str, np.ndarray], ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The means over queries of `query_metrics`' results."""
    summary = {f"rank_{k}": float((per_query["rank"] <= k).mean()) for k in ranks}
    summary["mAP"] = float(per_query["average_precision"].mean())
    summary["mINP"] = float(per_query["inverse_penalty"].mean())
    return summary


def bootstrap_interval(
    values: np.ndarray, identities: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries that resamples whole identities.

    Captions of one identity are not independent; resampling single queries would give too narrow an interval.

    Args:
        values: (Q,) one result a query, for example 1.0 where the first answer is right.
        identities: (Q,) the identity of each query.

    Returns:
        (low, high).

    Raises:
        ValueError: lengths that differ, or fewer than two identities.
    """
    if values.shape != identities.shape:
        raise ValueError(f"values {values.shape} and identities {identities.shape}: expected the same length")
    _, index = np.unique(identities, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        raise ValueError("one identity: expected at least two to resample")
    result = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        confidence_level=confidence, n_resamples=resamples, method="percentile",
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


# -- classes: the protocol of CUB and Oxford Flowers -------------------------------------------------------------


CLASS_OPTIONS = {
    "query": ("class_mean", "caption"),
    "gallery": ("caption", "class_mean"),
    "similarity": ("cosine", "dot"),
}


def class_retrieval_metrics(
    image_embeddings: Tensor,
    image_classes: Tensor,
    caption_embeddings: Tensor,
    caption_classes: Tensor,
    k: int = 50,
    *,
    query: str = "class_mean",
    gallery: str = "caption",
    similarity: str = "cosine",
) -> dict[str, float]:
    """Image-to-text rank-1 and text-to-image AP@k, as reported on CUB and Oxford Flowers.

    Reed et al., "Learning Deep Representations of Fine-Grained Visual Descriptions" (CVPR 2016), section 5. Their
    "AP@50" is the precision among the first 50 images, averaged over the classes: not the average precision of
    `query_metrics`, and not divided by a class's number of images. Papers since differ in three more choices or leave
    them open, hence the options. Reed et al.'s code (github.com/reedscot/cvpr2016) has "class_mean", "class_mean" and
    "dot".

    Args:
        image_embeddings: (N, D) floating point, raw: neither their length nor that of the captions' is changed before
            the averaging. The similarities never stand in memory all at once.
        image_classes: (N,) integers.
        caption_embeddings: (M, D) floating point.
        caption_classes: (M,) integers, the same classes.
        k: images that are looked at.
        query: of text-to-image. "class_mean": the mean of all captions of a class is its one query; "caption": every
            caption is a query, averaged over those of a class and then over the classes.
        gallery: of image-to-text. "caption": the nearest caption must be of the image's class; "class_mean": the
            nearest mean of a class's captions must be. Averaged over the images either way.
        similarity: "cosine" or "dot" (the inner product, which long vectors of a gallery win).

    Returns:
        {"image_to_text_rank_1", f"text_to_image_ap_{k}"} in [0, 1]. AP@k has min(k, N) for its denominator, so a class
        of fewer than k images cannot reach 1.

    Raises:
        ValueError: an unknown option, k below 1, shapes that do not fit, no images or captions, embeddings that are
            not finite, a class without an image or without a caption.
    """
    for name, value in (("query", query), ("gallery", gallery), ("similarity", similarity)):
        if value not in CLASS_OPTIONS[name]:
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(CLASS_OPTIONS[name])}")
    if k < 1:
        raise ValueError(f"k = {k}: expected 1 or more")
    images, image_classes = _checked("image", image_embeddings, image_classes, "classes")
    captions, caption_classes = _checked("caption", caption_embeddings, caption_classes, "classes")
    _check_width(image=images, caption=captions)
    both = ("image", caption_classes, image_classes), ("caption", image_classes, caption_classes)
    for what, classes, others in both:
        found = classes.unique()
        missing = found[~torch.isin(found, others)]
        if len(missing):
            raise ValueError(f"{len(missing)} of {len(found)} classes have no {what}; the first is {missing[0]}")
    one_each, averaged = (captions, caption_classes), _class_means(captions, caption_classes)
    queries, query_classes = averaged if query == "class_mean" else one_each
    texts, text_classes = averaged if gallery == "class_mean" else one_each
    nearest = _hits(1, *_scaled(images, texts, similarity), image_classes, text_classes)
    precision = _hits(k, *_scaled(queries, images, similarity), query_classes, image_classes) / min(k, len(images))
    of_class, _ = _class_means(precision[:, None], query_classes)
    return {"image_to_text_rank_1": float(nearest.mean()), f"text_to_image_ap_{k}": float(of_class.mean())}


def _class_means(values: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N, D), classes (N,) -> the mean of each class (C, D) and the classes (C,), ascending."""
    found, index, counts = classes.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(found), values.shape[1], dtype=torch.float64, device=values.device)
    # In float64: rounding that depends on the order of a class's captions must not break a tie.
    sums.index_add_(0, index, values.double())
    return (sums / counts[:, None]).to(values.dtype), found


def _scaled(queries: Tensor, gallery: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """Both sides so that the product is in [-1, 1] and orders a query's gallery as `similarity` does.

    For "dot" that is q.g / (|q| max|g|): neither divisor changes a query's order, and two that differ by less than
    the tolerance times |q| max|g| tie, as the rounding of the inner product is in proportion to it.
    """
    queries = F.normalize(queries, dim=1)
    if similarity == "cosine":
        return queries, F.normalize(gallery, dim=1)
    return queries, gallery / gallery.norm(dim=1).max().clamp(min=1e-12)  # F.normalize's own


def _hits(k: int, queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How many of each query's first k gallery items are relevant, (Q,) float64."""

    def of_chunk(*sides: Tensor) -> dict[str, Tensor]:
        return {"hits": (_relevant_ranks(*sides) <= k).sum(dim=1).double()}

    hits = _by_chunk(of_chunk, queries, gallery, query_labels, gallery_labels)["hits"]
    return torch.from_numpy(hits).to(queries.device)
