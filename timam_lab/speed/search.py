"""Search in large galleries of clustered unit vectors, compared with a plain numpy product and argpartition.

    python -m timam_lab.speed.search --output reports/benchmarks/search.md

Exact: 100,000 embeddings, D = 512, one query and 100. With faiss: 1,000,000, with recall@10 against exact search.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from pathlib import Path

import click
import numpy as np

from timam.search import Gallery
from timam_lab.speed.timing import medians, report, scratch, table

ROUNDS = 15
Rows = list[tuple[str, str]]


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


def plain(embeddings: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The usual way: the whole product, argpartition, and a sort of the k best."""
    scores = queries @ embeddings.T
    rows = np.argpartition(-scores, k, axis=1)[:, :k]
    best = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)


def gallery_of(embeddings: np.ndarray) -> Gallery:
    names = [str(i) for i in range(len(embeddings))]
    return Gallery(embeddings, names, stamps=np.zeros((len(names), 2), np.int64))


def exact_rows(count: int, width: int, folder: Path) -> Rows:
    embeddings = clustered(count, width)
    queries = near(embeddings, 0, seed=1)
    gallery_of(embeddings).save(folder)
    gallery, rows = Gallery.load(folder), []
    for some in (queries[:1], queries):
        assert (gallery.search(some, 10)[1] == plain(embeddings, some, 10)[1]).mean() > 0.999
        ways = {"usual": partial(plain, embeddings, some, 10), "ours": partial(gallery.search, some, 10)}
        taken = medians(ROUNDS, ways)
        what = f"exact, {count:,} embeddings, {len(some)} quer{'y' if len(some) == 1 else 'ies'}: time"
        usual, ours = 1000 * taken["usual"], 1000 * taken["ours"]
        rows.append((what, f"{ours:.1f} ms, {usual / ours:.2f} times as fast as numpy ({usual:.1f} ms)"))
    return rows


def faiss_rows(count: int, width: int, folder: Path) -> Rows:
    embeddings = clustered(count, width, seed=2)
    queries = near(embeddings, 0, seed=1)
    gallery, size = gallery_of(embeddings), embeddings.nbytes / 2**30
    started = time.perf_counter()
    gallery.add_index(near(embeddings, 7, seed=2))
    built = f"{time.perf_counter() - started:.0f} s, {gallery.index.nlist:,}, {gallery.index.nprobe:,}"
    gallery.save(folder)
    index = sum(file.stat().st_size for file in folder.glob("*.faiss")) / 2**30
    del gallery, embeddings  # from here on the rows are read from the disk
    started = time.perf_counter()
    gallery = Gallery.load(folder)
    opened = time.perf_counter() - started
    search = partial(gallery.search, queries[:1], 10)
    taken = medians(ROUNDS, {"exact": partial(search, exact=True), "faiss": search})
    return [
        (f"faiss index over {count:,}: time to build, lists, and how many of them a query reads", built),
        ("size of the index, of the embeddings", f"{index:.2f} GiB, {size:.2f} GiB"),
        ("opening the saved gallery with its index", f"{opened:.1f} s"),
        ("one query: exact, with faiss", f"{1000 * taken['exact']:.0f} ms, {1000 * taken['faiss']:.1f} ms"),
        ("recall@10 against exact search, 100 queries", f"{gallery.recall(queries):.3f}"),
    ]


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--small", default=100_000, help="Embeddings searched exactly.")
@click.option("--large", default=1_000_000, help="Embeddings searched through faiss.")
@click.option("--width", default=512)
def main(output: Path, small: int, large: int, width: int) -> None:
    """Writes the table to OUTPUT."""
    with scratch() as work:
        rows = exact_rows(small, width, work / "exact") + faiss_rows(large, width, work / "faiss")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(("largest memory of the process, the making of both galleries included", f"{peak:.1f} GiB"))
    report(output, __file__, "Search", f"Medians of {ROUNDS}.", table(["", ""], rows))


if __name__ == "__main__":
    main()
