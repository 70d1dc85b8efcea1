"""Retrieval metrics by cosine similarity. Relevance is by identity or class; ties count against the query.

All values are fractions in [0, 1]. Average precision (AP) is the mean, over a query's relevant items, of the precision
at each one's rank. It is not interpolated: the trapezoid rule of some person-search code gives lower values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

_CHUNK = 1 << 25  # similarities in memory at once: 128 MB in float32, twice that for both directions together
_BLOCK = 1 << 18  # similarities compared at once: they fit a core's cache
_MOST_COMPARED = 128  # with more relevant items per query than this, sorting is faster than comparing with each of them
_TIE = 32  # similarities closer than this many machine epsilons tie: rounding separates equal vectors by 2 to 14

PerQuery = Mapping[str, np.ndarray]  # what `query_metrics` returns


# -- the reported metrics ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric that is a mean over queries."""

    title: str  # the heading of its column in a table
    values: Callable[[PerQuery], np.ndarray]  # results of `query_metrics` -> one value per query, (Q,) in [0, 1]


def _within(k: int, per_query: PerQuery) -> np.ndarray:
    return (per_query["rank"] <= k).astype(float)


def declare_metrics(ranks: Sequence[int]) -> dict[str, Metric]:
    """The retrieval metrics by name, with a rank-k for each k."""
    return {f"rank_{k}": Metric(f"R@{k}", partial(_within, k)) for k in ranks} | {
        "mAP": Metric("mAP", lambda per_query: per_query["average_precision"]),
        "mINP": Metric("mINP", lambda per_query: per_query["inverse_penalty"]),
    }


# The one list of metrics: metrics.json, the history's columns, the command line's table and the model card follow it.
RETRIEVAL_METRICS = declare_metrics(ranks=(1, 5, 10))


def summarize(per_query: PerQuery, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The mean over queries of each metric: {"rank_1", ..., "mAP", "mINP"}."""
    return {name: float(metric.values(per_query).mean()) for name, metric in declare_metrics(ranks).items()}


# -- ranking a gallery ---------------------------------------------------------------------------------------------


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
        query_embeddings: (Q, D) floating point, of any norm. They are processed in chunks, so that the Q x G
            similarities are never in memory at once.
        gallery_embeddings: (G, D) floating point. List each gallery item once.
        query_labels: (Q,) integers. The gallery items of the same label are relevant.
        gallery_labels: (G,) integers.
        ranks: each k of rank-k, the share of queries with a relevant item among the first k. A gallery smaller than k
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
    without = np.isnan(per_query["rank"])
    if drop_without_positive and not without.all():
        per_query = {key: values[~without] for key, values in per_query.items()}
    return _summarize_complete(per_query, ranks)


def query_metrics(
    query_embeddings: Tensor, gallery_embeddings: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> dict[str, np.ndarray]:
    """The results of each query. `retrieval_metrics` averages them; a bootstrap resamples them.

    Args: as `retrieval_metrics`.

    Returns:
        {"rank", "average_precision", "inverse_penalty"}, each (Q,) float64: the rank (from 1) of the first relevant
        gallery item; AP; and INP, the number of relevant items divided by the rank of the last of them, whose mean is
        mINP. All three are NaN for a query without a relevant item.

    Raises:
        ValueError: shapes that do not fit, an empty gallery or query set, or embeddings that are not finite.
    """
    pair = _unit_pair(("query", query_embeddings, query_labels), ("gallery", gallery_embeddings, gallery_labels))
    return _by_chunk(_chunk_metrics, *pair)


def two_way_metrics(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_labels: Tensor,
    text_labels: Tensor,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """`retrieval_metrics` of both directions, from one matrix of similarities where it fits in a chunk.

    Returns:
        {"text_to_image": {...}, "image_to_text": {...}}.

    Raises:
        ValueError: as `retrieval_metrics` of either direction.
    """
    images, texts, image_labels, text_labels = _unit_pair(
        ("image", image_embeddings, image_labels), ("text", text_embeddings, text_labels)
    )
    similarity = texts @ images.T if len(texts) * len(images) <= _CHUNK else None
    transposed = None if similarity is None else similarity.T.contiguous()  # 3 times faster than another product
    per_query = {
        "text_to_image": _by_chunk(_chunk_metrics, texts, images, text_labels, image_labels, similarity),
        "image_to_text": _by_chunk(_chunk_metrics, images, texts, image_labels, text_labels, transposed),
    }
    return {direction: _summarize_complete(results, ranks) for direction, results in per_query.items()}


def _summarize_complete(per_query: PerQuery, ranks: Sequence[int]) -> dict[str, float]:
    """`summarize`, after a check that every query has a relevant item."""
    without = np.isnan(per_query["rank"])
    if without.any():
        raise ValueError(f"{without.sum()} of {len(without)} queries have no item of their label in the gallery")
    return summarize(per_query, ranks)


def open_set_metrics(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    false_alarm_rates: Sequence[float] = (0.01, 0.1),
    thresholds: Mapping[float, float] | None = None,
) -> dict[str, dict[float, float]]:
    """Open-set identification: a query is answered by its most similar gallery item, or not at all below a threshold.

    Queries without a relevant gallery item are the unknown ones; any answer to them is a false alarm. The measures are
    those of face recognition (Phillips, Grother and Micheals, "Evaluation Methods in Face Recognition", 2011).

    Args:
        query_embeddings, gallery_embeddings, query_labels, gallery_labels: as `retrieval_metrics`.
        false_alarm_rates: the allowed shares of unknown queries that are answered, each in [0, 1).
        thresholds: {rate: cosine} that were chosen on other data, to be used instead. The result then also has
            "false_alarm_rate": {rate: share}, what they lead to here.

    Returns:
        {"threshold": {rate: cosine}, "detection_identification_rate": {rate: share}}. The threshold is the smallest at
        which at most that share of the unknown queries has its largest cosine above it. The detection and
        identification rate is the share of known queries whose most similar item is relevant and above the threshold.
        An irrelevant item that ties with it, or a tie with the threshold, counts against the query.

    Raises:
        ValueError: as `query_metrics`; a rate out of range; no known or no unknown query.
    """
    if not all(0 <= rate < 1 for rate in false_alarm_rates):
        raise ValueError(f"false_alarm_rates = {tuple(false_alarm_rates)}: expected at least 0, below 1")
    pair = _unit_pair(("query", query_embeddings, query_labels), ("gallery", gallery_embeddings, gallery_labels))
    best, right, known = _by_chunk(_chunk_best, *pair).values()
    if known.all() or not known.any():
        raise ValueError(
            f"{known.sum()} of {len(known)} queries have an item of their label in the gallery: expected both queries "
            "with and without one"
        )
    unknown = np.sort(best[~known])[::-1]  # descending
    allowed = [np.searchsorted(np.arange(len(unknown)) / len(unknown), r, side="right") - 1 for r in false_alarm_rates]
    chosen = {rate: float(unknown[count]) for rate, count in zip(false_alarm_rates, allowed, strict=True)}
    used = chosen if thresholds is None else dict(thresholds)
    tie = _TIE * np.finfo(best.dtype).eps
    hits = {rate: right[known] & (best[known] > threshold + tie) for rate, threshold in used.items()}
    result = {
        "detection_identification_rate": {rate: float(hit.mean()) for rate, hit in hits.items()},
        "threshold": used,
    }
    if thresholds is not None:
        result["false_alarm_rate"] = {rate: float((unknown > threshold).mean()) for rate, threshold in used.items()}
    return result


def _checked(name: str, embeddings: Tensor, labels: Tensor, kind: str = "labels") -> tuple[Tensor, Tensor]:
    """Embeddings in float32 or float64 and labels on their device, or a ValueError that says which input is wrong."""
    embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"{name}_embeddings {tuple(embeddings.shape)}: expected (N, D) with N at least 1")
    if labels.shape != (len(embeddings),):
        raise ValueError(
            f"{name}_{kind} {tuple(labels.shape)}: expected ({len(embeddings)},) to match {tuple(embeddings.shape)}"
        )
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"{name}_embeddings: {int((~torch.isfinite(embeddings)).sum())} values are not finite")
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float(), labels.to(embeddings.device)


_Named = tuple[str, Tensor, Tensor]  # name, embeddings, labels


def _checked_pair(query: _Named, gallery: _Named, kind: str = "labels") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of both, then labels of both; see `_checked`."""
    (a, a_labels), (b, b_labels) = _checked(*query, kind), _checked(*gallery, kind)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{query[0]}_embeddings {tuple(a.shape)} and {gallery[0]}_embeddings {tuple(b.shape)}: D differs"
        )
    return a, b, a_labels, b_labels


def _unit_pair(query: _Named, gallery: _Named) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, a_labels, b_labels = _checked_pair(query, gallery)
    return F.normalize(a, dim=1), F.normalize(b, dim=1), a_labels, b_labels


def _by_chunk(
    function: Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]],
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    similarity: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """`function(similarity (q, G), order (G,), start (q,), count (q,))`, for q queries at a time.

    `order` sorts the gallery by label. A query's relevant items are `order[start : start + count]`.
    """
    _, label = torch.cat([query_labels, gallery_labels]).unique(return_inverse=True)
    query_label, gallery_label = label[: len(queries)], label[len(queries) :]
    order, sizes = gallery_label.argsort(), gallery_label.bincount(minlength=int(label.max()) + 1)
    start, count = (sizes.cumsum(0) - sizes)[query_label], sizes[query_label]
    step = max(1, _CHUNK // len(gallery))
    chunks = []
    for rows in (slice(first, first + step) for first in range(0, len(queries), step)):
        chunk = queries[rows] @ gallery.T if similarity is None else similarity[rows]
        chunks.append(function(chunk, order, start[rows], count[rows]))
    return {key: torch.cat([c[key] for c in chunks]).cpu().numpy() for key in chunks[0]}


def _relevant_ranks(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Ranks (q, P) float64 of each query's relevant items, ascending, then infinity.

    P is the largest of the counts, at least 1. The tolerance for ties supposes similarities in [-1, 1].
    """
    place = torch.arange(max(1, int(count.max())), device=similarity.device)  # (P,)
    padding = place >= count[:, None]  # (q, P)
    relevant = order[(start[:, None] + place).clamp(max=len(order) - 1)]  # (q, P) gallery items
    scores = similarity.gather(1, relevant).masked_fill(padding, float("-inf")).sort(dim=1).values  # best last
    lowest = scores - _TIE * torch.finfo(scores.dtype).eps
    # The i-th relevant item has rank i plus the number of irrelevant items that are at least as similar.
    irrelevant = _count_at_least(similarity, lowest) - (len(place) - torch.searchsorted(scores, lowest))
    return (place + 1 + irrelevant.flip(1)).masked_fill(padding, float("inf"))


def _count_at_least(similarity: Tensor, bounds: Tensor) -> Tensor:
    """How many of each row's similarities (q, G) reach each of its bounds (q, P): (q, P) float64."""
    counts = torch.zeros(bounds.shape, dtype=torch.float64, device=bounds.device)
    columns = min(similarity.shape[1], _BLOCK)
    rows = max(1, _BLOCK // columns)
    for first in range(0, len(similarity), rows):
        part, part_bounds = similarity[first : first + rows], bounds[first : first + rows]
        if bounds.shape[1] > _MOST_COMPARED:
            reached = part.shape[1] - torch.searchsorted(part.sort(dim=1).values, part_bounds)
            counts[first : first + rows] = reached
            continue
        for block in part.split(columns, dim=1):
            reached = torch.empty_like(block)  # 1 or 0 in floating point: many times faster to sum than booleans
            for i in range(bounds.shape[1]):
                counts[first : first + rows, i] += torch.ge(block, part_bounds[:, i, None], out=reached).sum(dim=1)
    return counts


def _chunk_metrics(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> dict[str, Tensor]:
    """The results of `query_metrics` for one chunk."""
    rank = _relevant_ranks(similarity, order, start, count)
    precision = torch.arange(1, rank.shape[1] + 1, device=rank.device) / rank  # (q, P), 0 past the last relevant item
    last = rank.gather(1, (count - 1).clamp(min=0)[:, None]).squeeze(1)
    results = {"rank": rank[:, 0], "average_precision": precision.sum(dim=1) / count, "inverse_penalty": count / last}
    return {name: values.masked_fill(count == 0, float("nan")) for name, values in results.items()}


def _chunk_best(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Of each query in a chunk: its largest similarity, whether that is a relevant item's, whether it has any."""
    right = _relevant_ranks(similarity, order, start, count)[:, 0] == 1
    return {"best": similarity.amax(dim=1), "right": right, "known": count > 0}


# -- intervals -----------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: np.ndarray, identities: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries that resamples whole identities.

    Captions of one identity are not independent, so resampling single queries would give too narrow an interval.

    Args:
        values: (Q,) one result per query, for example 1.0 where the first answer is right.
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
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


# -- classes: the protocol of CUB and Oxford Flowers ---------------------------------------------------------------

CLASS_OPTIONS = {  # the first of each is the default
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
    **options: str,
) -> dict[str, float]:
    """Image-to-text rank-1 and text-to-image AP@k, as reported on CUB and Oxford Flowers.

    Reed et al., "Learning Deep Representations of Fine-Grained Visual Descriptions" (CVPR 2016), section 5. Their
    "AP@50" is the precision among the first 50 images, averaged over the classes. It is neither the average precision
    of `query_metrics` nor divided by a class's number of images. Papers differ in three more choices or leave them
    open, hence the options. Reed et al.'s code (github.com/reedscot/cvpr2016) has "class_mean", "class_mean", "dot".

    Args:
        image_embeddings: (N, D) floating point, of any norm. Captions are averaged as they are, before any
            normalisation. The similarities are never in memory all at once.
        image_classes: (N,) integers.
        caption_embeddings: (M, D) floating point.
        caption_classes: (M,) integers, the same classes.
        k: how many of the first images count.
        options: choices of `CLASS_OPTIONS`.
            query: of text-to-image. "class_mean": the mean of a class's captions is its one query. "caption": every
                caption is a query; the mean is over those of a class, then over the classes.
            gallery: of image-to-text. "caption": the nearest caption must be of the image's class. "class_mean": the
                nearest mean of a class's captions must be. Either way the mean is over the images.
            similarity: "cosine" or "dot", the inner product, which favours long gallery vectors.

    Returns:
        {"image_to_text_rank_1", f"text_to_image_ap_{k}"} in [0, 1]. AP@k is divided by min(k, N), so a class of fewer
        than k images cannot reach 1.

    Raises:
        ValueError: an unknown option, k below 1, shapes that do not fit, no images or captions, embeddings that are
            not finite, a class without an image or without a caption.
    """
    chosen = {name: values[0] for name, values in CLASS_OPTIONS.items()} | options
    for name, value in chosen.items():
        if value not in CLASS_OPTIONS.get(name, ()):
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(CLASS_OPTIONS.get(name, CLASS_OPTIONS))}")
    if k < 1:
        raise ValueError(f"k = {k}: expected 1 or more")
    images, captions, image_classes, caption_classes = _checked_pair(
        ("image", image_embeddings, image_classes), ("caption", caption_embeddings, caption_classes), "classes"
    )
    _check_same_classes(image_classes, caption_classes)
    single, averaged = (captions, caption_classes), _class_means(captions, caption_classes)
    queries, query_classes = averaged if chosen["query"] == "class_mean" else single
    texts, text_classes = averaged if chosen["gallery"] == "class_mean" else single
    similarity = chosen["similarity"]
    nearest = _hits(1, *_scaled(images, texts, similarity), image_classes, text_classes)
    precision = _hits(k, *_scaled(queries, images, similarity), query_classes, image_classes) / min(k, len(images))
    by_class, _ = _class_means(precision[:, None], query_classes)
    return {"image_to_text_rank_1": float(nearest.mean()), f"text_to_image_ap_{k}": float(by_class.mean())}


def _check_same_classes(image_classes: Tensor, caption_classes: Tensor) -> None:
    for what, classes, others in (
        ("image", caption_classes, image_classes),
        ("caption", image_classes, caption_classes),
    ):
        found = classes.unique()
        missing = found[~torch.isin(found, others)]
        if len(missing):
            raise ValueError(f"{len(missing)} of {len(found)} classes have no {what}; the first is {missing[0]}")


def _class_means(values: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N, D), classes (N,) -> the mean of each class (C, D) and the classes (C,), ascending."""
    found, index, counts = classes.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(found), values.shape[1], dtype=torch.float64, device=values.device)
    # In float64: rounding depends on the order of a class's captions and must not break a tie.
    sums.index_add_(0, index, values.double())
    return (sums / counts[:, None]).to(values.dtype), found


def _scaled(queries: Tensor, gallery: Tensor, similarity: str) -> tuple[Tensor, Tensor]:
    """Scales both so that their product is in [-1, 1] and orders each query's gallery as `similarity` does.

    "dot" becomes q.g / (|q| max|g|). Neither divisor changes the order of a query's gallery. The rounding error of
    the inner product is proportional to |q| max|g|, so the tolerance for ties fits.
    """
    queries = F.normalize(queries, dim=1)
    if similarity == "cosine":
        return queries, F.normalize(gallery, dim=1)
    return queries, gallery / gallery.norm(dim=1).max().clamp(min=1e-12)  # the epsilon of F.normalize


def _hits(k: int, queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How many of each query's first k gallery items are relevant, (Q,) float64."""

    def count_hits(*chunk: Tensor) -> dict[str, Tensor]:
        return {"hits": (_relevant_ranks(*chunk) <= k).sum(dim=1).double()}

    return torch.from_numpy(_by_chunk(count_hits, queries, gallery, query_labels, gallery_labels)["hits"]).to(
        queries.device
    )
