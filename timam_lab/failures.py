"""Wrong answers, found and sorted: which ones there are, what the sentence leaves open, what the model looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from timam.data import Split
from timam.evaluation import Embeddings, per_query
from timam.models import TIMAM
from timam_lab.pedestrians import oracle

UNDECIDED, MISLED, MISTAKEN = "sentence undecided", "sentence misleads", "model mistaken"


def wrong_answers(embeddings: Embeddings) -> pd.DataFrame:
    """The sentences whose first picture is wrong, the worst first.

    Returns:
        A row a sentence: query (its index), retrieved (the picture that came first), score (its cosine similarity),
        right (the best-ranked right picture), right_rank (from 1), right_score, margin (score - right_score).
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
    """What the renderer knows of a split: every person's attributes, what each picture hides and each caption states.

    Args:
        root: folder of the rendered pedestrians.
        split: of its data set.

    Raises:
        FileNotFoundError: no attributes.json there.
        ValueError: one that does not describe the split.
    """

    def __init__(self, root: Path | str, split: Split) -> None:
        pictures = {picture.file_path: picture for picture in oracle.read_truth(root)}
        names = ["/".join(path.parts[-2:]) for path in split.image_paths]
        if absent := [name for name in names if name not in pictures]:
            raise ValueError(f"{root}/attributes.json does not describe {len(absent)} pictures, such as {absent[0]}")
        self.seen = [pictures[name].seen for name in names]  # N, what can be seen in each picture
        self.stated = [stated for name in names for stated in pictures[name].stated]  # M, what each caption says

    def contradicted(self, query: int, picture: int) -> list[str]:
        """The attributes that the sentence states and the picture shows otherwise."""
        return oracle.contradicted(self.stated[query], self.seen[picture])

    def sort(self, wrong: pd.DataFrame, split: Split) -> pd.DataFrame:
        """Adds to `wrong_answers` whose fault each one is.

        Returns:
            The frame with contradicted (attributes on which sentence and retrieved picture differ), untrue (on which
            the sentence and the picture that it describes differ), and kind: "model mistaken" where the sentence
            contradicts the retrieved picture in more than its own, "sentence misleads" where in less, and
            "sentence undecided" where in as many.
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
        """How often the retrieved pictures contradict each attribute that a sentence states.

        Returns:
            A row an attribute: stated (sentences among the wrong answers), retrieved (share of their first pictures
            that show it otherwise), chance (that share of all pictures), ratio; near 1 the attribute had no say, near
            0 it is hardly ever confused. Most stated first.
        """
        shares: dict[tuple[str, tuple[str, ...]], float] = {}  # of all pictures that contradict a statement
        rows: dict[str, list[tuple[bool, float]]] = {}
        for query, picture in zip(wrong["query"].tolist(), wrong["retrieved"].tolist(), strict=True):
            against = set(self.contradicted(query, picture))
            for name, values in self.stated[query].items():
                if (name, values) not in shares:
                    every = [bool(oracle.contradicted({name: values}, seen)) for seen in self.seen]
                    shares[name, values] = float(np.mean(every))
                rows.setdefault(name, []).append((name in against, shares[name, values]))
        table = [{"attribute": name, "stated": len(found), "retrieved": float(np.mean([hit for hit, _ in found])),
                  "chance": float(np.mean([share for _, share in found]))} for name, found in rows.items()]  # fmt: skip
        frame = pd.DataFrame(table, columns=["attribute", "stated", "retrieved", "chance"])
        frame["ratio"] = frame["retrieved"] / frame["chance"].where(frame["chance"] > 0)
        return frame.sort_values("stated", ascending=False, ignore_index=True)


def word_effects(model: TIMAM, sentence: str, picture: Tensor) -> pd.DataFrame:
    """What each word contributes to a similarity: the sentence with it minus the sentence without it.

    Args:
        picture: (D,) embedding.

    Returns:
        word, effect (difference of cosine similarities; positive: the word speaks for the picture), in their order.
        A sentence of one word has no rows.
    """
    words = sentence.split()
    if len(words) < 2:
        return pd.DataFrame({"word": [], "effect": []})
    shortened = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    similarity = F.normalize(model.encode_texts([sentence, *shortened]), dim=1) @ F.normalize(picture, dim=0)
    return pd.DataFrame({"word": words, "effect": (similarity[0] - similarity[1:]).numpy()})


def occlusion_map(model: TIMAM, pixels: Tensor, text: Tensor, rows: int = 12, columns: int = 6) -> np.ndarray:
    """What each region contributes to a similarity: the picture minus the picture with a grey patch over the region.

    Args:
        pixels: (3, H, W) uint8.
        text: (D,) embedding.
        rows, columns: of the grid of regions; a patch covers two by two of them.

    Returns:
        (rows, columns) float32 differences of cosine similarities; positive: the region speaks for the sentence.
    """
    height, width = pixels.shape[1:]
    tops, lefts = np.linspace(0, height, rows + 1).astype(int), np.linspace(0, width, columns + 1).astype(int)
    covered = pixels.repeat(rows * columns + 1, 1, 1, 1)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        top, bottom = tops[max(row - 1, 0)], tops[row + 1]
        left, right = lefts[max(column - 1, 0)], lefts[column + 1]
        covered[index + 1, :, top:bottom, left:right] = 124  # near ImageNet's mean: no edge of its own
    similarity = F.normalize(model.encode_images(list(covered)), dim=1) @ F.normalize(text, dim=0)
    return (similarity[0] - similarity[1:]).reshape(rows, columns).numpy()
