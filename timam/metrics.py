"""Retrieval metrics: cosine similarity, relevance by identity, ties count against the query.

All values are fractions in [0, 1]. AP is the mean over a query's relevant items of the precision at each one's
rank (non-interpolated; the trapezoid rule that some person-search code uses gives lower values).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 24  # similarities held at a time: 64 MB in float32
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
    queries, query_labels = _checked("query", query_embeddings, query_labels)
    gallery, gallery_labels = _checked("gallery", gallery_embeddings, gallery_labels)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_embeddings {tuple(queries.shape)} and gallery_embeddings {tuple(gallery.shape)}: D differs"
        )
    step = max(1, _CHUNK // len(gallery))
    chunks = [
        _chunk_metrics(queries[start : start + step] @ gallery.T, query_labels[start : start + step], gallery_labels)
        for start in range(0, len(queries), step)
    ]
    return {key: torch.cat([c[key] for c in chunks]).cpu().numpy() for key in chunks[0]}


def _checked(role: str, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    embeddings, labels = torch.as_tensor(embeddings), torch.as_tensor(labels)
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"{role}_embeddings {tuple(embeddings.shape)}: expected (N, D) with N at least 1")
    if labels.shape != (len(embeddings),):
        raise ValueError(
            f"{role}_labels {tuple(labels.shape)}: expected ({len(embeddings)},) to match {tuple(embeddings.shape)}"
        )
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"{role}_embeddings: {int((~torch.isfinite(embeddings)).sum())} values are not finite")
    full = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return F.normalize(full, dim=1), labels.to(embeddings.device)


def _chunk_metrics(similarity: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> dict[str, Tensor]:
    """Similarities (q, G) -> the three metrics (q,) of each row."""
    relevant = query_labels[:, None] == gallery_labels[None, :]  # (q, G)
    count = relevant.sum(dim=1)  # (q,)
    most = max(1, int(count.max()))
    scores = similarity.masked_fill(~relevant, float("-inf")).topk(most, dim=1).values  # (q, P), best first
    # Rank of the i-th relevant item: i, plus every irrelevant item that is at least as similar.
    irrelevant = similarity.masked_fill(relevant, float("-inf")).sort(dim=1).values
    lowest = scores - _TIE * torch.finfo(scores.dtype).eps
    above = similarity.shape[1] - torch.searchsorted(irrelevant, lowest)  # irrelevant ones at or above
    position = torch.arange(1, most + 1, device=similarity.device)  # (P,)
    rank = (position + above).double()
    valid = position <= count[:, None]
    precision = torch.where(valid, position / rank, 0.0)
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
