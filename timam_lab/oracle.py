"""How well the captions of rendered pedestrians could be answered: the ranking of a reader who knows the truth.

The reader knows every person's attributes, which of them each picture hides, and which attributes each caption states,
mistakes included. A picture ranks higher the fewer of the stated attributes it contradicts, then the more it confirms.
No model that reads captions one by one is expected to do better, so this is the ceiling of a data set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from timam.files import read_json

RANKS = (1, 5, 10)
Statement = dict[str, tuple[str, ...]]  # attribute to the values that its words can mean


@dataclass(frozen=True)
class Picture:
    """What is known of one picture.

    Attributes:
        file_path: relative to imgs/, as in reid_raw.json.
        seen: the person's attributes without those that this picture hides.
        stated: what each caption says. A value that is not among those of its words contradicts the caption.
    """

    file_path: str
    identity: int
    split: str
    seen: dict[str, str]
    stated: list[Statement]


def read_truth(root: Path | str) -> list[Picture]:
    """All pictures of the rendered pedestrians in `root`, of either version of the renderer, in the order of the file.

    Raises:
        FileNotFoundError: no attributes.json there.
        ValueError: one that is not ours.
    """
    path = Path(root) / "attributes.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; only rendered pedestrians have one, and with it a ceiling")
    truth = read_json(path)
    try:
        people = {person["id"]: person for person in truth["identities"]}
        return [
            Picture(
                file_path=image["file_path"],
                identity=image["id"],
                split=people[image["id"]]["split"],
                seen={k: v for k, v in people[image["id"]]["attributes"].items() if k not in image["hidden"]},
                stated=[_stated(caption, people[image["id"]]["attributes"]) for caption in image["captions"]],
            )
            for image in truth["images"]
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe rendered pedestrians ({error!r})") from error


def _stated(caption: dict, attributes: dict[str, str]) -> Statement:
    if "stated" in caption:
        return {name: tuple(values) for name, values in caption["stated"].items()}
    values = {name: attributes[name] for name in caption["mentioned"]}  # version 1: a word means one value
    values |= {wrong["attribute"]: wrong["stated"] for wrong in caption["wrong"]}
    return {name: (value,) for name, value in values.items()}


def contradicted(stated: Statement, seen: dict[str, str]) -> list[str]:
    """The attributes that a caption states and a picture shows otherwise; a hidden attribute contradicts nothing."""
    return [name for name, values in stated.items() if name in seen and seen[name] not in values]


def oracle(root: Path | str, split: str = "test") -> dict[str, dict[str, dict[str, float]]]:
    """The oracle's results on one split.

    Returns:
        {"text_to_image", "image_to_text"}, each {"ties_against", "ties_at_random", "chance"}, each {"rank_1",
        "rank_5", "rank_10", "mAP"} in [0, 1]. Pictures or captions that the oracle cannot tell apart are ranked to its
        disadvantage or in random order (the expected value); chance ranks everything in random order.

    Raises:
        FileNotFoundError: as `read_truth`.
        ValueError: as `read_truth`; no pictures in that split.
    """
    pictures = [picture for picture in read_truth(root) if picture.split == split]
    if not pictures:
        raise ValueError(f"{root} has no pictures in its {split} split")
    captions, shown = fit_features([s for p in pictures for s in p.stated], [p.seen for p in pictures])
    of_picture = np.array([p.identity for p in pictures])
    of_caption = np.repeat(of_picture, [len(p.stated) for p in pictures])
    return {"text_to_image": ranking_metrics(captions, shown, of_caption, of_picture),
            "image_to_text": ranking_metrics(shown, captions, of_picture, of_caption)}  # fmt: skip


def fit_features(stated: list[Statement], seen: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Captions (M, F) and pictures (N, F) as float32 vectors whose product says how well they fit: fewest
    contradictions, then most agreements. The products are whole numbers, so ties are exact."""
    values = sorted({value for picture in seen for value in picture.items()})
    names = sorted({name for name, _ in values})
    accepted = _table([[(name, v) for name, vs in s.items() for v in vs] for s in stated], values)
    shown = _table([picture.items() for picture in seen], values)
    # Contradicted is what is stated and can be seen, without what agrees. One outweighs all agreements.
    weight = len(names) + 1
    captions = np.hstack([(weight + 1) * accepted, -weight * _table(stated, names)])
    return captions, np.hstack([shown, _table(seen, names)])


def _table(rows: Iterable[Iterable], columns: list) -> np.ndarray:
    """(rows, columns) float32: 1 where a row holds the column's key."""
    index = {key: k for k, key in enumerate(columns)}
    ones_of = [[index[key] for key in row if key in index] for row in rows]
    table = np.zeros((len(ones_of), len(columns)), np.float32)
    for row, ones in zip(table, ones_of, strict=True):
        row[ones] = 1
    return table


def ranking_metrics(
    queries: np.ndarray, gallery: np.ndarray, query_labels: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Rank-k and mAP of ranking a gallery by inner product, with ties.

    Args:
        queries, gallery: (Q, F), (G, F).
        query_labels, labels: (Q,), (G,); relevant are the items of the query's label, at least one.

    Returns:
        {"ties_against", "ties_at_random", "chance"}, as `oracle`.
    """
    scores: dict[str, list[np.ndarray]] = {"ties_against": [], "ties_at_random": [], "chance": []}
    for query, label in zip(queries, query_labels, strict=True):  # never all products at once
        relevant = labels == label
        _, tied = np.unique(-(gallery @ query), return_inverse=True)  # 0 is the best
        scores["ties_against"].append(_expected(2 * tied + relevant, relevant))
        scores["ties_at_random"].append(_expected(tied, relevant))
        scores["chance"].append(_expected(np.zeros_like(tied), relevant))
    names = [*(f"rank_{k}" for k in RANKS), "mAP"]
    return {kind: dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True)) for kind, rows in scores.items()}


def _expected(tied: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Expected rank-1, rank-5, rank-10 and average precision of one query over all orders of tied items.

    McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores" (ECIR 2008), section 3.

    Args:
        tied: (G,) the number of each item's group; items of one group tie, and smaller numbers come first.
        relevant: (G,) bool.
    """
    sizes = np.bincount(tied)
    hits = np.bincount(tied, weights=relevant)
    order = np.repeat(np.arange(len(sizes)), sizes)  # group of each position
    before, hits_before = (np.cumsum(x) - x for x in (sizes, hits))
    position = np.arange(len(tied)) + 1.0
    n, r, earlier = sizes[order], hits[order], position - 1 - before[order]
    others = earlier * (r - 1) / np.maximum(n - 1, 1)  # expected relevant items before it in its own group
    precision = (hits_before[order] + others + 1) / position
    average = float((r / n * precision).sum() / relevant.sum())
    first = order == np.flatnonzero(hits)[0]  # of the first group with a relevant item, missed by its first k items:
    # (n - r) / n * (n - r - 1) / (n - 1) * ..., one factor a position
    missed = np.cumprod(np.where(first, np.maximum(n - r - earlier, 0) / (n - earlier), 1.0))
    return np.array([1 - missed[min(k, len(tied)) - 1] for k in RANKS] + [average])
