"""Training: `fit` trains a model, selects an epoch on validation, tests it once and leaves a complete run directory.

Each step draws its random numbers from (seed, epoch, step) and the process alone. So a run that was killed goes on
from its last finished epoch, and a run that a signal interrupted from its last step, to the same result as an
undisturbed one. (On a CPU to the same bits; the kernels of a GPU may round differently.)
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from timam.collapse import chance_warnings, training_warnings
from timam.config import PRESETS, Config, flat
from timam.data import DataError, Dataset, load_dataset
from timam.data.augment import augment, augments
from timam.data.batches import Batch, epoch_batches, steps_per_epoch
from timam.evaluation import DIRECTIONS, embed_split, evaluate, gap
from timam.images import normalize
from timam.interruption import Interrupted
from timam.job import Job
from timam.learner import Learner
from timam.metrics import RETRIEVAL_METRICS, chance, two_way_metrics
from timam.models import TIMAM
from timam.models.batching import ahead
from timam.models.saving import fetched, public_name
from timam.objective import train_step
from timam.provenance import code_fingerprint, provenance
from timam.run import Run, RunError
from timam.stores import StoredSplit, open_block_outputs, open_pixels, open_word_states

_NOT_FINITE = (
    "is not finite. The last finished epoch is kept. What usually helps: a lower learning rate, train.gradient_clip, "
    "train.mixed_precision=no, a smaller loss.adversarial_weight"
)


def fit(
    config: Config,
    output: Path | str,
    resume: bool = False,
    progress: bool = True,
    after_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Trains, selects on validation, tests once, leaves a complete run directory, and returns its metrics.json.

    A finished run of the same config and data is returned without work; `resume` continues an interrupted run, or
    starts one; `progress` shows bars and lines. The main process calls `after_epoch` with the rows of history.csv.

    Raises:
        BusyError: another process is training this run.
        Interrupted: SIGINT or SIGTERM arrived; the step under way was finished and saved.
        RunError: a run of another config or other data, or interrupted without `resume`; a loss that is not finite.
        timam.data.DataError, timam.models.WeightsError, ValueError: before anything is trained.
    """
    run = Run(Path(output))
    job = Job(config.train.mixed_precision, config.train.tracker, run.folder)
    training = _Training(config, run, job, progress and job.is_main, provenance(job.device))
    with job.running(), run.claimed(writes=job.is_main):
        finished = job.on_main(lambda: run.check(config, resume))
        if finished is not None:
            job.on_main(lambda: training.check_data(finished))
            return finished
        data = training.open_data()
        learner = training.start(data)
        # Without folders of this machine, as a tracker may send the settings elsewhere.
        settings = {k: public_name(v) if v and isinstance(v, str) else v for k, v in flat(config).items()}
        names = {tracker: {"name": run.folder.name} for tracker in ("wandb", "trackio")}
        job.accelerator.init_trackers("timam", settings, names)
        while not learner.progress.is_over(config.train):
            training.epoch(learner, data)
            if after_epoch is not None and job.is_main:
                after_epoch(learner.progress.history)
        return job.on_main(lambda: training.finish(learner, data))


@dataclass
class _Data:
    dataset: Dataset
    train: StoredSplit
    val: StoredSplit
    test: StoredSplit
    steps: int  # in an epoch


@dataclass
class _Training:
    """The parts of `fit`, which share what it was called with."""

    config: Config
    run: Run
    job: Job
    show: bool  # progress bars and lines
    made: dict[str, Any]  # `provenance` at the start, whose code trains

    # -- start ------------------------------------------------------------------------------------------------------

    def check_data(self, metrics: dict[str, Any]) -> None:
        """Raises RunError where a finished run had other data than those that are in the folder now."""
        data = self.config.data
        if Path(data.root).exists():
            dataset = load_dataset(data.dataset, data.root, columns=data.renamed)
            self._compare(metrics["provenance"]["data_fingerprint"], dataset)

    def _compare(self, known: str, dataset: Dataset) -> None:
        if known not in ("", now := dataset.fingerprint()):
            both = f"fingerprint {known} then, {now} now, in {dataset.image_root}"
            raise RunError(f"{self.run.folder} was begun on other data: {both}; put the data back or give a new folder")

    def open_data(self) -> _Data:
        """Reads the data set and opens the pixel store of each split. Raises DataError and RunError."""
        data, train = self.config.data, self.config.train
        dataset = load_dataset(data.dataset, data.root, columns=data.renamed)
        splits = [dataset.split(name) for name in ("train", "val", "test")]
        batch = min(data.batch_size, len(splits[0].image_paths))
        if batch % self.job.count:
            raise RunError(f"a batch of {batch} pictures cannot be shared evenly by {self.job.count} processes")
        for line in (*dataset.notes, *(f"warning: {w}" for w in dataset.warnings)) if self.show else ():
            tqdm.write(f"{dataset.name}: {line}")
        stored, problems = [], []
        height, width = self.config.model.image_height, self.config.model.image_width
        with self.job.accelerator.main_process_first():
            for split in splits:
                try:
                    stored.append(StoredSplit(split, open_pixels(split.image_paths, height, width, self.show)))
                except DataError as error:  # all splits first: one message names every unreadable picture
                    problems += error.problems
        if problems:
            raise DataError(f"pictures of {data.dataset} in {data.root}", problems)
        whole = steps_per_epoch(len(splits[0].image_paths), data.batch_size)
        steps = min(whole, train.max_steps or whole)
        recipe = PRESETS[self.config.preset].train
        wanted = (recipe.max_steps or 0) * recipe.epochs
        if self.show and steps < (train.max_steps or 0) and steps * train.epochs < wanted:
            tqdm.write(
                f"warning: few pictures give {steps * train.epochs} steps in all. The preset is made for {wanted}, "
                f"which train.epochs={math.ceil(wanted / steps)} gives. Where tried, it gained little (docs/quick.md)"
            )
        return _Data(dataset, stored[0], stored[1], stored[2], steps)

    def start(self, data: _Data) -> Learner:
        """A new learner, or the one of the last checkpoint. Raises RunError where the run began with other data."""
        init = "" if self.run.last.exists() else self.config.train.init  # a begun run has its own weights
        if init and not Run(Path(init)).best.is_dir():
            fetched(init)  # a wrong name is noticed before other weights are fetched
        set_seed(self.config.train.seed)
        train = data.train.split
        with self.job.accelerator.main_process_first():  # one process fetches weights, the others find them
            model = TIMAM.pretrained(self.config.model, len(train.identities), train.captions).to(self.job.device)
        if init:
            warm_start(model, init, self.show)
        learner = Learner.build(model, self.config, data.steps)
        if self.job.is_main:
            self.run.create(self.config)
        try:
            # Asked on the main process only: one that could not see the checkpoint would start anew beside the others.
            if self.job.on_main(self.run.last.exists):
                self.run.restore(learner)
        finally:  # weights of another shape are no damage where the data are other ones
            self._compare(learner.progress.data_fingerprint, data.dataset)
        progress = learner.progress
        if self.job.is_main and progress.epoch and not progress.step:
            self.run.complete_epoch(learner)
        self.job.share_weights(model)
        progress.data_fingerprint = data.dataset.fingerprint()
        progress.code = [*dict.fromkeys([*progress.code, code_fingerprint()])]  # once each, in their order
        model.text_encoder.freeze(progress.unfrozen_at is None)
        model.image_encoder.freeze_blocks(self.config.train.frozen_blocks)
        if self.config.train.frozen_blocks and not augments(self.config.data):
            with self.job.accelerator.main_process_first():
                for part in (data.train, data.val):
                    part.blocks = open_block_outputs(model, part.pixels, progress=self.show)
        return learner

    # -- one epoch --------------------------------------------------------------------------------------------------

    def epoch(self, learner: Learner, data: _Data) -> None:
        """Trains, validates and saves one epoch. Raises Interrupted, and RunError for a loss that is not finite."""
        config, job, progress = self.config, self.job, learner.progress
        self._begin_epoch(learner, data)
        started = time.monotonic()  # the store of word states, which the first epoch builds, does not count
        job.signals.held = True  # a signal now waits until the epoch, or a step of it, is saved
        row = self._train_epoch(learner, data)
        if row is None:
            progress.seconds += time.monotonic() - started
            if job.is_main:
                learner.save(self.run.last)
            job.accelerator.wait_for_everyone()
            self._interrupt(f"in epoch {progress.epoch + 1} after step {progress.step} of {data.steps}")
        row["language_model_frozen"] = learner.model.text_encoder.frozen
        row |= job.on_main(lambda: _validate(learner.model, data))
        row["seconds"], progress.seconds = progress.seconds + time.monotonic() - started, 0.0
        learner.end_epoch(row, config.train)
        row = progress.history[-1]
        job.accelerator.log(row, step=progress.epoch)
        if job.is_main:
            self.run.save_epoch(learner)
        if self.show:
            best = " (best)" if progress.best_epoch == progress.epoch else ""
            game = f", discriminator accuracy {row['discriminator_accuracy']:.2f}"
            tqdm.write(
                f"epoch {progress.epoch}/{config.train.epochs}: loss {row['total']:.3f}, validation text-to-image "
                f"rank-1 {row['val_text_to_image_rank_1']:.3f}{best}{game * (config.loss.adversarial_weight > 0)}, "
                f"{row['seconds']:.0f} s"
            )
            for warning in training_warnings(row, config.loss.gradient_penalty):
                tqdm.write(f"warning: {warning}")
        if job.interrupted():
            self._interrupt(f"after epoch {progress.epoch}")
        job.signals.held = False

    def _interrupt(self, done: str) -> NoReturn:
        message = f"{self.run.folder}: interrupted {done}, which is saved; go on with --resume"
        raise Interrupted(message, self.job.signals.number or signal.SIGTERM)

    def _begin_epoch(self, learner: Learner, data: _Data) -> None:
        """Unfreezes the language model when it is time, and keeps the validation embeddings of that moment."""
        model, progress, stored = learner.model, learner.progress, (data.train, data.val)
        if model.text_encoder.frozen and progress.unfreezes(self.config.train):
            if progress.epoch and self.job.is_main:
                data.val.words = open_word_states(model, data.val.split.captions)  # a resumed run has none open yet
                progress.kept["frozen"] = self.run.keep_embeddings("frozen", embed_split(model, data.val))
            progress.unfrozen_at = progress.epoch + 1
            model.text_encoder.freeze(False)
        if not model.text_encoder.frozen:
            data.train.words = data.val.words = None
        elif data.train.words is None:
            with self.job.accelerator.main_process_first():
                for part in stored:
                    part.words = open_word_states(model, part.split.captions, progress=self.show)
        if not progress.epoch and not progress.step and self.job.is_main:
            progress.kept["before"] = self.run.keep_embeddings("before", embed_split(model, data.val))

    def _train_epoch(self, learner: Learner, data: _Data) -> dict[str, Any] | None:
        """The means of an epoch's loss terms, and the rates after it; None where a signal stopped it between steps."""
        config, job, progress, steps = self.config, self.job, learner.progress, data.steps
        learner.model.train()
        first, progress.step = progress.step, 0
        sums = {name: torch.tensor(value, device=job.device) for name, value in progress.sums.items()}
        progress.sums = {}
        epoch, seed, part = progress.epoch + 1, config.train.seed, (job.index, job.count)
        pictures = data.train.pixels if data.train.blocks is None else data.train.blocks
        batches = epoch_batches(data.train.split, pictures, config.data, seed, epoch, part, first)
        # A thread reads the next batch while this one launches its step.
        loaded = ahead(lambda _: self._load(learner.model, data.train, next(batches)), range(first, steps))
        title = f"epoch {epoch}/{config.train.epochs}"
        with tqdm(total=steps, initial=first, desc=title, unit="step", leave=False, disable=not self.show) as bar:
            for step, (batch, words, mask) in zip(range(first, steps), loaded, strict=True):
                # Each process draws its own augmentations.
                drawn = np.random.SeedSequence([seed, epoch, step, job.index]).generate_state(1, np.uint64)[0]
                torch.manual_seed(int(drawn))
                inputs = self._inputs(data.train, batch, words, mask)
                labels = batch.identity_labels.to(job.device, non_blocking=True)
                terms = train_step(learner, inputs, labels, config, job)
                sums = {name: sums.get(name, 0) + term for name, term in terms.items()}
                learner.end_step(config.train)
                bar.update()
                # Reading a value waits for the device, so not at every step. A NaN stays in the sums until then.
                stops = (step % 10 == 9 or job.count == 1) and step < steps - 1 and job.interrupted()
                if step % 10 == 9 or step == steps - 1 or stops:
                    if broken := [name for name, value in sums.items() if not math.isfinite(float(value))]:
                        raise RunError(f"epoch {epoch}, step {step + 1}: {', '.join(broken)} {_NOT_FINITE}")
                    bar.set_postfix(loss=f"{float(terms['total']):.3f}")
                if stops:
                    progress.step, progress.sums = step + 1, {name: float(value) for name, value in sums.items()}
                    return None
        rates = {f"{name}_lr": optimizer.param_groups[0]["lr"] for name, optimizer in learner.optimizers.items()}
        return {name: float(value) / steps for name, value in sums.items()} | rates

    def _load(self, model: TIMAM, stored: StoredSplit, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """The batch with its token ids, or states in half precision, and their mask, on the CPU."""
        if stored.words is not None:
            return batch, *stored.words.gather(batch.captions)
        return batch, *model.tokenize([stored.split.captions[i] for i in batch.captions])

    def _inputs(self, stored: StoredSplit, batch: Batch, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The arguments of `TIMAM.forward`, on the device."""
        device = self.job.device
        pixels = batch.pixels.to(device, non_blocking=True)
        # Outputs of frozen blocks are floating-point numbers; they are stored where nothing is augmented.
        images = pixels.float() if stored.blocks is not None else augment(normalize(pixels), self.config.data)
        text = {k: v.to(device, non_blocking=True) for k, v in (("words", words), ("attention_mask", mask))}
        return {"images": images, **text, "lengths": mask.sum(dim=1)}  # on the CPU: nothing waits for the device

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, learner: Learner, data: _Data) -> dict[str, Any]:
        """Tests the epoch that validation chose, once, and completes the run directory."""
        started, progress = time.monotonic(), learner.progress
        try:
            model = self.run.best_model(self.job.device)
        except (FileNotFoundError, ValueError) as error:
            raise RunError(f"{error}; remove {self.run.folder} and train again") from error
        validation = embed_split(model, StoredSplit(data.val.split, data.val.pixels))
        self.run.keep_embeddings("best", validation)
        unit = (torch.nn.functional.normalize(e, dim=1) for e in (validation.images, validation.texts))
        model.modality_means = torch.stack([e.mean(dim=0) for e in unit])
        self.run.save_best(model)
        test = embed_split(model, data.test, progress=self.show)
        best = progress.history[progress.best_epoch - 1]
        at_random = chance(validation.text_labels, validation.image_labels)
        carried_over = list(chance_warnings(best["val_text_to_image_rank_1"], at_random))
        for warning in carried_over if self.show else ():
            tqdm.write(f"warning: {warning}")
        seconds = sum(row["seconds"] for row in progress.history) + time.monotonic() - started
        metrics = {
            "dataset": self.config.data.dataset,
            "split": "test",
            "best_epoch": progress.best_epoch,
            "seconds": round(seconds, 1),  # training, validation and test; not the stores
            **evaluate(test, data.dataset.kind, data.dataset.folds, validation),
            "modality_gap": gap(test),
            # Of the epoch that was tested:
            "warnings": [*training_warnings(best, self.config.loss.gradient_penalty), *carried_over],
            "provenance": {
                **self.made,
                "code": "+".join(progress.code),
                "data_fingerprint": progress.data_fingerprint,
                "data_notes": list(data.dataset.notes),
            },
        }
        self.run.complete(learner, test, metrics)
        return metrics


def warm_start(model: TIMAM, source: str, show: bool = True) -> None:
    """Copies a trained model's parameters and statistics of the same name and shape, except the identity classifier.

    The source is a run, or a saved TIMAM: a folder or the id of a hub repository. `show` prints what was not copied.
    Raises FileNotFoundError and ValueError: no saved model there, or none of its tensors fits.
    """
    run = Run(Path(source))
    trained = (run.best_model() if run.best.is_dir() else TIMAM.from_pretrained(source)).state_dict()
    own = model.state_dict()
    fits = {name for name, value in trained.items() if name in own and own[name].shape == value.shape}
    taken = {name: trained[name] for name in fits if not name.startswith(("class_weights", "class_bias"))}
    if not taken:
        raise ValueError(f"train.init = {source!r}: none of its tensors has the name and shape of one of this model's")
    model.load_state_dict(taken, strict=False)
    left = sorted({name.rsplit(".", 1)[0] for name in own if name not in taken})
    if show:
        tqdm.write(f"started from {source}: {len(taken)} of {len(own)} tensors; new: {', '.join(left) or 'none'}")


def _validate(model: TIMAM, data: _Data) -> dict[str, float]:
    """Retrieval, modality gap and mean norms on the validation split, as columns of history.csv.

    `train_text_to_image_rank_1` is rank-1 among as many training identities: far above the validation rank-1, it shows
    that the model knows these by heart; where both are low, it has not learned enough yet.
    """
    embeddings = embed_split(model, data.val)
    results = two_way_metrics(*vars(embeddings).values())
    row = {f"val_{d}_{k}": results[d][k] for d in DIRECTIONS for k in RETRIEVAL_METRICS}
    for modality, vectors in (("image", embeddings.images), ("text", embeddings.texts)):
        row[f"val_{modality}_norm"] = float(vectors.norm(dim=1).mean())
    row |= {f"val_{name}": value for name, value in gap(embeddings).items()}
    known = embed_split(model, data.train.sample(len(data.val.split.identities)))
    return row | {"train_text_to_image_rank_1": two_way_metrics(*vars(known).values())["text_to_image"]["rank_1"]}
