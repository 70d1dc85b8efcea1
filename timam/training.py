"""Training: one flat loop through Accelerate, two players side by side, resumable to the same result.

Every step draws its randomness from (seed, epoch, step) alone. So a run that was killed at any moment goes on from the
last finished epoch, and one that was interrupted by a signal from its last step, exactly as an undisturbed one (on a
CPU; a GPU's kernels may differ in rounding).
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list, set_seed
from filelock import FileLock, Timeout
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from tqdm import tqdm

from timam import config as configs
from timam.checkpoints import Progress, RunError, load_checkpoint, save_checkpoint
from timam.collapse import training_warnings
from timam.config import Config, LossConfig, TrainConfig
from timam.data import DataError, Dataset, Split, load_dataset
from timam.data.augment import augment
from timam.data.batches import Batch, epoch_batches, steps_per_epoch
from timam.distributed import average_gradients, gather, processes, synchronize_batch_norm
from timam.evaluation import embed_split, evaluate, gap, read_metrics
from timam.files import check_sums, read_json, recover_folder, replacing_folder, sha256, write_sums, write_text
from timam.images import normalize
from timam.interruption import Interrupted, Signals, interruptible
from timam.losses import (
    cmpm_loss,
    discriminator_loss,
    encoder_adversarial_loss,
    full_precision,
    gradient_penalty,
    norm_softmax_loss,
    softmax_loss,
)
from timam.metrics import RETRIEVAL_METRICS
from timam.models import TIMAM
from timam.models.joint import IMAGE, TEXT
from timam.provenance import code_fingerprint, provenance
from timam.stores import WordStates, open_pixels, open_word_states

# How long processes wait for another, which may be building a store or testing on its own. A lost one is noticed at
# once by the launcher; torch's ten minutes would end a job whose first store takes longer.
PATIENCE = timedelta(days=1)


class BusyError(RunError):
    """Another process is at this run."""


# -- schedules --------------------------------------------------------------------------------------------------


def should_unfreeze(progress: Progress, config: TrainConfig) -> bool:
    """Whether the next epoch is the first to train the language model: by epoch or on a validation plateau."""
    if progress.unfrozen_at is not None:
        return False
    by_epoch = config.unfreeze_epoch is not None and progress.epoch + 1 >= config.unfreeze_epoch
    return by_epoch or (config.unfreeze_patience is not None and progress.waited() >= config.unfreeze_patience)


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Linear warm-up: (step + 1) / warmup_steps, then 1. `step` counts from 0, so the first one already learns."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine from 1 towards 0 at `total_steps`."""
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * done))


def build_optimizers(model: TIMAM, config: TrainConfig) -> dict[str, Optimizer]:
    """One optimizer each for image encoder, text encoder with identity classifier, and discriminator.

    The frozen language model's parameters are in the text optimizer from the start: without a gradient they are
    passed over, and unfreezing changes no optimizer.
    """
    language_model = list(model.text_encoder.language_model.parameters())
    own = {id(p) for p in language_model}
    text = [p for p in model.text_encoder.parameters() if id(p) not in own] + [model.class_weights, model.class_bias]
    language_lr = config.text_lr if model.text_encoder.learns_words else config.language_model_lr
    groups: dict[str, tuple[str, float, list[dict[str, Any]]]] = {
        "image": (config.image_optimizer, config.image_lr, [{"params": list(model.image_encoder.parameters())}]),
        "text": (config.text_optimizer, config.text_lr,
                 [{"params": text}, {"params": language_model, "lr": language_lr}]),
        "discriminator": (config.discriminator_optimizer, config.discriminator_lr,
                          [{"params": list(model.discriminator.parameters())}]),
    }  # fmt: skip
    momenta = {"image": 0.9, "text": 0.9, "discriminator": config.discriminator_momentum}
    return {
        name: _optimizer(kind, params, lr, momenta[name], config.weight_decay)
        for name, (kind, lr, params) in groups.items()
    }


def _optimizer(kind: str, params: list[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    # Fused: one way through memory instead of ten.
    return adam(params, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def build_schedulers(optimizers: dict[str, Optimizer], config: TrainConfig, epoch_steps: int) -> dict[str, Any]:
    """A learning-rate scheduler for each optimizer; "plateau" steps by epoch, the others by step."""
    if config.schedule == "plateau":
        return {
            name: ReduceLROnPlateau(
                optimizer, mode="max", factor=0.1, patience=config.plateau_patience, threshold=0.0,
                threshold_mode="abs", min_lr=config.minimum_lr,
            )
            for name, optimizer in optimizers.items()
        }  # fmt: skip
    warmup, total = round(config.warmup_epochs * epoch_steps), config.epochs * epoch_steps

    def factor(step: int) -> float:
        return cosine_factor(step, warmup, total) if config.schedule == "cosine" else warmup_factor(step, warmup)

    return {name: LambdaLR(optimizer, factor) for name, optimizer in optimizers.items()}


# -- one step ---------------------------------------------------------------------------------------------------


def train_step(
    model: TIMAM,
    images: Tensor,
    text: dict[str, Tensor],
    identity_labels: Tensor,
    optimizers: dict[str, Optimizer],
    config: LossConfig,
    accelerator: Accelerator,
    gradient_clip: float = 0.0,
    discriminator_steps: int = 1,
) -> dict[str, Tensor]:
    """The discriminator's updates and one of the encoders, from a single pass of the encoders.

    Args:
        images: (B, 3, H, W) float32, normalised and augmented; B of this process.
        text: `attention_mask` (B, T) with `token_ids` (B, T) or `word_states` (B, T, C), and `lengths` (B,) or none.
        identity_labels: (B,) int64.
        discriminator_steps: updates of the discriminator before the encoders'.

    Returns:
        Scalars on the device, detached: every loss term unweighted, their weighted "total", and the
        discriminator's loss and accuracy before its last update.
    """
    with accelerator.autocast():
        image_embeddings, text_embeddings = model(images, **text)
    # Of all processes, where there are several: the losses are those of the whole batch.
    image_embeddings, text_embeddings = (
        gather(full_precision(image_embeddings)),
        gather(full_precision(text_embeddings)),
    )
    identity_labels = gather(identity_labels)
    discriminator = model.discriminator

    def see(embeddings: Tensor) -> Tensor:
        # Lengths tell the modalities apart as well, but no cosine similarity sees them.
        unit = config.adversarial_input == "unit"
        return F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5 if unit else embeddings

    # The discriminator's moves. The embeddings are detached: the encoders must not help it. Without an adversarial
    # loss it only watches.
    sides = [see(image_embeddings.detach()), see(text_embeddings.detach())]
    for _ in range(discriminator_steps):
        seen = torch.cat(sides).requires_grad_(config.gradient_penalty > 0)
        logits = discriminator(seen)
        image_logits, text_logits = logits.split(len(image_embeddings))
        accuracy = ((image_logits > 0).float().mean() + (text_logits <= 0).float().mean()) / 2
        discriminator_term = discriminator_loss(image_logits, text_logits, config.label_smoothing)
        penalty = config.gradient_penalty / 2 * gradient_penalty(logits, seen) if config.gradient_penalty else 0.0
        accelerator.backward(discriminator_term + penalty)
        _move(accelerator, [optimizers["discriminator"]], gradient_clip)

    # The encoders' move, against the discriminator as it now is.
    matching = cmpm_loss(image_embeddings, text_embeddings, identity_labels, config.matching_epsilon)
    weights, bias = model.class_weights, model.class_bias
    identification = norm_softmax_loss if model.model_config.normalized_classifier else softmax_loss
    identification_image = identification(image_embeddings, weights[IMAGE], bias[IMAGE], identity_labels)
    identification_text = identification(text_embeddings, weights[TEXT], bias[TEXT], identity_labels)
    total = config.matching_weight * matching
    total = total + config.identification_weight * (identification_image + identification_text)
    adversarial = torch.zeros_like(matching)
    if config.adversarial_weight:
        discriminator.requires_grad_(False)  # this loss is the encoders' alone
        logits = discriminator(see(image_embeddings)), discriminator(see(text_embeddings))
        discriminator.requires_grad_(True)
        if config.adversarial_form == "gradient_reversal":
            adversarial = -discriminator_loss(*logits, config.label_smoothing)
        else:
            adversarial = encoder_adversarial_loss(*logits)
        total = total + config.adversarial_weight * adversarial
    accelerator.backward(total)
    _move(accelerator, [optimizers["image"], optimizers["text"]], gradient_clip)
    terms = {
        "total": total, "matching": matching, "identification_image": identification_image,
        "identification_text": identification_text, "adversarial": adversarial,
        "discriminator": discriminator_term, "discriminator_accuracy": accuracy,
    }  # fmt: skip
    return {name: term.detach() for name, term in terms.items()}


def _move(accelerator: Accelerator, optimizers: list[Any], gradient_clip: float) -> None:
    """Clips the gradient of everything that moves, as one vector, then steps and clears."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    average_gradients(parameters)
    if gradient_clip:
        accelerator.clip_grad_norm_(parameters, gradient_clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# -- one run ----------------------------------------------------------------------------------------------------


def fit(config: Config, output: Path | str, resume: bool = False, progress: bool = True) -> dict[str, Any]:
    """Trains, selects on validation, tests once, and leaves a complete run directory.

    Args:
        config: what to run; written to OUTPUT/config.json.
        output: the run directory. A finished one of the same config is returned as it is.
        resume: goes on with an interrupted run (or starts one where there is none).
        progress: shows bars and a line an epoch.

    Returns:
        The content of OUTPUT/metrics.json.

    Raises:
        BusyError: another process is at this run.
        Interrupted: SIGINT or SIGTERM; the step that was under way is finished and saved.
        RunError: another run's directory, an interrupted run without `resume` or of other data, a non-finite loss.
        timam.data.DataError, timam.models.WeightsError, ValueError: before anything is trained.
    """
    output = Path(output)
    accelerator = Accelerator(
        mixed_precision=_mixed_precision(config.train.mixed_precision),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if int(os.environ.get("WORLD_SIZE", "1")) != accelerator.num_processes:  # else each would train on its own
        raise RunError("started as one of several processes, but without GPUs: set ACCELERATE_USE_CPU=true to use CPUs")
    try:
        with interruptible(several=accelerator.num_processes > 1) as signals:
            if not accelerator.is_main_process:
                return _fit(config, output, resume, False, accelerator, signals)
            output.parent.mkdir(parents=True, exist_ok=True)
            finished = (output / "metrics.json").exists()  # is only read, and may be where nothing can be written
            lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)  # released by the system after a kill
            with nullcontext() if finished else lock:
                return _fit(config, output, resume, progress, accelerator, signals)
    except Timeout:
        raise BusyError(f"{output}: another process is at this run; wait for it or give a new folder") from None
    except RuntimeError as error:
        if accelerator.num_processes == 1 or isinstance(error, RunError):
            raise
        raise RunError(
            f"process {accelerator.process_index} of {accelerator.num_processes} cannot go on: {error}\nThe last "
            "finished epoch is kept; start the same command again with --resume"
        ) from error


def _fit(
    config: Config, output: Path, resume: bool, progress: bool, accelerator: Accelerator, signals: Signals
) -> dict[str, Any]:
    main = accelerator.is_main_process
    finished = _from_main(accelerator, lambda: _prepare(output, config, resume))
    if finished is not None:
        return finished
    dataset = load_dataset(config.data.dataset, config.data.root)
    train, val, test = (dataset.split(s) for s in ("train", "val", "test"))
    if (batch := min(config.data.batch_size, len(train.image_paths))) % accelerator.num_processes:
        raise RunError(f"a batch of {batch} pictures cannot be shared evenly by {accelerator.num_processes} processes")
    for line in (*dataset.notes, *(f"warning: {w}" for w in dataset.warnings)) if progress else ():
        tqdm.write(f"{dataset.name}: {line}")
    with accelerator.main_process_first():  # which builds what the others then open
        pixels = _open_all((train, val, test), config, progress)

    set_seed(config.train.seed)
    model = TIMAM.pretrained(config.model, len(train.identities), train.captions).to(accelerator.device)
    optimizers = build_optimizers(model, config.train)
    epoch_steps = min(
        steps_per_epoch(len(train.image_paths), config.data.batch_size), config.train.max_steps or math.inf
    )
    schedulers = build_schedulers(optimizers, config.train, int(epoch_steps))
    state = Progress()
    last, best = output / "checkpoints" / "last", output / "checkpoints" / "best"
    if main:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "config.json", json.dumps(configs.to_dict(config), indent=2) + "\n")
        for folder in (last, best):
            recover_folder(folder)
    if _from_main(accelerator, last.exists):  # a process that cannot see it must not start anew beside the others
        state = load_checkpoint(last, model, optimizers, schedulers)
        for moment, digest in state.kept.items():
            if not (path := _embeddings_file(output, moment)).exists() or sha256(path) != digest:
                raise RunError(f"{path} is damaged; remove {output} and train again")
    broadcast(model.state_dict())  # the seed gives the same weights on machines of one kind only
    _sign(state, dataset, config, output)
    optimizers = {name: accelerator.prepare(optimizer) for name, optimizer in optimizers.items()}
    model.text_encoder.freeze(state.unfrozen_at is None)
    synchronize_batch_norm(model)
    words: dict[str, WordStates] = {}  # of the frozen language model

    while state.epoch < config.train.epochs and not _stopped_early(state, config.train):
        epoch, epoch_started = state.epoch + 1, time.monotonic()
        if model.text_encoder.frozen and should_unfreeze(state, config.train):
            if state.epoch and main:  # resumed runs have no store open yet
                frozen = embed_split(model, val, pixels["val"], word_states=open_word_states(model, val.captions))
                frozen.save(path := _embeddings_file(output, "frozen"))
                state.kept["frozen"] = sha256(path)
            state.unfrozen_at = epoch
            model.text_encoder.freeze(False)
        if not model.text_encoder.frozen:
            words = {}
        elif not words:
            with accelerator.main_process_first():
                words = {s.name: open_word_states(model, s.captions, progress=progress) for s in (train, val)}
        if epoch == 1 and not state.step and main:
            before = embed_split(model, val, pixels["val"], word_states=words.get("val"))
            before.save(path := _embeddings_file(output, "before"))
            state.kept["before"] = sha256(path)
        signals.held = True  # until the epoch, or a step of it, is saved
        row = _train_epoch(model, train, pixels["train"], words.get("train"), optimizers, schedulers, config, state,
                           accelerator, int(epoch_steps), progress, signals)  # fmt: skip
        if state.step:
            state.seconds += time.monotonic() - epoch_started
            if main:
                save_checkpoint(last, model, optimizers, schedulers, state)
            accelerator.wait_for_everyone()
            done = f"in epoch {epoch} after step {state.step} of {epoch_steps}"
            raise Interrupted(_saved(output, done), signals.number or signal.SIGTERM)
        row["language_model_frozen"] = model.text_encoder.frozen
        row |= _from_main(accelerator, lambda: _validate(model, val, pixels["val"], words.get("val")))  # noqa: B023
        row["seconds"] = state.seconds + time.monotonic() - epoch_started
        state.seconds = 0.0
        state.history.append({"epoch": epoch, **row})
        if config.train.schedule == "plateau":
            for scheduler in schedulers.values():
                scheduler.step(row["val_text_to_image_rank_1"])
        if main:
            if state.best_epoch == epoch:  # before `last`: killed in between, the epoch is repeated to the same result
                with replacing_folder(best) as folder:
                    model.save_pretrained(folder)
                    write_sums(folder)
            # Also before `last`: after the last epoch nothing would write it again.
            _write_history(output, state)
            save_checkpoint(last, model, optimizers, schedulers, state)
        if progress:
            tqdm.write(_epoch_line(state, config.train.epochs))
            for warning in training_warnings(state.history[-1], config.loss.gradient_penalty):
                tqdm.write(f"warning: {warning}")
        if _any_process(signals.number is not None, accelerator.device):
            raise Interrupted(_saved(output, f"after epoch {epoch}"), signals.number or signal.SIGTERM)
        signals.held = False

    return _from_main(
        accelerator, lambda: _finish(output, best, config, dataset, pixels, state, accelerator.device, progress)
    )


def _saved(output: Path, done: str) -> str:
    return f"{output}: interrupted {done}, which is saved; go on with --resume"


def _from_main(accelerator: Accelerator, compute: Callable[[], Any]) -> Any:
    """What the main process computes, on every process."""
    results = [compute() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(results)
    return results[0]


def _validate(model: TIMAM, val: Split, pixels: np.ndarray, word_states: WordStates | None) -> dict[str, float]:
    """Retrieval, modality gap and mean norms on the validation split, as a row of history has them."""
    embeddings = embed_split(model, val, pixels, word_states=word_states)
    results = evaluate(embeddings)
    row = {f"val_{d}_{k}": results[d][k] for d in results for k in RETRIEVAL_METRICS}
    for side, vectors in (("image", embeddings.images), ("text", embeddings.texts)):
        row[f"val_{side}_norm"] = float(vectors.norm(dim=1).mean())
    if len(val.identities) > 1:
        row |= {f"val_{name}": value for name, value in gap(embeddings).items()}
    return row


def _write_history(output: Path, state: Progress) -> None:
    write_text(output / "history.csv", pd.DataFrame(state.history).to_csv(index=False))


def _embeddings_file(output: Path, moment: str) -> Path:
    """Where the validation split's embeddings of a moment are kept: "before" training, at the end of the "frozen"
    stage where the language model was then unfrozen, and of the "best" epoch."""
    folder = output / "val_embeddings"
    folder.mkdir(exist_ok=True)
    return folder / f"{moment}.safetensors"


def _prepare(output: Path, config: Config, resume: bool) -> dict[str, Any] | None:
    """The metrics of a finished run of this config; None where there is work to do. Raises RunError."""
    known, problem = _known_configs(output)
    if not known:
        if output.exists() and any(output.iterdir()):
            raise RunError(f"{problem or f'{output} is not empty and holds no run'}; give a new folder")
        return None
    if config not in known:
        old, new = configs.to_dict(known[0]), configs.to_dict(config)
        changed = [f"{s}.{k}: {old[s][k]!r} there, {new[s][k]!r} asked for" for s in configs.SECTIONS for k in new[s]
                   if old[s][k] != new[s][k]]  # fmt: skip
        raise RunError("\n  ".join([f"{output} holds a run of another config; give a new folder", *changed]))
    metrics = output / "metrics.json"
    if metrics.exists():
        try:
            check_sums(output)
            return read_metrics(metrics)
        except ValueError as error:
            raise RunError(f"{error}. Remove {metrics} and go on with --resume: the end is done again") from error
    if not resume:
        raise RunError(f"{output} holds an interrupted run; go on with --resume, or remove it")
    return None


def _known_configs(output: Path) -> tuple[list[Config], str | None]:
    """A run's config by config.json and by its last checkpoint, those that can be read, and what is wrong with one."""
    known, problem = [], None
    last = output / "checkpoints" / "last"
    for read in (
        lambda: configs.load(output / "config.json"),
        lambda: configs.from_dict(read_json(last / "training_state.json", finite=False)["progress"]["config"]),
    ):
        try:
            known.append(read())
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            problem = problem or str(error)
    return known, problem


def _sign(state: Progress, dataset: Dataset, config: Config, output: Path) -> None:
    """Notes data, config and code in the run's state. Raises RunError where it was begun on other data."""
    fingerprint = dataset.fingerprint()
    if state.data_fingerprint not in ("", fingerprint):
        raise RunError(
            f"{output} was begun on other data: fingerprint {state.data_fingerprint} then, {fingerprint} now, in "
            f"{dataset.image_root}; put the data back or give a new folder"
        )
    state.data_fingerprint, state.config = fingerprint, configs.to_dict(config)
    if (code := code_fingerprint()) not in state.code:
        state.code.append(code)


def _open_all(splits: Sequence[Split], config: Config, progress: bool) -> dict[str, np.ndarray]:
    """The pixel store of each split. Raises DataError with the unreadable pictures of all of them."""
    pixels, problems = {}, []
    for split in splits:
        try:
            size = config.model.image_height, config.model.image_width
            pixels[split.name] = open_pixels(split.image_paths, *size, progress)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(f"pictures of {config.data.dataset} in {config.data.root}", problems)
    return pixels


def _mixed_precision(setting: str) -> str:
    """bf16 where a GPU has it. CPUs stay in float32: without native bf16 they are many times slower in it."""
    if setting == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return setting


def _stopped_early(state: Progress, config: TrainConfig) -> bool:
    return config.early_stop is not None and state.waited() >= config.early_stop


def _train_epoch(
    model: TIMAM, split: Split, pixels: np.ndarray, word_states: WordStates | None, optimizers: dict[str, Any],
    schedulers: dict[str, Any], config: Config, state: Progress, accelerator: Accelerator, steps: int, progress: bool,
    signals: Signals,
) -> dict[str, Any]:  # fmt: skip
    """One epoch, or what is left of it; the means of all loss terms and the learning rates at its end.

    After a signal it stops at the next step, with `state.step` and `state.sums` set. Raises RunError.
    """
    model.train()
    device, data, seed, epoch, first = accelerator.device, config.data, config.train.seed, state.epoch + 1, state.step
    index, count = accelerator.process_index, accelerator.num_processes
    batches = epoch_batches(split, pixels, data, seed, epoch, (index, count), first)
    bar = tqdm(total=steps, initial=first, desc=f"epoch {epoch}/{config.train.epochs}", unit="step", leave=False,
               disable=not progress)  # fmt: skip
    sums = {name: torch.tensor(value, device=device) for name, value in state.sums.items()}
    state.step, state.sums = 0, {}
    for step, batch in zip(range(first, steps), batches, strict=False):
        # Each process draws its own augmentations.
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, step, index]).generate_state(1, np.uint64)[0]))
        images = augment(normalize(batch.pixels.to(device, non_blocking=True)), data)
        terms = train_step(
            model, images, _text_inputs(model, split, batch, word_states, device), batch.identity_labels.to(device),
            optimizers, config.loss, accelerator, config.train.gradient_clip, config.train.discriminator_steps,
        )  # fmt: skip
        sums = {name: sums.get(name, 0) + term for name, term in terms.items()}
        if config.train.schedule != "plateau":
            for scheduler in schedulers.values():
                scheduler.step()
        bar.update()
        looking = step % 10 == 9 or step == steps - 1  # reading a value waits for the device: not at every step
        if looking:
            _check_finite(sums, epoch, step)
            bar.set_postfix(loss=f"{float(terms['total']):.3f}")
        if step < steps - 1 and (looking or count == 1) and _any_process(signals.number is not None, device):
            state.step, state.sums = step + 1, {name: float(value) for name, value in sums.items()}
            break
    bar.close()
    means = {name: float(value) / steps for name, value in sums.items()}
    return {**means, **{f"{name}_lr": o.param_groups[0]["lr"] for name, o in optimizers.items()}}


def _any_process(flag: bool, device: torch.device) -> bool:
    """Whether it holds on any of the processes, which then stop at the same step."""
    return flag if processes() == 1 else bool(gather(torch.tensor([flag], dtype=torch.float32, device=device)).any())


def _text_inputs(
    model: TIMAM, split: Split, batch: Batch, word_states: WordStates | None, device: torch.device
) -> dict[str, Tensor]:
    if word_states is not None:
        states, attention_mask = word_states.gather(batch.captions)
        words = {"word_states": states.to(device)}
    else:
        token_ids, attention_mask = model.tokenize([split.captions[i] for i in batch.captions])
        words = {"token_ids": token_ids.to(device)}
    return {**words, "attention_mask": attention_mask.to(device), "lengths": attention_mask.sum(dim=1)}


def _check_finite(sums: dict[str, Tensor], epoch: int, step: int) -> None:
    """A NaN or infinity stays in the sums, so looking now and then misses none."""
    broken = [name for name, value in sums.items() if not math.isfinite(float(value))]
    if broken:
        raise RunError(
            f"epoch {epoch}, step {step + 1}: {', '.join(broken)} is not finite. The last finished epoch is kept. What "
            "usually helps: a lower learning rate, train.gradient_clip, train.mixed_precision=no, a smaller "
            "loss.adversarial_weight"
        )


def _epoch_line(state: Progress, epochs: int) -> str:
    row = state.history[-1]
    best = " (best)" if state.best_epoch == state.epoch else ""
    return (
        f"epoch {state.epoch}/{epochs}: loss {row['total']:.3f}, validation text-to-image rank-1 "
        f"{row['val_text_to_image_rank_1']:.3f}{best}, discriminator accuracy {row['discriminator_accuracy']:.2f}, "
        f"{row['seconds']:.0f} s"
    )


def _finish(
    output: Path, best: Path, config: Config, dataset: Dataset, pixels: dict[str, np.ndarray], state: Progress,
    device: torch.device, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """Tests the epoch that validation chose, once, and writes what makes the run complete."""
    started = time.monotonic()
    try:
        model = TIMAM.from_pretrained(best).to(device)
    except (FileNotFoundError, ValueError) as error:
        raise RunError(f"{error}; remove {output} and train again") from error
    embed_split(model, dataset.split("val"), pixels["val"]).save(_embeddings_file(output, "best"))
    embeddings = embed_split(model, dataset.split("test"), pixels["test"], progress=progress)
    embeddings.save(output / "test_embeddings.safetensors")
    results = evaluate(embeddings, dataset.kind, dataset.folds)
    _write_history(output, state)  # it may have been damaged since
    epochs = sum(row["seconds"] for row in state.history)
    metrics = {
        "dataset": config.data.dataset,
        "split": "test",
        "best_epoch": state.best_epoch,
        "seconds": round(epochs + time.monotonic() - started, 1),  # training, validation and test; not the stores
        **results,
        "modality_gap": gap(embeddings),
        # Of the epoch that was tested:
        "warnings": training_warnings(state.history[state.best_epoch - 1], config.loss.gradient_penalty),
        "provenance": {**provenance(device), "code": "+".join(state.code), "data_fingerprint": state.data_fingerprint,
                       "data_notes": list(dataset.notes)},
    }  # fmt: skip
    write_text(output / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    write_sums(output, [p for p in output.glob("*") if p.suffix in (".json", ".csv", ".safetensors")]
               + list((output / "val_embeddings").iterdir()))  # fmt: skip
    return metrics
