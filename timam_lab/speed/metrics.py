"""Metrics of a test set compared with the usual way: whole similarity matrix, full argsort, Python loops.

python -m timam_lab.speed.metrics --output reports/benchmarks/evaluation.md
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import normalize

from timam.metrics import retrieval_metrics, two_way_metrics
from timam_lab.speed.timing import medians, report, table

LARGE = """
import resource, sys, torch, time
from timam.metrics import retrieval_metrics
gallery = torch.randn(1_000_000, 128, generator=torch.Generator().manual_seed(0))
count = int(sys.argv[1])
queries = gallery[:count] + torch.randn(count, 128)
labels = torch.arange(1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
retrieval_metrics(queries, gallery, labels[:count], labels)
print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


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


def usual_two_way(
    images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor, loops: bool = True
) -> dict[str, dict[str, float]]:
    """`usual` in both directions, from one product."""
    similarity = normalize(texts, dim=1) @ normalize(images, dim=1).T
    return {"text_to_image": usual(similarity, text_ids, image_ids, loops),
            "image_to_text": usual(similarity.T, image_ids, text_ids, loops)}  # fmt: skip


def usual_one_way(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, loops: bool) -> Any:
    return usual(normalize(queries, dim=1) @ normalize(gallery, dim=1).T, query_ids, gallery_ids, loops)


def compared(name: str, ours: Any, theirs: Any, rounds: int, clock: str) -> tuple[str, str]:
    """A row of the table. `theirs` takes `loops`."""
    ways = {"ours": ours, "loops": partial(theirs, loops=True), "vectorised": partial(theirs, loops=False)}
    taken = medians(rounds, ways, clock=clock)
    fast = taken["ours"]
    return f"CUHK-PEDES' test size, {name}", (
        f"{fast:.3f}; the usual way {taken['loops']:.2f}: **{taken['loops'] / fast:.1f} times**; its loop over the "
        f"ranks vectorised {taken['vectorised']:.2f}: **{taken['vectorised'] / fast:.1f} times**"
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--large", default=10_000, help="Queries to a gallery of a million, in a process of its own; 0: none.")
@click.option("--rounds", default=5)
@click.option("--processor", is_flag=True, help="Seconds of processor time: for a machine that others use too.")
def main(output: Path, large: int, rounds: int, processor: bool) -> None:
    """Writes the table to OUTPUT."""
    images, texts, image_ids, text_ids = both = embeddings(3074, 6156, 1000, 512)
    expected, found = usual_two_way(*both), two_way_metrics(*both)
    for direction, values in expected.items():
        for name, value in values.items():
            assert abs(found[direction][name] - value) < 5e-4, (direction, name)
    clock = "processor" if processor else "seconds"
    rows = []
    for name, sides in (("text to image", (texts, images, text_ids, image_ids)),
                        ("image to text", (images, texts, image_ids, text_ids))):  # fmt: skip
        rows.append(compared(name, partial(retrieval_metrics, *sides), partial(usual_one_way, *sides), rounds, clock))
    rows.append(
        compared("both directions", partial(two_way_metrics, *both), partial(usual_two_way, *both), rounds, clock)
    )
    product = medians(rounds, {"product": lambda: texts @ images.T}, clock=clock)["product"]
    rows.append(("the matrix product alone", f"{product:.3f}"))
    if large:
        command = [sys.executable, "-c", LARGE, str(large)]
        taken, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        rows.append((f"{large:,} queries, a gallery of 1,000,000 (D = 128): seconds, memory over the embeddings",
                     f"{float(taken):.0f}, {float(memory):.2f} GiB"))  # fmt: skip
    kind = "Processor seconds of all threads" if processor else "Seconds"
    intro = (
        f"{kind}, medians of {rounds}. The values agree to 5e-4; ours counts ties within rounding against the query. "
        "Aim: 10 times."
    )
    report(output, __file__, "Evaluation", intro, table(["", ""], rows))


if __name__ == "__main__":
    main()
