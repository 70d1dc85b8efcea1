"""Search through a faiss index over clustered unit vectors, compared with exact search.

python -m timam_lab.speed.search --output reports/benchmarks/search.md
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np

from timam_lab.approximate import IndexedGallery
from timam_lab.galleries import KeptGallery
from timam_lab.speed.timing import cost, medians, report, scratch


def clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, width) float32 unit vectors in groups of ten, like pictures of the same identities."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count // 10, width), dtype=np.float32)
    rows = np.empty((count, width), np.float32)
    for start in range(0, count, 100_000):
        stop = min(start + 100_000, count)
        part = centres[np.arange(start, stop) // 10] + 0.7 * rng.standard_normal((stop - start, width), np.float32)
        rows[start:stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def near(rows: np.ndarray, first: int, seed: int) -> np.ndarray:
    """100 queries near rows that are spread over all, from `first` on."""
    noise = np.random.default_rng(seed).standard_normal((100, rows.shape[1]), np.float32)
    return rows[np.linspace(first, len(rows) - 3, 100).astype(int)] + 0.5 * noise / rows.shape[1] ** 0.5


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--count", default=1_000_000, help="Embeddings.")
@click.option("--width", default=512)
@click.option("--rounds", default=15)
def main(output: Path, count: int, width: int, rounds: int) -> None:
    """Writes the table to OUTPUT."""
    embeddings = clustered(count, width)
    queries, others = near(embeddings, 0, seed=1), near(embeddings, 7, seed=2)
    size = embeddings.nbytes / 2**30
    names = [str(i) for i in range(count)]
    gallery = KeptGallery(embeddings, names, stamps=np.zeros((count, 2), np.int64))
    with scratch() as folder:
        gallery.save(folder)
        del gallery, embeddings  # from here on the rows are read from the disk
        gallery = KeptGallery.load(folder)
        build, _ = cost(partial(IndexedGallery.open, gallery, folder, queries=others))
        indexed = IndexedGallery.open(gallery, folder)
        lists = f"{indexed.index.nlist:,}, {indexed.index.nprobe:,}"
        index = sum(file.stat().st_size for file in folder.glob("*.faiss")) / 2**30
        exact, faiss = (partial(g.search, queries[:1], 10) for g in (gallery, indexed))
        taken = medians(rounds, {"exact": exact, "faiss": faiss})
        recall = indexed.recall(queries)
    found = {
        "one query: exact, with faiss": f"{1000 * taken['exact']:.0f} ms, {1000 * taken['faiss']:.1f} ms",
        "recall@10 of faiss against exact search, 100 queries": f"{recall:.3f}",
        "building the index": f"{build:.0f} s",
        "lists of the index, and how many of them a query reads": lists,
        "size of the index, of the embeddings": f"{index:.2f} GiB, {size:.2f} GiB",
    }
    intro = f"{count:,} embeddings, D = {width}; medians of {rounds}."
    report(output, __file__, "Search", intro, [{"": what, "measured": value} for what, value in found.items()])


if __name__ == "__main__":
    main()
