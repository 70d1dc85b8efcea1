"""Metrics of a test set beside the usual way of this field: whole similarity matrix, full argsort, Python loops.

python benchmarks/evaluation.py --output reports/benchmarks/evaluation.md
"""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import torch
from timing import alternate, processor_seconds, seconds

from timam.metrics import retrieval_metrics, two_way_metrics
from timam.provenance import provenance

DIRECTIONS = ("text to image", "image to text")


def test_set(images: int, texts: int, identities: int, width: int) -> tuple[torch.Tensor, ...]:
    """Embeddings with some signal, at the sizes of a benchmark's test split."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(identities, width, generator=generator)
    labels = torch.arange(images) % identities, torch.arange(texts) % identities
    noise = (torch.randn(len(side), width, generator=generator) for side in labels)
    return *(centres[side] + 3 * n for side, n in zip(labels, noise, strict=True)), *labels


def usual(similarity: torch.Tensor, query_ids: torch.Tensor, gallery_ids: torch.Tensor, loops: bool) -> dict:
    """Full argsort, cumulative sums, a Python loop over the queries for mINP. Ours, after the peers.

    Args:
        loops: precision by a Python loop over the ranks, as in the code that most of them share (IRRA's, say); else
            by one division.
    """
    order = similarity.argsort(dim=1, descending=True)
    hits = gallery_ids[order] == query_ids[:, None]
    seen = hits.cumsum(1)
    found = {f"rank_{k}": float((seen[:, k - 1] > 0).float().mean()) for k in (1, 5, 10)}
    last = [row.nonzero()[-1] for row in hits]
    found["mINP"] = float(torch.cat([seen[i][rank] / (rank + 1.0) for i, rank in enumerate(last)]).mean())
    if loops:
        precision = torch.stack([seen[:, i] / (i + 1.0) for i in range(seen.shape[1])], dim=1)
    else:
        precision = seen / torch.arange(1, seen.shape[1] + 1, device=seen.device)
    found["mAP"] = float(((precision * hits).sum(1) / hits.sum(1)).mean())
    return found


def usual_product(texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize
    return unit(texts, dim=1) @ unit(images, dim=1).T


LARGE = """
import resource, sys, torch, time
from timam.metrics import retrieval_metrics, two_way_metrics
gallery = torch.randn(1_000_000, 128, generator=torch.Generator().manual_seed(0))
count = int(sys.argv[1])
queries = gallery[:count] + torch.randn(count, 128)
labels = torch.arange(1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
retrieval_metrics(queries, gallery, labels[:count], labels)
print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--large", default=10_000, help="Queries to a gallery of a million, in a process of its own; 0: none.")
@click.option("--rounds", default=5)
@click.option("--processor", is_flag=True, help="Seconds of processor time: for a machine that others use too.")
def main(output: Path, large: int, rounds: int, processor: bool) -> None:
    """Write the table to OUTPUT."""
    images, texts, image_ids, text_ids = test_set(3074, 6156, 1000, 512)
    sides = {
        "text to image": (texts, images, text_ids, image_ids),
        "image to text": (images, texts, image_ids, text_ids),
    }

    def theirs(direction: str, loops: bool, similarity: torch.Tensor | None = None) -> dict:
        similarity = usual_product(texts, images) if similarity is None else similarity
        if direction == "text to image":
            return usual(similarity, text_ids, image_ids, loops)
        return usual(similarity.T, image_ids, text_ids, loops)

    def both(loops: bool) -> list[dict]:
        similarity = usual_product(texts, images)
        return [theirs(direction, loops, similarity) for direction in DIRECTIONS]

    timed = processor_seconds if processor else seconds
    ours = {name: partial(retrieval_metrics, *sides[name]) for name in DIRECTIONS}
    ours["both directions"] = partial(two_way_metrics, images, texts, image_ids, text_ids)
    for name, expected in zip(DIRECTIONS, both(True), strict=True):
        for found in (ours[name](), ours["both directions"]()[name.replace(" ", "_")]):
            worst = max(abs(found[key] - expected[key]) for key in expected)
            assert worst < 5e-4, (name, found, expected)  # ours counts ties within rounding against the query
    rows = []
    for name, mine in ours.items():
        peers = both if name == "both directions" else partial(theirs, name)
        taken = alternate(
            rounds,
            ours=lambda f=mine: timed(f),
            loops=lambda f=peers: timed(lambda: f(True)),
            vectorised=lambda f=peers: timed(lambda: f(False)),
            floor=lambda: timed(lambda: texts @ images.T),
        )
        fast = taken["ours"]
        rows.append(
            (
                f"CUHK-PEDES' test size, {name}: seconds, the product alone",
                f"{fast:.3f}, {taken['floor']:.3f}; the usual way {taken['loops']:.2f}: **{taken['loops'] / fast:.1f} "
                f"times**; its loop over the ranks vectorised {taken['vectorised']:.2f}: "
                f"**{taken['vectorised'] / fast:.1f} times**",
            )
        )
    if large:
        printed = subprocess.run(
            [sys.executable, "-c", LARGE, str(large)], capture_output=True, text=True, check=True
        ).stdout
        large_seconds, memory = map(float, printed.split())
        rows.append((f"{large:,} queries, a gallery of 1,000,000 (D = 128): seconds, memory over the embeddings",
                     f"{large_seconds:.0f}, {memory:.2f} GiB"))  # fmt: skip
    made = provenance(torch.device("cpu"))
    command = " ".join(["python", "benchmarks/evaluation.py", *sys.argv[1:]])
    kind = "Processor seconds of all threads" if processor else "Seconds"
    lines = ["# Evaluation", "", f"`{command}` at commit {made['commit']}, {made['device']}, {made['threads']} "
             f"thread{'s' * (made['threads'] > 1)}, torch {made['torch']}. {kind}, medians of {rounds}; values agree "
             "to 5e-4, as ours counts ties within rounding against the query. Aim: 10 times.",
             "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]  # fmt: skip
    output.write_text("\n".join(lines))
    print("\n".join(lines), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
