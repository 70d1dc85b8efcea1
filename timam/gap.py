"""The modality gap: how far apart picture and text embeddings lie. Arrays in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

GAP_MEASURES = {  # of `modality_gap`, with what each is where the modalities cannot be told apart
    "centroid_distance": "distance of the two means; 0",
    "probe_accuracy": "fresh linear probe; 0.5",
    "nonlinear_probe_accuracy": "fresh kernel probe; 0.5",
    "mmd_squared": "maximum mean discrepancy, squared; 0",
    "cross_modal_neighbours": "share of neighbours of the other modality, over its chance; 1",
    "alignment": "squared distance of an identity's picture and caption; 0 where they coincide",
    "image_uniformity": "log mean kernel of two pictures; -4 where they are orthogonal",
    "text_uniformity": "log mean kernel of two captions; as the pictures'",
}


def modality_gap(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray,
    nonlinear: bool = False, resamples: int = 0, neighbours: int = 10, limit: int = 5000, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """How far apart the modalities lie, on unit-length embeddings.

    Args:
        image_embeddings: (N, D), any norm; text_embeddings: (M, D).
        image_labels: (N,) identities; text_labels: (M,): the probe is tested on identities it was not fitted on.
        nonlinear: also fits a kernel probe, which takes longer.
        resamples: adds NAME_low and NAME_high to every measure, a 95 % percentile bootstrap interval that draws whole
            identities; probes are not fitted again.
        neighbours: how many of a sample's nearest are looked at.
        limit: of more pictures or captions than this, a part is drawn by whole identities.

    Returns:
        centroid_distance: Euclidean distance of the two means, in [0, 2].
        probe_accuracy: balanced accuracy, cross-validated over identities, of a fresh logistic regression that tells
            image from text; 0.5 = indistinguishable by a linear rule.
        nonlinear_probe_accuracy: that of a support vector machine with a Gaussian kernel.
        mmd_squared: squared maximum mean discrepancy (Gretton et al., JMLR 2012, unbiased: it can be slightly
            negative) with the kernel exp(-2 |x - y|^2), the same for every run.
        cross_modal_neighbours: share of the other modality among the nearest of all other samples, divided by what
            mixing would give, averaged over the modalities; 1 = mixed, 0 = apart.
        alignment: mean squared distance of a picture and a caption of its identity, in [0, 4], NaN without such
            pairs; and
        image_uniformity, text_uniformity: log of the mean of exp(-2 |x - y|^2) over two pictures, or two captions, in
            [-8, 0], the lower the more spread out (Wang and Isola, ICML 2020).

    Raises:
        ValueError: fewer than two identities.
    """
    identities, labels = np.unique(np.concatenate([image_labels, text_labels]), return_inverse=True)
    if len(identities) < 2:
        raise ValueError("one identity: expected at least 2, to tell the modalities on unseen ones")
    images, texts = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (image_embeddings, text_embeddings))
    sides, groups = [images, texts], [labels[: len(images)], labels[len(images) :]]
    order = np.random.default_rng(seed).permutation(len(identities))
    for side in (0, 1):
        if len(groups[side]) > limit:
            counts = np.bincount(groups[side], minlength=len(identities))[order].cumsum()
            order = order[: max(2, int(np.searchsorted(counts, limit, side="right")))]
    kept = [np.isin(group, order) for group in groups]
    sides, groups = [s[k] for s, k in zip(sides, kept, strict=True)], [g[k] for g, k in zip(groups, kept, strict=True)]
    measured = _GapMeasures(sides, groups, len(identities), nonlinear, min(neighbours, sum(map(len, sides)) - 1))
    result = {name: float(values[0]) for name, values in measured(np.ones((1, len(identities)))).items()}
    if resamples:
        drawn = np.random.default_rng(seed).multinomial(len(order), np.full(len(order), 1 / len(order)), resamples)
        weights = np.zeros((resamples, len(identities)))
        weights[:, order] = drawn
        for name, values in measured(weights).items():
            result[f"{name}_low"], result[f"{name}_high"] = map(float, np.percentile(values, [2.5, 97.5]))
    return result


def linear_probe() -> LogisticRegression:
    """The probe behind `modality_gap`'s "probe_accuracy", not fitted."""
    return LogisticRegression(class_weight="balanced", max_iter=1000)


def probe_hits(embeddings: np.ndarray, is_image: np.ndarray, identities: np.ndarray, probe: Any) -> np.ndarray:
    """Whether a fresh probe takes each embedding for what it is, fitted on other identities (up to 5 folds of them).

    Args:
        embeddings: (N, D), as they are; each coordinate is standardised. is_image: (N,) bool. identities: (N,).
        probe: a scikit-learn classifier.

    Returns:
        (N,) bool.
    """
    folds = GroupKFold(min(5, len(np.unique(identities))))
    pipeline = make_pipeline(StandardScaler(), probe)
    return cross_val_predict(pipeline, embeddings, is_image, groups=identities, cv=folds) == is_image


class _GapMeasures:
    """What `modality_gap` measures, as functions of how often each identity is counted."""

    def __init__(self, sides: list[np.ndarray], groups: list[np.ndarray], count: int, nonlinear: bool, k: int) -> None:
        self.sides, self.groups, self.count = sides, groups, count
        both, group = np.concatenate(sides), np.concatenate(groups)
        is_image = np.repeat([True, False], [len(sides[0]), len(sides[1])])
        probes: dict[str, Any] = {"probe_accuracy": linear_probe()}
        if nonlinear:
            probes["nonlinear_probe_accuracy"] = SVC(class_weight="balanced")
        self.right = {name: probe_hits(both, is_image, group, probe) for name, probe in probes.items()}
        similarity = both @ both.T
        self.kernel = np.exp(4 * np.minimum(similarity, 1) - 4)  # |x - y|^2 = 2 - 2 x'y
        np.fill_diagonal(self.kernel, 0)
        same = group[:, None] == group[None, :]
        within = np.where(same, self.kernel, 0)
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        chance = np.where(is_image, len(sides[1]), len(sides[0])) / (len(both) - 1)
        self.crossed = (is_image[nearest] != is_image[:, None]).mean(axis=1) / chance
        # Sums over an identity's pairs, from the sums of its vectors: |x - y|^2 = 2 - 2 x'y.
        sums = [
            np.stack([np.bincount(g, column, count) for column in s.T], axis=1)
            for s, g in zip(sides, groups, strict=True)
        ]
        numbers = [np.bincount(g, minlength=count) for g in groups]
        self.pairs = numbers[0] * numbers[1]
        n = len(sides[0])
        self.within = {  # sums of the kernel over the pairs within each identity
            (0, 0): np.bincount(groups[0], within[:n, :n].sum(axis=1), count),
            (1, 1): np.bincount(groups[1], within[n:, n:].sum(axis=1), count),
            (0, 1): np.bincount(groups[0], within[:n, n:].sum(axis=1), count),
        }
        self.numbers = numbers
        self.pair_distances = 2 * self.pairs - 2 * (sums[0] * sums[1]).sum(axis=1)

    def __call__(self, identity_weights: np.ndarray) -> dict[str, np.ndarray]:
        """(B, identities) counts -> (B,) of each measure."""
        weights = [identity_weights[:, g] for g in self.groups]
        n = len(self.sides[0])
        centroids = [w @ s / w.sum(axis=1, keepdims=True) for w, s in zip(weights, self.sides, strict=True)]
        result = {"centroid_distance": np.linalg.norm(centroids[0] - centroids[1], axis=1)}

        def balanced(values: np.ndarray) -> np.ndarray:  # mean over the modalities of each one's weighted mean
            parts = zip(weights, (values[:n], values[n:]), strict=True)
            return sum(w @ v / w.sum(axis=1) for w, v in parts) / 2

        result |= {name: balanced(right) for name, right in self.right.items()}

        def mean_kernel(a: int, b: int) -> np.ndarray:
            # An identity drawn c times counts c times, not c^2: its copies are no pairs of different people.
            block = self.kernel[slice(n) if a == 0 else slice(n, None), slice(n) if b == 0 else slice(n, None)]
            repeated = identity_weights**2 - identity_weights
            total = ((weights[a] @ block) * weights[b]).sum(axis=1) - repeated @ self.within[a, b]
            pairs = weights[a].sum(axis=1) * weights[b].sum(axis=1) - repeated @ (self.numbers[a] * self.numbers[b])
            if a == b:  # a sample is no pair with itself
                pairs = pairs - weights[a].sum(axis=1)
            return total / pairs

        images, texts, across = mean_kernel(0, 0), mean_kernel(1, 1), mean_kernel(0, 1)
        result["mmd_squared"] = images + texts - 2 * across
        result["cross_modal_neighbours"] = balanced(self.crossed)
        with np.errstate(divide="ignore", invalid="ignore"):
            result["alignment"] = identity_weights @ self.pair_distances / (identity_weights @ self.pairs)
            result |= {"image_uniformity": np.log(images), "text_uniformity": np.log(texts)}
        return result
