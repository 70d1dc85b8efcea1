"""Wrong first answers, and on rendered data who is at fault: the model, or a sentence that fits several people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from timam.data import Split
from timam.evaluation import Embeddings, per_query
from timam_lab import oracle
from timam_lab.statistics import bootstrap_interval

UNDECIDED, MISLED, MISTAKEN = "sentence undecided", "sentence misleads", "model mistaken"
IN_WORDS = {  # attributes of the rendered pedestrians whose names say too little
    "upper": "top", "upper_colour": "colour of the top", "upper_pattern": "pattern of the top",
    "upper_second": "second colour of the top", "inner_colour": "colour under the open top",
    "lower": "trousers or skirt", "lower_colour": "colour of trousers or skirt", "bag_side": "side of the bag",
}  # fmt: skip


def readable(name: str) -> str:
    """An identifier as text for figures and tables: `upper_second` becomes "second colour of the top"."""
    return IN_WORDS.get(name, name.replace("_", " "))


def wrong_answers(embeddings: Embeddings) -> pd.DataFrame:
    """The sentences whose first picture is wrong, the worst first.

    Returns:
        One row per sentence: query (its index), retrieved (the wrong picture of highest similarity), score (its cosine
        similarity), right (the best-ranked right picture), right_rank (from 1), right_score, margin (score -
        right_score).
    """
    similarity = F.normalize(embeddings.texts, dim=1) @ F.normalize(embeddings.images, dim=1).T
    relevant = embeddings.text_labels[:, None] == embeddings.image_labels[None, :]
    right_score, right = similarity.masked_fill(~relevant, -torch.inf).max(dim=1)
    score, retrieved = similarity.masked_fill(relevant, -torch.inf).max(dim=1)
    rank = per_query(embeddings, "text_to_image")["rank"]
    frame = pd.DataFrame({
        "query": np.arange(len(similarity)), "retrieved": retrieved.numpy(), "score": score.numpy(),
        "right": right.numpy(), "right_rank": rank, "right_score": right_score.numpy(),
        "margin": (score - right_score).numpy(),
    })  # fmt: skip
    wrong = frame[frame["right_rank"] > 1].astype({"right_rank": int})  # NaN: no right picture at all
    return wrong.sort_values("right_rank", ascending=False, kind="stable", ignore_index=True)


class PedestrianTruth:
    """What the renderer knows of a split: each picture's visible attributes and what each caption states.

    Args:
        root: folder of the rendered pedestrians.
        split: of that data set.

    Raises:
        FileNotFoundError: no attributes.json there.
        ValueError: the file does not describe the split.
    """

    def __init__(self, root: Path | str, split: Split) -> None:
        pictures = {picture.file_path: picture for picture in oracle.read_truth(root)}
        names = ["/".join(path.parts[-2:]) for path in split.image_paths]
        if absent := [name for name in names if name not in pictures]:
            raise ValueError(f"{root}/attributes.json does not describe {len(absent)} pictures, such as {absent[0]}")
        self.seen = [pictures[name].seen for name in names]  # N, what can be seen in each picture
        self.people = split.caption_labels  # (M,)
        self.stated = [stated for name in names for stated in pictures[name].stated]  # M, what each caption says

    def contradicted(self, query: int, picture: int) -> list[str]:
        """The attributes for which the sentence states another value than the picture shows."""
        return oracle.contradicted(self.stated[query], self.seen[picture])

    def sort(self, wrong: pd.DataFrame, split: Split) -> pd.DataFrame:
        """Adds the cause of each of the `wrong_answers`.

        Returns:
            The frame with contradicted (attributes in which sentence and retrieved picture differ), untrue (attributes
            in which the sentence and the picture that it describes differ), and kind: "model mistaken" where the
            retrieved picture is contradicted in more attributes than the described one, "sentence misleads" where in
            fewer, "sentence undecided" where in equally many.
        """
        pairs = zip(wrong["query"].tolist(), wrong["retrieved"].tolist(), strict=True)
        contradicted = [self.contradicted(query, picture) for query, picture in pairs]
        untrue = [self.contradicted(query, split.caption_image[query]) for query in wrong["query"]]
        excess = np.array([len(c) - len(u) for c, u in zip(contradicted, untrue, strict=True)], dtype=int)
        kind = np.select([excess > 0, excess < 0], [MISTAKEN, MISLED], UNDECIDED)
        return wrong.assign(
            contradicted=pd.Series(contradicted, wrong.index), untrue=pd.Series(untrue, wrong.index), kind=kind
        )

    def confusions(self, wrong: pd.DataFrame) -> pd.DataFrame:
        """How often the retrieved pictures contradict the sentence in each attribute.

        Returns:
            One row per attribute, most stated first: stated (number of wrong answers whose sentence states it),
            retrieved (share of their first pictures that contradict it), low and high (its 95 % bootstrap interval over
            people, NaN for one), chance (share of all pictures that do), and ratio = retrieved / chance: near 1 the
            attribute had no influence, near 0 it is hardly ever confused.
        """
        shares: dict[tuple[str, tuple[str, ...]], float] = {}  # of all pictures that contradict a statement
        rows: dict[str, list[tuple[bool, float, int]]] = {}
        for query, picture in zip(wrong["query"].tolist(), wrong["retrieved"].tolist(), strict=True):
            against = set(self.contradicted(query, picture))
            for name, values in self.stated[query].items():
                if (name, values) not in shares:
                    every = [bool(oracle.contradicted({name: values}, seen)) for seen in self.seen]
                    shares[name, values] = float(np.mean(every))
                rows.setdefault(name, []).append((name in against, shares[name, values], int(self.people[query])))
        table = []
        for name, each in rows.items():
            hits, chances, people = map(np.array, zip(*each, strict=True))
            interval = bootstrap_interval(hits, people) if len(set(people)) > 1 else (np.nan, np.nan)
            table.append((name, len(hits), hits.mean(), *interval, chances.mean()))
        frame = pd.DataFrame(table, columns=["attribute", "stated", "retrieved", "low", "high", "chance"])
        frame["ratio"] = frame["retrieved"] / frame["chance"].where(frame["chance"] > 0)
        return frame.sort_values("stated", ascending=False, ignore_index=True)
