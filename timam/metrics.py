"""Retrieval metrics by cosine similarity.

Conventions:

- Embeddings are (N, D) floating point of any norm, labels (N,) integers; `query_` and `gallery_` inputs are (Q, ...)
  and (G, ...). A gallery item is relevant to a query of the same label. List each gallery item once.
- Values are fractions in [0, 1]. Ties count against the query.
- Average precision (AP) is the mean, over a query's relevant items, of the precision at each one's rank. It is not
  interpolated: the trapezoid rule of some person-search code gives lower values.
- Queries are processed in chunks of at most 2^25 similarities, so memory is bounded for any Q and G.
- ValueError is raised for shapes that do not fit, no queries, an empty gallery, and embeddings that are not finite.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 25  # similarities in memory at once: 128 MB in float32. Many relevant items per query need more.
_BLOCK = 1 << 18  # similarities compared at once: they fit a core's cache
_MOST_COMPARED = 128  # with more relevant items per query than this, sorting is faster than comparing with each of them
_TIE = 32  # similarities closer than this many machine epsilons tie: rounding separates equal vectors by 2 to 14

PerQuery = Mapping[str, np.ndarray]  # what `query_metrics` returns
# Queries (Q, D) and gallery (G, D), float32 or float64, and the labels of both.
_Sides = tuple[Tensor, Tensor, Tensor, Tensor]


# -- the reported metrics ------------------------------------------------------------------------------------------


def declare_metrics(ranks: Sequence[int]) -> dict[str, Callable[[PerQuery], np.ndarray]]:
    """The metrics that are means over queries, with a rank-k for each k.

    {name: its value of each query, (Q,) in [0, 1], from the results of `query_metrics`}
    """
    return {f"rank_{k}": lambda per_query, k=k: per_query["rank"] <= k for k in ranks} | {
        "mAP": lambda per_query: per_query["average_precision"],
        "mINP": lambda per_query: per_query["inverse_penalty"],
    }


# The one list of metrics: metrics.json, the history's columns, the command line's table and the model card follow it.
RETRIEVAL_METRICS = declare_metrics(ranks=(1, 5, 10))


def _summarize(per_query: PerQuery, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    without = np.isnan(per_query["rank"])
    if without.any():
        raise ValueError(f"{without.sum()} of {len(without)} queries have no item of their label in the gallery")
    return {name: float(values(per_query).mean()) for name, values in declare_metrics(ranks).items()}


def chance(query_labels: Tensor, gallery_labels: Tensor) -> float:
    """Rank-1 of a gallery in random order: the mean over the queries of the share of it that is relevant."""
    queries, gallery = torch.as_tensor(query_labels), torch.as_tensor(gallery_labels)
    counts = torch.bincount(gallery, minlength=int(queries.max()) + 1)
    return float(counts[queries].double().mean()) / len(gallery)


# -- ranking a gallery ---------------------------------------------------------------------------------------------


def retrieval_metrics(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """{"rank_1", ..., "mAP", "mINP"}: the means over the queries of `query_metrics`.

    `ranks` are the k of rank-k, the share of queries with a relevant item among the first k; k may exceed G. Queries
    without a relevant item raise ValueError.
    """
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks = {tuple(ranks)}: expected 1 or more")
    return _summarize(query_metrics(query_embeddings, gallery_embeddings, query_labels, gallery_labels), ranks)


def query_metrics(
    query_embeddings: Tensor, gallery_embeddings: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> dict[str, np.ndarray]:
    """{"rank", "average_precision", "inverse_penalty"} of each query, (Q,) float64; NaN without a relevant item.

    They are the rank (from 1) of the first relevant item; AP; and INP, the number of relevant items divided by the rank
    of the last of them. `retrieval_metrics` averages them; a bootstrap resamples them.
    """
    sides = _checked_sides(("query", query_embeddings, query_labels), ("gallery", gallery_embeddings, gallery_labels))
    return _by_chunk(_chunk_metrics, sides)


def two_way_metrics(
    image_embeddings: Tensor, text_embeddings: Tensor, image_labels: Tensor, text_labels: Tensor
) -> dict[str, dict[str, float]]:
    """{"text_to_image", "image_to_text"}: `retrieval_metrics` of each, from one product where it fits in a chunk."""
    checked = _checked_sides(("image", image_embeddings, image_labels), ("text", text_embeddings, text_labels))
    images, texts, image_labels, text_labels = checked
    fits = len(texts) * len(images) <= _CHUNK
    similarity = F.normalize(texts, dim=1) @ F.normalize(images, dim=1).T if fits else None
    transposed = None if similarity is None else similarity.T.contiguous()  # 3 times faster than another product
    text_to_image = _by_chunk(_chunk_metrics, (texts, images, text_labels, image_labels), similarity)
    image_to_text = _by_chunk(_chunk_metrics, checked, transposed)
    return {"text_to_image": _summarize(text_to_image), "image_to_text": _summarize(image_to_text)}


def open_set_metrics(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    false_alarm_rates: Sequence[float] = (0.01, 0.1),
    thresholds: Mapping[float, float] | None = None,
) -> dict[str, dict[float, float]]:
    """Open-set identification: a query is answered by its most similar gallery item, or not at all below a threshold.

    Queries without a relevant item are the unknown ones; any answer to them is a false alarm. The measures are those of
    face recognition (Phillips, Grother and Micheals, "Evaluation Methods in Face Recognition", 2011).

    Args:
        false_alarm_rates: the allowed shares of unknown queries that are answered, each in [0, 1), else ValueError.
        thresholds: {rate: cosine} that were chosen on other data, to be used instead. The result then also has
            "false_alarm_rate": {rate: share}, what they lead to here.

    Returns:
        "threshold": {rate: cosine}, the smallest at which at most that share of the unknown queries has its largest
        cosine above it; "detection_identification_rate": {rate: share} of the known queries whose most similar item is
        relevant and above the threshold, not tied with it. ValueError where there is no known or no unknown query.
    """
    if not all(0 <= rate < 1 for rate in false_alarm_rates):
        raise ValueError(f"false_alarm_rates = {tuple(false_alarm_rates)}: expected at least 0, below 1")
    sides = _checked_sides(("query", query_embeddings, query_labels), ("gallery", gallery_embeddings, gallery_labels))
    # Of each query: its largest similarity, whether that is a relevant item's, and whether it has any.
    best, right, known = _by_chunk(
        lambda similarity, rank, count: {"best": similarity.amax(dim=1), "right": rank[:, 0] == 1, "known": count > 0},
        sides,
    ).values()
    if known.all() or not known.any():
        count = f"{known.sum()} of {len(known)} queries"
        raise ValueError(f"{count} have an item of their label in the gallery: expected some with and some without")
    unknown = np.sort(best[~known])[::-1]  # descending
    allowed = [np.searchsorted(np.arange(len(unknown)) / len(unknown), r, side="right") - 1 for r in false_alarm_rates]
    chosen = {rate: float(unknown[count]) for rate, count in zip(false_alarm_rates, allowed, strict=True)}
    used = chosen if thresholds is None else dict(thresholds)
    tie = _TIE * np.finfo(best.dtype).eps
    hits = {rate: right[known] & (best[known] > threshold + tie) for rate, threshold in used.items()}
    result = {"detection_identification_rate": {rate: float(h.mean()) for rate, h in hits.items()}, "threshold": used}
    if thresholds is not None:
        result["false_alarm_rate"] = {rate: float((unknown > threshold).mean()) for rate, threshold in used.items()}
    return result


def _checked_sides(*sides: tuple[str, Tensor, Tensor], kind: str = "labels") -> _Sides:
    """(name, embeddings, labels) of queries and gallery in float32 or float64, or a ValueError that names the input."""
    checked = []
    exact = any(torch.as_tensor(embeddings).dtype == torch.float64 for _, embeddings, _ in sides)
    for name, embeddings, labels in sides:
        embeddings, labels = torch.as_tensor(embeddings).detach(), torch.as_tensor(labels)
        shape, labels_shape = tuple(embeddings.shape), tuple(labels.shape)
        if len(shape) != 2 or shape[0] == 0:
            raise ValueError(f"{name}_embeddings {shape}: expected (N, D) with N at least 1")
        if labels_shape != shape[:1]:
            raise ValueError(f"{name}_{kind} {labels_shape}: expected {shape[:1]} to match {shape}")
        if bad := int((~torch.isfinite(embeddings)).sum()):
            raise ValueError(f"{name}_embeddings: {bad} values are not finite")
        checked.append((embeddings.double() if exact else embeddings.float(), labels.to(embeddings.device)))
    (queries, query_labels), (gallery, gallery_labels) = checked
    if queries.shape[1] != gallery.shape[1]:
        shapes = [f"{name}_embeddings {tuple(e.shape)}" for (name, *_), (e, _) in zip(sides, checked, strict=True)]
        raise ValueError(f"{' and '.join(shapes)}: D differs")
    return queries, gallery, query_labels, gallery_labels


def _by_chunk(
    function: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]], sides: _Sides, similarity: Tensor | None = None
) -> dict[str, np.ndarray]:
    """`function(similarity (q, G), _relevant_ranks (q, P), their number (q,))`, for q queries at a time."""
    queries, gallery, *labels = sides
    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    _, label = torch.cat(labels).unique(return_inverse=True)
    query_label, gallery_label = label[: len(queries)], label[len(queries) :]
    order, sizes = gallery_label.argsort(), gallery_label.bincount(minlength=int(label.max()) + 1)
    start, count = (sizes.cumsum(0) - sizes)[query_label], sizes[query_label]
    step = max(1, _CHUNK // len(gallery))
    chunks = []
    for rows in (slice(first, first + step) for first in range(0, len(queries), step)):
        chunk = queries[rows] @ gallery.T if similarity is None else similarity[rows]
        ranks = _relevant_ranks(chunk, order, start[rows], count[rows])
        chunks.append(function(chunk, ranks, count[rows]))
    return {key: torch.cat([c[key] for c in chunks]).cpu().numpy() for key in chunks[0]}


def _relevant_ranks(similarity: Tensor, order: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """Ranks (q, P) float64 of each query's at most P relevant items, then infinity; similarities are in [-1, 1].

    `order` (G,) sorts the gallery by label; the relevant items of a query are `order[start : start + count]`.
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
    for part, least, count in zip(similarity.split(rows), bounds.split(rows), counts.split(rows), strict=True):
        if bounds.shape[1] > _MOST_COMPARED:
            count[:] = part.shape[1] - torch.searchsorted(part.sort(dim=1).values, least)
            continue
        for block in part.split(columns, dim=1):
            reached = torch.empty_like(block)  # 1 or 0 in floating point: many times faster to sum than booleans
            for i in range(bounds.shape[1]):
                count[:, i] += torch.ge(block, least[:, i, None], out=reached).sum(dim=1)
    return counts


def _chunk_metrics(_: Tensor, rank: Tensor, count: Tensor) -> dict[str, Tensor]:
    """The results of `query_metrics` for one chunk."""
    precision = torch.arange(1, rank.shape[1] + 1, device=rank.device) / rank  # (q, P), 0 past the last relevant item
    last = rank.gather(1, (count - 1).clamp(min=0)[:, None]).squeeze(1)
    results = {"rank": rank[:, 0], "average_precision": precision.sum(dim=1) / count, "inverse_penalty": count / last}
    return {name: values.masked_fill(count == 0, float("nan")) for name, values in results.items()}


# -- classes: the protocol of CUB and Oxford Flowers ---------------------------------------------------------------


def class_retrieval_metrics(
    image_embeddings: Tensor, image_classes: Tensor, caption_embeddings: Tensor, caption_classes: Tensor, k: int = 50
) -> dict[str, float]:
    """{"image_to_text_rank_1", f"text_to_image_ap_{k}"} as reported on CUB and Oxford Flowers (Reed et al., CVPR 2016).

    Rank-1 is the share of the images whose nearest caption is of their class. Reed et al.'s "AP@50" is the precision
    among the first 50 images (of fewer, all), averaged over the classes; the mean of a class's captions, before any
    normalisation, is its one query. It is neither the average precision of `query_metrics` nor divided by a class's
    number of images, so a class of fewer than k cannot reach 1. Papers differ in three choices, or leave them open:
    `timam_lab.class_readings` has the others. ValueError also for k below 1, and a class without image or caption.
    """
    if k < 1:
        raise ValueError(f"k = {k}: expected 1 or more")
    images, captions, image_classes, caption_classes = _checked_sides(
        ("image", image_embeddings, image_classes), ("caption", caption_embeddings, caption_classes), kind="classes"
    )
    if missing := sorted(set(image_classes.tolist()) ^ set(caption_classes.tolist())):
        raise ValueError(f"{len(missing)} classes have no image or no caption; the first is {missing[0]}")
    nearest = hits_among_first(1, images, captions, image_classes, caption_classes)
    queries, query_classes = class_means(captions, caption_classes)
    precision = hits_among_first(k, queries, images, query_classes, image_classes) / min(k, len(images))
    return {"image_to_text_rank_1": float(nearest.mean()), f"text_to_image_ap_{k}": float(precision.mean())}


def class_means(values: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the values (N, D) of each class (C, D), and the classes (C,), ascending."""
    found, index, counts = classes.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(found), values.shape[1], dtype=torch.float64, device=values.device)
    # In float64: rounding depends on the order of a class's captions and must not break a tie.
    sums.index_add_(0, index, values.double())
    return (sums / counts[:, None]).to(values.dtype), found


def hits_among_first(
    k: int, queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> np.ndarray:
    """How many of each query's first k gallery items are relevant, (Q,) float64."""
    sides = queries, gallery, query_labels, gallery_labels
    return _by_chunk(lambda _, rank, count: {"hits": (rank <= k).sum(dim=1).double()}, sides)["hits"]
