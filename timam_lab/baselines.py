"""A linear baseline on frozen features, which results are compared with; and t-SNE maps of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from timam.config import MINILM, ModelConfig
from timam.data import Dataset, Split
from timam.evaluation import Embeddings, evaluate
from timam.models import TIMAM
from timam.stores import open_pixels, open_word_states

COMPONENTS, PENALTIES = (32, 64, 128, 256, 512, 1024), (1e2, 1e3, 1e4, 1e5, 1e6)  # among these validation chooses


def tsne(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, perplexity: float = 30.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One t-SNE map of both modalities' unit-length embeddings, by scikit-learn.

    Args:
        image_embeddings: (N, D); text_embeddings: (M, D).
        perplexity: reduced to a third of the number of samples where that is less.

    Returns:
        (N, 2) and (M, 2).
    """
    both = np.concatenate([image_embeddings, text_embeddings])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    points = TSNE(perplexity=min(perplexity, (len(both) - 1) / 3), random_state=seed).fit_transform(both)
    return points[: len(image_embeddings)], points[len(image_embeddings) :]


def tuned_baseline(config: ModelConfig, data: Dataset) -> tuple[Callable[[Split], Embeddings], str]:
    """The linear baseline of a config: its pretrained networks, frozen, and the best of `linear_baselines`.

    The number of components and the penalty have the highest mAP of text to image on the validation split.

    Args:
        config: its backbone, picture size and language model; MiniLM where its words are learned.
        data: with a train and a val split.

    Returns:
        A function from a split to its embeddings, and a sentence that says what was chosen.
    """
    train, val = data.split("train"), data.split("val")
    language_model = MINILM if config.language_model == "none" else config.language_model
    frozen = TIMAM.pretrained(replace(config, language_model=language_model), 1, train.captions)

    def features(split: Split) -> tuple[np.ndarray, np.ndarray]:
        pixels = open_pixels(split.image_paths, config.image_height, config.image_width)
        return frozen_features(frozen, split, pixels)

    pictures, sentences = features(train)
    most = max(1, min(len(pictures) // 2, pictures.shape[1]))  # the last components of few pictures are noise
    sizes = sorted({min(size, most) for size in COMPONENTS})
    image_map, text_maps = linear_baselines(pictures[train.caption_image], sentences, sizes[-1], PENALTIES)

    def embedded(split: Split, choices: Iterable[tuple[int, float]]) -> dict[tuple[int, float], Embeddings]:
        images, texts = features(split)
        mapped = image_map.transform(images), {a: text_map.predict(texts) for a, text_map in text_maps.items()}
        labels = torch.from_numpy(split.image_labels), torch.from_numpy(split.caption_labels)
        first = lambda values, size: torch.from_numpy(values[:, :size])  # noqa: E731
        return {(k, a): Embeddings(first(mapped[0], k), first(mapped[1][a], k), *labels) for k, a in choices}

    tried = embedded(val, product(sizes, PENALTIES))
    chosen = max(tried, key=lambda choice: evaluate(tried[choice])["text_to_image"]["mAP"])
    end = ", the end of what was tried" if chosen[1] in (PENALTIES[0], PENALTIES[-1]) else ""
    told = f"Chosen on validation: {chosen[0]} components, ridge penalty {chosen[1]:g}{end}."
    return lambda split: embedded(split, [chosen])[chosen], told


def linear_baselines(
    image_features: np.ndarray, text_features: np.ndarray, components: int, penalties: Sequence[float]
) -> tuple[Pipeline, dict[float, Pipeline]]:
    """Ridge regressions from frozen text features to frozen image features. Source: ours.

    Image features are standardised and reduced to whitened principal components. The standardised text features are
    regressed onto those. Retrieval is by cosine similarity in that space. The components are in the order of their
    variance and are regressed one by one. So the first columns are the baseline with fewer components.

    Args:
        image_features: (P, C) of paired training examples; text_features: (P, C').
        components: principal components kept of the images, at most P and C.
        penalties: ridge penalties.

    Returns:
        (image_map, {penalty: text_map}), fitted estimators: image_map.transform(images) and text_map.predict(texts)
        are (N, components).
    """
    components_of = PCA(components, whiten=True, svd_solver="covariance_eigh")  # exact, and quick for many pictures
    image_map = make_pipeline(StandardScaler(), components_of).fit(image_features)
    mapped = image_map.transform(image_features)
    return image_map, {a: make_pipeline(StandardScaler(), Ridge(a)).fit(text_features, mapped) for a in penalties}


def frozen_features(
    model: TIMAM, split: Split, pixels: np.ndarray, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Features of a model's pretrained parts, before any training: the input of the linear baseline.

    Returns:
        (N, C) float32 pooled picture features and (M, C') float32 means of the captions' word states.
    """
    images = model.encode_pixels(pixels, batch_size, encode=model.image_encoder.features)
    words = open_word_states(model, split.captions)
    sums = np.add.reduceat(words.states, words.offsets[:-1], axis=0, dtype=np.float32)
    return images.numpy(), sums / np.diff(words.offsets)[:, None].astype(np.float32)
