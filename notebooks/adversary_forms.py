"""Forms of the modality adversary that notebook 10 compares: the package's own and those that it does not keep.

A form is data (`Form`); `trial` trains one of them with a fixed budget and measures it on the validation split. So that
many can be tried, the first 14 blocks of MobileNetV2 are frozen and computed once, as is the language model; what
trains are the last blocks, the BiLSTM, the linear layers, the classifier and the discriminator. Losses, batches and
stores are the package's. What the package keeps of all this is in `timam.training.train_step`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm import tqdm

from timam import gap as modality_gap_measures
from timam.config import Config, to_dict
from timam.data import Split, load_dataset
from timam.data.batches import epoch_order, steps_per_epoch
from timam.evaluation import DIRECTIONS, Embeddings, evaluate, gap
from timam.files import write_text
from timam.images import normalize
from timam.losses import cmpm_loss, gradient_penalty, norm_softmax_loss
from timam.models import TIMAM
from timam.models.joint import IMAGE, TEXT
from timam.stores import open_pixels, open_word_states
from timam.training import cosine_factor


@dataclass(frozen=True)
class Form:
    """One adversary. The defaults are the `quick` preset's before this search; `paper` plays so still."""

    weight: float = 1.0  # of the encoders' adversarial loss
    target: str = "flipped"  # what the encoders want: flipped labels, "confusion" (1/2 for both), or "reversal"
    sees: str = "raw"  # "raw", "unit", "detached" (unit length, no gradient through the length), "standardised"
    noise: float = 0.0  # standard deviation of noise on what it sees, in standard deviations of the joint batch
    hidden: int = 128
    layers: int = 2  # linear layers
    dropout: float = 0.0
    spectral: bool = False
    lr: float = 2e-4
    momentum: float = 0.9  # Adam's first beta, of the discriminator
    steps: int = 1  # discriminator steps for each of the encoders'
    warmup: float = 0.0  # share of the training over which the weight rises from 0
    r1: float = 0.0  # gradient penalty on the discriminator's input
    smoothing: float = 0.1
    replay: int = 0  # earlier batches that the discriminator sees again, one of them a step
    conditional: bool = False  # it also knows the identity: projection discriminator
    # Outside the game:
    centred: bool = False  # each modality's running mean is subtracted
    shared_layer: bool = False  # one more linear layer that both modalities go through
    mmd: float = 0.0  # weight of the maximum mean discrepancy of a batch
    coral: float = 0.0  # weight of the squared distance of means and covariances of a batch


AS_PLAYED = Form()
QUICK = replace(AS_PLAYED, sees="unit", lr=2e-3)
STEADIED = replace(AS_PLAYED, sees="unit", lr=5e-3, momentum=0.0, steps=4, r1=10.0, smoothing=0.0)

# name: (form, what was expected of it). One thing changes against the form that a group starts from.
FORMS: dict[str, tuple[Form, str]] = {
    "no adversary": (Form(weight=0), "the gap that matching and identification leave"),
    # -- as the package played it: a discriminator that learns slowly
    "as played": (AS_PLAYED, "closes the gap a little"),
    "as played, confusion": (replace(AS_PLAYED, target="confusion"), "no swapping of sides: better than flipped"),
    "as played, reversal": (replace(AS_PLAYED, target="reversal"), "like flipped"),
    "as played, unit length": (replace(AS_PLAYED, sees="unit"), "no lengths to look at: better than raw"),
    "as played, standardised": (replace(AS_PLAYED, sees="standardised"), "shows it the directions a probe uses"),
    "as played, weight 0.1": (replace(AS_PLAYED, weight=0.1), "harms less"),
    "as played, weight 10": (replace(AS_PLAYED, weight=10), "closes more, costs retrieval"),
    # -- a quicker discriminator, which it takes to see where the modalities are now
    "quick": (QUICK, "too weak a discriminator was the fault: closes the gap"),
    "quick, reversal": (replace(QUICK, target="reversal"), "pulls less where it is sure: calmer"),
    "quick, reversal, standardised, 4 steps": (
        replace(QUICK, target="reversal", sees="standardised", steps=4),
        "nearly the best answer at each step: calmer",
    ),
    "quick, detached length": (replace(QUICK, sees="detached"), "as unit length"),
    "quick, noise": (replace(QUICK, noise=0.5), "overlap gives a useful slope: calmer"),
    "quick, replay": (replace(QUICK, replay=50), "cannot forget the other side: calmer"),
    "quick, dropout": (replace(QUICK, dropout=0.5), "calmer"),
    "quick, spectral": (replace(QUICK, spectral=True), "bounded slope: calmer"),
    "quick, no momentum": (replace(QUICK, momentum=0.0), "turns sooner: calmer"),
    # -- the slope is penalised
    "quick, R1 1": (replace(QUICK, r1=1.0), "settles, as the control does"),
    "quick, R1 10": (replace(QUICK, r1=10.0), "settles sooner"),
    "quick, reversal, R1 10": (replace(QUICK, target="reversal", r1=10.0), "settles sooner"),
    "steadied": (STEADIED, "settles where the control settles best"),
    # -- variations of that
    "steadied, 1 step": (replace(STEADIED, steps=1), "lags behind"),
    "steadied, reversal": (replace(STEADIED, target="reversal"), "the same point, reached more slowly"),
    "steadied, reversal, R1 1": (replace(STEADIED, target="reversal", r1=1.0), "sees finer differences"),
    "steadied, confusion": (replace(STEADIED, target="confusion"), "pulls less: a larger gap"),
    "steadied, raw": (replace(STEADIED, sees="raw"), "lengths distract it"),
    "steadied, standardised": (replace(STEADIED, sees="standardised"), "sees the directions a probe uses"),
    "steadied, linear": (replace(STEADIED, layers=1), "enough for the means"),
    "steadied, 3 layers of 512": (replace(STEADIED, layers=3, hidden=512), "sees more than means"),
    "steadied, dropout": (replace(STEADIED, dropout=0.5), "no change"),
    "steadied, spectral": (replace(STEADIED, spectral=True), "no change: the slope is small already"),
    "steadied, replay": (replace(STEADIED, replay=50), "no change"),
    "steadied, knows the identity": (replace(STEADIED, conditional=True), "matches within identities: helps retrieval"),
    "steadied, weight 0.3": (replace(STEADIED, weight=0.3), "a larger gap"),
    "steadied, weight 3": (replace(STEADIED, weight=3), "a smaller gap"),
    "steadied, warm-up": (replace(STEADIED, warmup=0.5), "lets matching come first: helps retrieval"),
    "steadied, smoothed labels": (replace(STEADIED, smoothing=0.1), "no change"),
    # -- outside the game, for reference
    "centred": (Form(weight=0, centred=True), "a linear probe sees means only: it fails"),
    "shared last layer": (Form(weight=0, shared_layer=True), "no change: its input differs"),
    "MMD 10": (Form(weight=0, mmd=10), "what the game aims at, without the game"),
    "MMD 100": (Form(weight=0, mmd=100), "a smaller gap"),
    "CORAL 10": (Form(weight=0, coral=10), "means and covariances: as MMD"),
    "CORAL 100": (Form(weight=0, coral=100), "a smaller gap"),
    "steadied, centred": (replace(STEADIED, centred=True), "both"),
}


class Discriminator(nn.Module):
    """(B, D) -> logits (B,), positive for images; with labels (B,) where the form is conditional."""

    def __init__(self, form: Form, width: int, classes: int) -> None:
        super().__init__()
        wrap = spectral_norm if form.spectral else lambda layer: layer
        widths = [width, *[form.hidden] * (form.layers - 1)]
        body: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            body += [wrap(nn.Linear(a, b)), nn.LeakyReLU(0.2), nn.Dropout(form.dropout)]
        self.body, self.head = nn.Sequential(*body), wrap(nn.Linear(widths[-1], 1))
        self.classes = nn.Embedding(classes, widths[-1]) if form.conditional else None
        if self.classes is not None:
            nn.init.zeros_(self.classes.weight)

    def forward(self, seen: Tensor, labels: Tensor) -> Tensor:
        hidden = self.body(seen)
        logits = self.head(hidden).squeeze(1)
        return logits if self.classes is None else logits + (self.classes(labels) * hidden).sum(1)


def see(form: Form, embeddings: Tensor) -> Tensor:
    """What the discriminator is shown of a joint batch (2B, D), images first."""
    if form.sees == "unit":
        embeddings = F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5
    elif form.sees == "detached":
        embeddings = embeddings / embeddings.detach().norm(dim=1, keepdim=True) * embeddings.shape[1] ** 0.5
    elif form.sees == "standardised":  # unit length, then each coordinate by the joint batch: small offsets show
        unit = F.normalize(embeddings, dim=1)
        embeddings = (unit - unit.mean(0).detach()) / (unit.std(0).detach() + 1e-6)
    if form.noise:
        embeddings = embeddings + form.noise * embeddings.detach().std(0) * torch.randn_like(embeddings)
    return embeddings


class Game:
    """The two players' moves for joint batches (2B, D), images first, of identities (2B,)."""

    def __init__(self, form: Form, width: int, classes: int, weight_decay: float, seed: int) -> None:
        self.form, self.discriminator = form, Discriminator(form, width, classes)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=form.lr, betas=(form.momentum, 0.999), weight_decay=weight_decay
        )
        self.buffer: deque[tuple[Tensor, Tensor]] = deque(maxlen=form.replay or 1)
        self.rng = np.random.default_rng(seed)

    def learn(self, both: Tensor, labels: Tensor) -> tuple[float, float]:
        """The discriminator's move; its loss (2 ln 2 where it cannot tell) and its accuracy before the last step."""
        form, truth = self.form, torch.arange(len(both)) < len(both) // 2
        goal = torch.where(truth, 1 - form.smoothing, 0.0)
        for _ in range(form.steps):
            seen, of, wanted = see(form, both.detach()), labels, goal
            if self.buffer:
                old, old_labels = self.buffer[self.rng.integers(len(self.buffer))]
                seen, of, wanted = (
                    torch.cat([seen, see(form, old)]),
                    torch.cat([of, old_labels]),
                    torch.cat([goal, goal]),
                )
            seen.requires_grad_(form.r1 > 0)
            logits = self.discriminator(seen, of)
            loss = 2 * F.binary_cross_entropy_with_logits(logits, wanted)
            penalty = form.r1 / 2 * gradient_penalty(logits, seen) if form.r1 else 0.0
            self.optimizer.zero_grad()
            (loss + penalty).backward()
            self.optimizer.step()
        if form.replay:
            self.buffer.append((both.detach(), labels))
        right = (logits[: len(truth)] > 0) == truth
        return float(loss.detach()), float(right.float().mean())

    def pull(self, both: Tensor, labels: Tensor) -> Tensor:
        """What the encoders minimise, unweighted."""
        goal = (torch.arange(len(both)) < len(both) // 2).float()
        wanted = {"flipped": 1 - goal, "confusion": torch.full_like(goal, 0.5), "reversal": goal}[self.form.target]
        self.discriminator.requires_grad_(False)
        term = 2 * F.binary_cross_entropy_with_logits(self.discriminator(see(self.form, both), labels), wanted)
        self.discriminator.requires_grad_(True)
        return -term if self.form.target == "reversal" else term


def shift_alone(form: Form, embeddings: Embeddings, seed: int, steps: int = 500, lr: float = 2e-3) -> list[float]:
    """A game whose answer is known: the two modalities are halves of one cloud, apart by a shift that alone can move.

    The pictures' embeddings of a trained model are split by identity into two halves; one of them is moved by one
    standard deviation of the cloud along a random direction; the only parameters of the encoders are two shifts, the
    only loss the adversary's. At the fixed point the halves coincide.

    Returns:
        The distance of the two means after each step, as a share of the first.
    """
    torch.manual_seed(seed)
    cloud = F.normalize(embeddings.images, dim=1) * 16
    first = embeddings.image_labels % 2 == 0
    sides = [cloud[first], cloud[~first]]
    offset = F.normalize(torch.randn(cloud.shape[1]), dim=0) * cloud.var(0).sum().sqrt()
    shifts = nn.Parameter(torch.zeros(2, cloud.shape[1]))
    game = Game(form, cloud.shape[1], 1, 0.0, seed)
    mover = torch.optim.AdamW([shifts], lr=lr * 16, weight_decay=0.0)  # in units of the cloud's radius
    means, labels, found = [side.mean(0) for side in sides], torch.zeros(64, dtype=torch.long), []
    for _ in range(steps):
        batch = [side[torch.randint(len(side), (32,))] for side in sides]
        both = torch.cat([batch[0] + shifts[0] + offset, batch[1] + shifts[1]])
        game.learn(both, labels)
        mover.zero_grad()
        (form.weight * game.pull(both, labels)).backward()
        mover.step()
        apart = means[0] + shifts[0] + offset - means[1] - shifts[1]
        found.append(float(apart.detach().norm()))
    return [value / found[0] for value in found]


def kernel_discrepancy(images: Tensor, texts: Tensor) -> Tensor:
    """Squared MMD of two batches (B, D) of unit vectors, mixture of three Gaussian kernels, biased."""

    def k(a: Tensor, b: Tensor) -> Tensor:
        d = (2 - 2 * a @ b.T).clamp(min=0)
        return sum(torch.exp(-g * d) for g in (0.5, 2.0, 8.0)).mean() / 3

    return k(images, images) + k(texts, texts) - 2 * k(images, texts)


def moments_distance(images: Tensor, texts: Tensor) -> Tensor:
    """Squared distance of the means and of the covariances of two batches (B, D) (Sun and Saenko, 2016)."""

    def cov(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        return x.T @ x / (len(x) - 1)

    return (images.mean(0) - texts.mean(0)).square().sum() + (cov(images) - cov(texts)).square().sum()


CACHED_BLOCKS = 14


@dataclass(frozen=True)
class Material:
    """What every trial on one data set shares: splits, and what the frozen layers make of them."""

    config: Config
    splits: dict[str, Split]
    fingerprint: str  # of the data
    maps: dict[str, Tensor]  # (N, C, h, w) float32, of the frozen blocks
    words: dict[str, Any]  # `timam.stores.WordStates`

    @classmethod
    def of(cls, config: Config) -> Material:
        dataset = load_dataset(config.data.dataset, config.data.root)
        splits = {name: dataset.split(name) for name in ("train", "val", "test")}
        model = TIMAM.pretrained(config.model, 1, splits["train"].captions).eval()
        early, maps = model.image_encoder.backbone.features[:CACHED_BLOCKS], {}
        for name, split in splits.items():
            pixels = open_pixels(split.image_paths, config.model.image_height, config.model.image_width, False)
            with torch.no_grad():
                chunks = [early(normalize(torch.from_numpy(np.array(pixels[i : i + 64]))))
                          for i in range(0, len(pixels), 64)]  # fmt: skip
            maps[name] = torch.cat(chunks).contiguous(memory_format=torch.channels_last)
        model.text_encoder.freeze()
        words = {name: open_word_states(model, split.captions, progress=False) for name, split in splits.items()}
        return cls(config, splits, dataset.fingerprint(), maps, words)


class Encoders(nn.Module):
    """The trained part of both encoders, the classifier, and what a form adds behind them."""

    def __init__(self, config: Config, form: Form, classes: int, captions: list[str]) -> None:
        super().__init__()
        model = TIMAM.pretrained(config.model, classes, captions)
        encoder = model.image_encoder
        self.late, self.pool, self.projection = (
            encoder.backbone.features[CACHED_BLOCKS:],
            nn.AdaptiveAvgPool2d(1),
            encoder.projection,
        )
        self.text = model.text_encoder
        self.text.language_model = nn.Identity()  # its outputs are stored
        self.class_weights, self.class_bias = model.class_weights, model.class_bias
        self.form = form
        width = config.model.embedding_dim
        self.shared = nn.Linear(width, width) if form.shared_layer else nn.Identity()
        self.register_buffer("means", torch.zeros(2, width))

    def images(self, maps: Tensor) -> Tensor:
        return self.shared(self.projection(self.pool(self.late(maps)).flatten(1)))

    def texts(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.shared(self.text.summarize(states, mask))

    def centre(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        if not self.form.centred:
            return images, texts
        if not self.training:
            return images - self.means[0], texts - self.means[1]
        now = torch.stack([images.mean(0), texts.mean(0)])
        with torch.no_grad():
            self.means.lerp_(now, 0.1)
        return images - now[0], texts - now[1]

    def embed(self, material: Material, name: str) -> Embeddings:
        """A whole split."""
        self.eval()
        split, words = material.splits[name], material.words[name]
        with torch.no_grad():
            images = torch.cat([self.images(part) for part in material.maps[name].split(256)])
            parts = np.array_split(np.arange(len(split.captions)), len(split.captions) // 256 + 1)
            texts = torch.cat([self.texts(*words.gather(part)) for part in parts])
            images, texts = self.centre(images, texts)
        self.train()
        return Embeddings(images, texts, torch.from_numpy(split.image_labels), torch.from_numpy(split.caption_labels))


def trial(
    form: Form, material: Material, seed: int
) -> tuple[dict[str, Any], list[dict[str, float]], dict[str, Embeddings]]:
    """Trains for the config's epochs; the last one counts, as nothing is to be chosen by epoch.

    Returns:
        The validation results; a row of losses, gradient norms and discriminator accuracy for each tenth step;
        and the embeddings of "val" and "test".
    """
    started = time.monotonic()
    config, split = material.config, material.splits["train"]
    torch.manual_seed(seed)
    encoders = Encoders(config, form, len(split.identities), split.captions).train()
    game = Game(form, config.model.embedding_dim, len(split.identities), config.train.weight_decay, seed)
    image = [*encoders.late.parameters(), *encoders.projection.parameters()]
    own = {id(p) for p in image}
    optimizer = torch.optim.AdamW(
        [{"params": image, "lr": config.train.image_lr},
         {"params": [p for p in encoders.parameters() if id(p) not in own], "lr": config.train.text_lr}],
        weight_decay=config.train.weight_decay,
    )  # fmt: skip
    per_epoch = steps_per_epoch(len(split.image_paths), config.data.batch_size)
    total_steps, warm = config.train.epochs * per_epoch, round(config.train.warmup_epochs * per_epoch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine_factor(s, warm, total_steps))
    history: list[dict[str, float]] = []
    step = 0
    for epoch in range(1, config.train.epochs + 1):
        for chosen, captions in _batches(split, config.data.batch_size, seed, epoch):
            labels = torch.from_numpy(split.image_labels[chosen])
            images = encoders.images(material.maps["train"][chosen])
            texts = encoders.texts(*material.words["train"].gather(captions))
            images, texts = encoders.centre(images, texts)
            both, twice = torch.cat([images, texts]), torch.cat([labels, labels])
            loss, accuracy = game.learn(both, twice)
            weights, bias = encoders.class_weights, encoders.class_bias
            terms = {
                "matching": cmpm_loss(images, texts, labels),
                "identification": norm_softmax_loss(images, weights[IMAGE], bias[IMAGE], labels)
                + norm_softmax_loss(texts, weights[TEXT], bias[TEXT], labels),
            }
            total = config.loss.matching_weight * terms["matching"]
            total = total + config.loss.identification_weight * terms["identification"]
            if form.weight:
                terms["adversarial"] = game.pull(both, twice)
                ramp = min(1.0, (step + 1) / (form.warmup * total_steps)) if form.warmup else 1.0
                total = total + ramp * form.weight * terms["adversarial"]
            unit = F.normalize(images, dim=1), F.normalize(texts, dim=1)
            if form.mmd:
                total = total + form.mmd * kernel_discrepancy(*unit)
            if form.coral:
                total = total + form.coral * moments_distance(*unit)
            if step % 10 == 0:
                row = {"step": step, "discriminator": loss, "accuracy": accuracy}
                for name, term in terms.items():
                    slopes = torch.autograd.grad(term, (images, texts), retain_graph=True)
                    row |= {name: float(term.detach()), f"{name}_gradient": float(torch.cat(slopes).norm())}
                lengths = both.detach().norm(dim=1).view(2, -1).mean(dim=1)
                history.append({**row, "image_length": float(lengths[0]), "text_length": float(lengths[1])})
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(encoders.parameters(), config.train.gradient_clip)
            optimizer.step()
            schedule.step()
            step += 1
    kept = {name: encoders.embed(material, name) for name in ("val", "test")}
    return {**measure(kept["val"]), "seconds": time.monotonic() - started}, history, kept


def measure(embeddings: Embeddings) -> dict[str, float]:
    """Retrieval and gap of a split, as a flat row."""
    result = evaluate(embeddings)
    return {f"{d}_{k}": result[d][k] for d in DIRECTIONS for k in ("rank_1", "rank_10", "mAP")} | gap(
        embeddings, nonlinear=True
    )


def _batches(split: Split, size: int, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of pictures (B,) and of one caption each, as `timam.data.batches.epoch_batches` draws them."""
    rng = np.random.default_rng([seed, epoch])
    order = epoch_order(split.image_labels, 0, rng)
    captions = np.array([rng.choice(of_image) for of_image in split.captions_of_image])
    for start in range(0, steps_per_epoch(len(order), size) * size, size):
        chosen = order[start : start + size]
        yield chosen, captions[chosen]


# -- many of them -----------------------------------------------------------------------------------------------


def search(
    names: Iterable[str], seeds: Iterable[int], material: Material, folder: Path, progress: bool = True
) -> pd.DataFrame:
    """A row a trial: form, expectation, seed, the measures of `trial`, its file. What FOLDER holds already is read.

    A trial's file is named after its form, seed, config, data and this file's text, so nothing old is taken for new.
    Several processes may search in one folder at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = to_dict(material.config)
    settings["data"].pop("root")  # the same data in another folder are the same
    # The form says how the adversary plays, whatever the preset does.
    settings["loss"] = [settings["loss"][f"{name}_weight"] for name in ("matching", "identification")]
    settings["train"] = {k: v for k, v in settings["train"].items() if not k.startswith("discriminator")}
    shared = [settings, material.fingerprint, Path(__file__).read_text(encoding="utf-8")]
    rows = []
    for seed, name in tqdm([(s, n) for s in seeds for n in names], desc="trials"):
        form, expectation = FORMS[name]
        key = hashlib.sha256(json.dumps([asdict(form), seed, *shared], sort_keys=True).encode()).hexdigest()[:12]
        file = folder / f"{key}.json"
        with FileLock(folder / f"{key}.lock"):
            if not file.exists():
                row, history, kept = trial(form, material, seed)
                for split, embeddings in kept.items():
                    embeddings.save(folder / f"{key}.{split}.safetensors")
                write_text(file, json.dumps({"row": row, "history": history}))
        found = json.loads(file.read_text(encoding="utf-8"))
        rows.append({"form": name, "expected": expectation, "seed": seed, **found["row"], "file": file})
    return pd.DataFrame(rows)


def what_a_probe_uses(embeddings: Embeddings, parts: Sequence[int] = (5, 10, 20, 50, 100)) -> pd.DataFrame:
    """Where the modalities differ: a fresh linear probe on the widest and on the narrowest directions alone.

    Returns:
        A row for each number of principal components of the centred modalities: share of the variance in the first
        ones, share of the centroids' distance (squared), and the accuracy of `modality_gap`'s probe on those and on
        as many of the last.
    """
    images, texts = (F.normalize(e, dim=1).double().numpy() for e in (embeddings.images, embeddings.texts))
    apart = images.mean(0) - texts.mean(0)
    centred = np.concatenate([images - images.mean(0), texts - texts.mean(0)])
    widths, directions = np.linalg.eigh(centred.T @ centred)
    widths, directions = widths[::-1], directions[:, ::-1]
    share = (apart @ directions) ** 2 / (apart**2).sum()
    labels = embeddings.image_labels.numpy(), embeddings.text_labels.numpy()
    rows = []
    for k in parts:
        accuracy = [
            linear_probe(images @ part, texts @ part, *labels) for part in (directions[:, :k], directions[:, -k:])
        ]
        rows.append({"directions": k, "variance in the first": widths[:k].sum() / widths.sum(),
                     "distance in the first": share[:k].sum(), "probe on the first": accuracy[0],
                     "probe on the last": accuracy[1]})  # fmt: skip
    return pd.DataFrame(rows)


def linear_probe(images: np.ndarray, texts: np.ndarray, image_labels: np.ndarray, text_labels: np.ndarray) -> float:
    """Balanced accuracy of a fresh logistic regression on unseen identities, as `modality_gap` without unit length."""
    both, of_image = np.concatenate([images, texts]), np.repeat([True, False], [len(images), len(texts)])
    groups = np.concatenate([image_labels, text_labels])
    right = modality_gap_measures.probe_hits(both, of_image, groups, modality_gap_measures.linear_probe())
    return float((right[of_image].mean() + right[~of_image].mean()) / 2)
