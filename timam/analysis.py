"""What embeddings say beyond the metrics: intervals, the modality gap, a linear baseline. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.manifold import TSNE
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def bootstrap_interval(
    values: np.ndarray, identities: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries that resamples whole identities.

    Captions of one identity are not independent; resampling single queries would give too narrow an interval.

    Args:
        values: (Q,) one result a query, for example 1.0 where the first answer is right.
        identities: (Q,) the identity of each query.

    Returns:
        (low, high).

    Raises:
        ValueError: lengths that differ, or fewer than two identities.
    """
    if values.shape != identities.shape:
        raise ValueError(f"values {values.shape} and identities {identities.shape}: expected the same length")
    _, index = np.unique(identities, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        raise ValueError("one identity: expected at least two to resample")
    result = stats.bootstrap(
        (sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        confidence_level=confidence, n_resamples=resamples, method="percentile",
        random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def training_warnings(row: Mapping[str, Any], gradient_penalty: float = 0.0) -> list[str]:
    """What has collapsed in an epoch, in words and with what usually helps; empty where nothing has.

    Args:
        row: of RUN/history.csv; measures that it lacks are passed over.
        gradient_penalty: `loss.gradient_penalty` of the run. A discriminator whose slope is penalised may be always
            right and still tell the encoders which way to go: it is then not named.

    The thresholds [ours]:
        uniformity above -0.04: it is about -4 (1 - c) for a mean cosine c near 1, so c > 0.99, and all that tells one
            sample from another is in the last hundredth. Pretrained encoders are below from the first epoch on (the
            quick preset at 0.79 and 0.96); a network with random weights begins there.
        norm above 256: the matching loss's logits are cosines times the norm, so cosines 0.02 apart are 5 nats apart,
            where a softmax keeps less than 1 % for the lower one, and with it of the gradient; and bfloat16, which has
            8 bits, is off by up to half a nat.
        discriminator accuracy above 0.98 or below 0.02 over an epoch, where it is played against: 1 in 50 is about
            one embedding of each modality in a batch of 64. A discriminator that only watches may be as good as it can.
    """
    found = []
    for side in ("image", "text"):
        if row.get(f"val_{side}_uniformity", -1.0) > -0.04:
            found.append(
                f"all {side} embeddings are nearly alike (val_{side}_uniformity above -0.04): their encoder has "
                "collapsed, or hardly begun to learn. What usually helps: more steps, a lower "
                f"train.{side}_lr, a longer train.warmup_epochs, a smaller loss.adversarial_weight"
            )
        if row.get(f"val_{side}_norm", 0.0) > 256:
            found.append(
                f"{side} embeddings have exploded (val_{side}_norm above 256): the matching loss sees only its nearest "
                f"pairs. What usually helps: a lower train.{side}_lr, train.gradient_clip, a larger train.weight_decay"
            )
    if row.get("adversarial"):
        if row["discriminator_accuracy"] > 0.98 and not gradient_penalty:
            found.append(
                "the discriminator tells every embedding (accuracy above 0.98): the encoders learn little from it. "
                "What usually helps: loss.gradient_penalty, a lower train.discriminator_lr, more loss.label_smoothing"
            )
        if row["discriminator_accuracy"] < 0.02:
            found.append(
                "the discriminator is wrong on every embedding (accuracy below 0.02): the encoders have swapped sides, "
                "which fools it and closes no gap. What usually helps: a higher train.discriminator_lr, a smaller "
                "loss.adversarial_weight"
            )
    return found


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


def tsne(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, perplexity: float = 30.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One t-SNE map of both modalities' unit-length embeddings, by scikit-learn, starting from principal components.

    Args:
        image_embeddings: (N, D); text_embeddings: (M, D).
        perplexity: at most a third of the samples are looked at.

    Returns:
        (N, 2) and (M, 2).
    """
    both = np.concatenate([image_embeddings, text_embeddings])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    found = TSNE(perplexity=min(perplexity, (len(both) - 1) / 3), random_state=seed).fit_transform(both)
    return found[: len(image_embeddings)], found[len(image_embeddings) :]


def linear_baseline(
    image_features: np.ndarray, text_features: np.ndarray, components: int, alpha: float
) -> tuple[Pipeline, Pipeline]:
    """Text and image maps of a ridge regression from frozen text features to frozen image features. Source: ours.

    Image features are standardised and reduced by whitened principal components; the texts' standardised
    features are regressed onto them. Retrieval is then by cosine similarity in that space.

    Args:
        image_features: (P, C) of paired training examples; text_features: (P, C').
        components: principal components kept of the images.
        alpha: ridge penalty.

    Returns:
        (image_map, text_map), fitted estimators: image_map.transform(images) and text_map.predict(texts).
    """
    image_map = make_pipeline(StandardScaler(), PCA(components, whiten=True, random_state=0)).fit(image_features)
    text_map = make_pipeline(StandardScaler(), Ridge(alpha)).fit(text_features, image_map.transform(image_features))
    return image_map, text_map
