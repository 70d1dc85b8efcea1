"""Metrics of a test set compared with the usual way: whole similarity matrix, full argsort, Python loops.

python -m timam_lab.speed.metrics --output reports/benchmarks/evaluation.md
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import normalize

from timam.metrics import retrieval_metrics, two_way_metrics
from timam_lab.speed.timing import cost, medians, report


def embeddings(images: int, texts: int, identities: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, texts and their identities: embeddings with some signal, at the sizes of a benchmark's test split."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(identities, width, generator=generator)
    image_ids, text_ids = torch.arange(images) % identities, torch.arange(texts) % identities
    made = [centres[ids] + 3 * torch.randn(len(ids), width, generator=generator) for ids in (image_ids, text_ids)]
    return made[0], made[1], image_ids, text_ids


def usual(similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, loops: bool) -> dict[str, float]:
    """Full argsort, cumulative sums, a Python loop over the queries for mINP. Ours, after the common public code.

    Args:
        loops: precision by a Python loop over the ranks, as in most of that code (IRRA's, for example); else by one
            division.
    """
    hits = gallery_ids[similarity.argsort(dim=1, descending=True)] == query_ids[:, None]
    right = hits.cumsum(1)
    values = {f"rank_{k}": float((right[:, k - 1] > 0).float().mean()) for k in (1, 5, 10)}
    last = [row.nonzero()[-1] for row in hits]
    values["mINP"] = float(torch.cat([right[i][rank] / (rank + 1.0) for i, rank in enumerate(last)]).mean())
    if loops:
        precision = torch.stack([right[:, i] / (i + 1.0) for i in range(right.shape[1])], dim=1)
    else:
        precision = right / torch.arange(1, right.shape[1] + 1, device=right.device)
    values["mAP"] = float(((precision * hits).sum(1) / hits.sum(1)).mean())
    return values


def usual_one_way(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, loops: bool = True) -> Any:
    return usual(normalize(queries, dim=1) @ normalize(gallery, dim=1).T, query_ids, gallery_ids, loops)


def usual_two_way(
    images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor, loops: bool = True
) -> dict[str, dict[str, float]]:
    """`usual` in both directions, from one product."""
    similarity = normalize(texts, dim=1) @ normalize(images, dim=1).T
    directions = {"text_to_image": (similarity, text_ids, image_ids)}
    directions["image_to_text"] = (similarity.T, image_ids, text_ids)
    return {name: usual(*given, loops) for name, given in directions.items()}


def row(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], given: Any, timed: Any) -> dict[str, str]:
    """A row of the table.

    Args:
        theirs: takes `loops`.
        given: the embeddings and identities.
        timed: `medians` with its rounds and clock.
    """
    ways = {"product": lambda: given[0] @ given[1].T, "ours": partial(ours, *given), "loops": partial(theirs, *given)}
    taken = timed(contenders={**ways, "vectorised": partial(theirs, *given, loops=False)})
    fast = taken["ours"]
    cells = {"matrix product alone": f"{taken['product']:.3f}", "ours": f"{fast:.3f}"}
    named = {"the usual way": taken["loops"], "its loop over the ranks vectorised": taken["vectorised"]}
    return {"": name, **cells, **{what: f"{value:.2f}: {value / fast:.1f} times" for what, value in named.items()}}


def large_gallery(queries: int, size: int = 1_000_000) -> str:
    """Time and memory of a gallery of a million; to be called first, as memory is the process's largest so far."""
    gallery = torch.randn(size, 128, generator=torch.Generator().manual_seed(0))
    labels, near = torch.arange(size), gallery[:queries] + torch.randn(queries, 128)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = cost(lambda: retrieval_metrics(near, gallery, labels[:queries], labels))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return f"{queries:,} queries, a gallery of {size:,} (D = 128): {seconds:.0f} s, {memory:.2f} GiB more memory."


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--large", default=10_000, help="Queries to a gallery of a million.")
@click.option("--rounds", default=5)
@click.option("--processor", is_flag=True, help="Seconds of processor time: for a machine that others use too.")
def main(output: Path, large: int, rounds: int, processor: bool) -> None:
    """Writes the table to OUTPUT."""
    million = large_gallery(large)
    images, texts, image_ids, text_ids = both = embeddings(3074, 6156, 1000, 512)
    timed = partial(medians, rounds, clock="processor" if processor else "seconds")
    rows = [
        row("text to image", retrieval_metrics, usual_one_way, (texts, images, text_ids, image_ids), timed),
        row("image to text", retrieval_metrics, usual_one_way, (images, texts, image_ids, text_ids), timed),
        row("both directions", two_way_metrics, usual_two_way, both, timed),
    ]
    kind = "Processor seconds of all threads" if processor else "Seconds"
    intro = f"{kind}, medians of {rounds}; CUHK-PEDES' test size. Aim: 10 times."
    report(output, __file__, "Evaluation", intro, rows, million)


if __name__ == "__main__":
    main()
