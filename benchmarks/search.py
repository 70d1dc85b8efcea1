"""Search in large galleries of clustered unit vectors, beside a plain numpy product with argpartition.

    python benchmarks/search.py --output reports/benchmarks/search.md

Exact: 100,000 embeddings, D = 512, one query and 100. With faiss: 1,000,000, with recall@10 against exact search.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from timing import alternate, seconds

from timam.provenance import provenance
from timam.search import Gallery


def clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, width) float32 unit vectors in groups of ten, as pictures of the same identities lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count // 10, width), dtype=np.float32)
    rows = np.empty((count, width), np.float32)
    for start in range(0, count, 100_000):
        stop = min(start + 100_000, count)
        part = centres[np.arange(start, stop) // 10] + 0.7 * rng.standard_normal((stop - start, width), np.float32)
        rows[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def plain(embeddings: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The usual way: the product of everything, argpartition, a sort of what is left."""
    scores = queries @ embeddings.T
    rows = np.argpartition(-scores, k, axis=1)[:, :k]
    found = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-found, axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(rows, order, axis=1)


def milliseconds(**calls: Callable[[], Any]) -> list[float]:
    """Medians of 15, in turn so that a busy moment hits all of them."""
    found = alternate(15, **{name: partial(seconds, call) for name, call in calls.items()})
    return [1000 * value for value in found.values()]


def memory_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--small", default=100_000, help="Embeddings searched exactly.")
@click.option("--large", default=1_000_000, help="Embeddings searched through faiss.")
@click.option("--width", default=512)
def main(output: Path, small: int, large: int, width: int) -> None:
    """Write the table to OUTPUT."""
    rows = []
    embeddings = clustered(small, width)
    noise, other = (np.random.default_rng(seed).standard_normal((100, width), np.float32) for seed in (1, 2))
    queries = embeddings[np.linspace(0, small - 1, 100).astype(int)] + 0.5 * noise / width**0.5
    with TemporaryDirectory() as folder:
        Gallery(embeddings, [str(i) for i in range(small)], stamps=np.zeros((small, 2), np.int64)).save(f"{folder}/g")
        gallery = Gallery.load(f"{folder}/g")
        for count in (1, 100):
            some = queries[:count]
            assert (gallery.search(some, 10)[1] == plain(embeddings, some, 10)[1]).mean() > 0.999
            usual, ours = milliseconds(
                usual=partial(plain, embeddings, some, 10), ours=partial(gallery.search, some, 10)
            )
            rows.append((f"exact, {small:,} embeddings, {count} quer{'y' if count == 1 else 'ies'}: time",
                         f"{ours:.1f} ms, {usual / ours:.2f} times as fast as numpy ({usual:.1f} ms)"))  # fmt: skip
    embeddings = clustered(large, width, seed=2)
    queries = embeddings[np.linspace(0, large - 1, 100).astype(int)] + 0.5 * noise / width**0.5
    with TemporaryDirectory() as folder:
        gallery = Gallery(embeddings, [str(i) for i in range(large)], stamps=np.zeros((large, 2), np.int64))
        started = time.perf_counter()
        gallery.add_index(embeddings[np.linspace(7, large - 3, 100).astype(int)] + 0.5 * other / width**0.5)
        what = f"faiss index over {large:,}: time to build, lists, and how many of them a query looks into"
        taken = time.perf_counter() - started
        rows.append((what, f"{taken:.0f} s, {gallery.index.nlist:,}, {gallery.index.nprobe:,}"))
        gallery.save(f"{folder}/g")
        size = (Path(folder) / "g" / "index.faiss").stat().st_size / 2**30
        rows.append(("its size, beside the embeddings'", f"{size:.2f} GiB, {embeddings.nbytes / 2**30:.2f} GiB"))
        del gallery
        embeddings = queries  # lets go of the rows: from here on they are read from the disk
        started = time.perf_counter()
        gallery = Gallery.load(f"{folder}/g")
        rows.append(("opening the saved gallery with its index", f"{time.perf_counter() - started:.1f} s"))
        exact, found = milliseconds(
            exact=partial(gallery.search, queries[:1], 10, exact=True), faiss=partial(gallery.search, queries[:1], 10)
        )
        rows.append(("one query: exact, with faiss", f"{exact:.0f} ms, {found:.1f} ms"))
        rows.append(("recall@10 against exact search, 100 queries", f"{gallery.recall(queries):.3f}"))
    rows.append(("largest memory of the process, both galleries' making included", f"{memory_gib():.1f} GiB"))
    made = provenance(torch.device("cpu"))
    lines = ["# Search", "", f"`python benchmarks/search.py --output {output}` at commit {made['commit']}, "
             f"{made['device']}, {made['threads']} threads, torch {made['torch']}. Medians of 15.",
             "", "| | |", "|---|---|",
             *(f"| {name} | {value} |" for name, value in rows), ""]  # fmt: skip
    output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
