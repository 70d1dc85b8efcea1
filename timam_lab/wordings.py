"""How a trained model reads the test captions of rendered pedestrians in other wordings (notebook 09)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from timam.evaluation import Embeddings, evaluate
from timam.files import write_text
from timam.models import TIMAM
from timam.run import Run
from timam_lab.oracle import Picture, read_truth
from timam_lab.variations import rewritten

SHARES = (0.0, 0.5, 1.0)
VARIED = {
    "unseen_words": "share of the mentions in words that no training caption has",
    "negation": "share of the captions that also say what is not there",
}
# Attribute -> what a sentence calls it where it is there, and where it is not.
THINGS = {
    "headwear": ("a hat", "no hat"),
    "glasses": ("glasses", "no glasses"),
    "scarf": ("a scarf", "no scarf"),
    "bag": ("a bag", "no bag"),
}


def worded(run: Run, model: TIMAM, **shares: float) -> Embeddings:
    """The run's test split with captions of other shares (`timam_lab.variations.rewritten`), by the run's model.

    Raises ValueError where the folder does not have the captions that the run was tested with.
    """
    test, root = run.test_embeddings(), Path(run.config().data.root)
    captions = [text for texts in rewritten(root, **shares) for text in texts]
    if len(captions) != len(test.texts):
        raise ValueError(f"{root}: {len(captions)} test captions, {len(test.texts)} in {run.folder}")
    return Embeddings(test.images, model.encode_texts(captions), test.image_labels, test.text_labels)


def reread(run: Run) -> pd.DataFrame | None:
    """The run's model on the test split with other captions and with sentences about one thing.

    It needs the model once; the result is kept as RUN/wordings.csv.

    Returns:
        The columns measure, level, value, or None for other than rendered people:
        - "unseen_words" and "negation", at each of `SHARES`: rank-1 of text to image, in [0, 1];
        - "with" and "without", for each of `THINGS`: how well the similarity to "A person with a hat" (or "no hat")
          finds the pictures of which that is true, as the area under the ROC curve; 0.5 is chance.
    """
    path, root = run.folder / "wordings.csv", Path(run.config().data.root)
    if path.exists():
        return pd.read_csv(path)
    if not (root / "attributes.json").exists():
        return None
    test, model = run.test_embeddings(), run.best_model()
    rows: list[tuple[str, float | str, float]] = []
    for varied in VARIED:
        for share in SHARES:
            found = evaluate(worded(run, model, **{varied: share}))
            rows.append((varied, share, found["text_to_image"]["rank_1"]))
    pictures = [picture for picture in read_truth(root) if picture.split == "test"]
    for thing, phrases in THINGS.items():
        sentences = model.encode_texts([f"A person with {phrase}." for phrase in phrases])
        there, absent = heard(thing, pictures, test.images, sentences)
        rows += [("with", thing, there), ("without", thing, absent)]
    frame = pd.DataFrame(rows, columns=["measure", "level", "value"])
    write_text(path, frame.to_csv(index=False))
    return frame


def heard(thing: str, pictures: Sequence[Picture], images: Tensor, sentences: Tensor) -> tuple[float, float]:
    """How well two sentences find the pictures with a thing, and those without it.

    Args:
        thing: an attribute; pictures that hide it do not count.
        pictures: N of them.
        images: (N, D) their embeddings.
        sentences: (2, D), of a sentence that says that it is there, and of one that says that it is not.

    Returns:
        Two areas under the ROC curve; NaN where all pictures are alike.
    """
    known = [i for i, picture in enumerate(pictures) if thing in picture.seen]
    has = np.array([pictures[i].seen[thing] != "none" for i in known])
    if len(set(has)) < 2:
        return float("nan"), float("nan")
    there, absent = F.normalize(sentences, dim=1) @ F.normalize(images[known], dim=1).T
    return float(roc_auc_score(has, there)), float(roc_auc_score(~has, absent))
