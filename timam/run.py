"""A run directory: the only module that knows which files a run has and what they are called.

    RUN/config.json                         every setting; enough to repeat the run
    RUN/history.csv                         a row for each finished epoch
    RUN/checkpoints/last                    a `timam.learner.Learner`: what training goes on from
    RUN/checkpoints/best                    a saved model: the epoch with the best validation score
    RUN/val_embeddings/MOMENT.safetensors   the validation split "before" training, after the "frozen" stage, at "best"
    RUN/test_embeddings.safetensors         the test split at the best epoch
    RUN/metrics.json                        the results, written after the files above: a run that has it is complete
    RUN/SHA256SUMS                          checksums of the files above, written last
    RUN/galleries/                          folders of pictures that were searched with this run
    .NAME.lock                              beside RUN: held by the process that trains it

This module loads no torch until a model or embeddings are asked for, so a mistake in a call is reported at once.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from timam.config import Config, departures, fingerprint, from_dict
from timam.files import SUMS, check_sums, read_json, recover_folder, replacing_folder, sha256, write_sums, write_text

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from timam.evaluation import Embeddings
    from timam.learner import Learner
    from timam.models import TIMAM

MOMENTS = ("before", "frozen", "best")


class RunError(RuntimeError):
    """A run that cannot start or go on. The message says why and what to do."""


class BusyError(RunError):
    """Another process is training this run."""


class Run:
    """One run directory, RUN, which need not exist yet; `~` stands for the home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).expanduser()
        self.last, self.best = (self.folder / "checkpoints" / name for name in ("last", "best"))
        self._config_file, self._metrics_file = self.folder / "config.json", self.folder / "metrics.json"
        self._test_file = self.folder / "test_embeddings.safetensors"

    @classmethod
    def named(cls, runs: Path | str, config: Config) -> "Run":
        """RUNS/DATASET-PRESET-SEED-FINGERPRINT: the same config always has the same directory."""
        name = f"{config.data.dataset}-{config.preset}-{config.train.seed}-{fingerprint(config)}"
        return cls(Path(runs) / name)

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self._metrics_file.exists()

    def config(self) -> Config:
        """Raises FileNotFoundError where there is no run, and ValueError naming the file and what is wrong with it."""
        values = read_json(self._config_file)
        try:
            return from_dict(values)
        except ValueError as error:
            raise ValueError(f"{self._config_file}: {error}") from error

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Raises FileNotFoundError for an unfinished run, ValueError for a damaged one."""
        if not self.finished:
            raise FileNotFoundError(f"{self.folder} is not finished: it has no {self._metrics_file.name}")
        check_sums(self.folder)
        return json.loads(self._metrics_file.read_text(encoding="utf-8"))

    def history(self) -> "pd.DataFrame":
        """One row for each finished epoch. Raises FileNotFoundError before the first."""
        import pandas as pd

        return pd.read_csv(self.folder / "history.csv")

    def best_model(self, device: "torch.device | None" = None) -> "TIMAM":
        """The model of the best epoch, in eval mode; by default on the GPU if there is one.

        Raises FileNotFoundError where no epoch is finished, and ValueError, naming a damaged file.
        """
        self.require_best()
        import torch

        from timam.models import TIMAM

        return TIMAM.from_pretrained(self.best).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def require_best(self) -> None:
        """Raises FileNotFoundError where no epoch is finished, or a study has removed the model."""
        if not self.best.is_dir():
            gone = "the study that made this run removed its model. Delete the run to train it again"
            none = f"{self.folder} is not a run with a finished epoch"
            raise FileNotFoundError(f"{self.best}: no such folder; {gone if self.finished else none}")

    def test_embeddings(self) -> "Embeddings":
        return self._embeddings(self._test_file)

    def val_embeddings(self, moment: str) -> "Embeddings":
        """The validation split at one of `MOMENTS`. Raises FileNotFoundError where the run has no such moment."""
        return self._embeddings(self._val_file(moment))

    def _embeddings(self, path: Path) -> "Embeddings":
        from timam.evaluation import Embeddings

        return Embeddings.load(path)

    def moments(self) -> list[str]:
        """Those of `MOMENTS` whose validation embeddings are there."""
        return [moment for moment in MOMENTS if self._val_file(moment).exists()]

    def gallery(self, images: Path | str) -> Path:
        """Where the embeddings of a searched folder are kept."""
        images = Path(images).resolve()
        digest = hashlib.sha256(os.fsencode(images)).hexdigest()[:8]
        # File systems allow names of 255 bytes; temporary folders add a few.
        return self.folder / "galleries" / f"{os.fsdecode(os.fsencode(images.name)[:200])}-{digest}"

    # -- training -------------------------------------------------------------------------------------------------

    @contextmanager
    def claimed(self, writes: bool = True) -> Iterator[None]:
        """Inside, this process is the only one that trains the run, else BusyError. A dead process has no lock.

        `writes` is False for a process that leaves the writing to the main process of its job.
        """
        if not writes or self.finished:  # a finished run is only read, perhaps from a read-only disk
            yield
            return
        path = self.beside(".{}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=0):
                yield
        except Timeout:
            message = f"{self.folder}: another process is at this run; wait for it or give a new folder"
            raise BusyError(message) from None

    def check(self, config: Config, resume: bool) -> dict[str, Any] | None:
        """The metrics of a finished run of this config; None where there is something to train. Writes nothing.

        Raises RunError: the folder holds something else or a run of another config, an interrupted run without
        `resume`, or damaged files.
        """
        if not self._config_file.exists() and not self.last.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise RunError(f"{self.folder} is not empty and holds no run; give a new folder")
            return None
        try:
            metrics = self.metrics() if self.finished else None
        except ValueError as error:
            advice = f"Remove {self._metrics_file} and go on with --resume: the end is done again"
            raise RunError(f"{error}. {advice}") from error
        try:
            differing = departures(config, self.config())
        except (FileNotFoundError, ValueError) as error:
            raise RunError(f"{error}; remove {self.folder} and train again") from error
        differing.pop("data.root", None)  # the data may have moved: `fit` compares their fingerprint
        if changed := [f"{key}: {there!r} there, {asked!r} asked for" for key, (there, asked) in differing.items()]:
            raise RunError("\n  ".join([f"{self.folder} holds a run of another config; give a new folder", *changed]))
        if metrics is None and not resume:
            raise RunError(f"{self.folder} holds an interrupted run; go on with --resume, or remove it")
        return metrics

    def create(self, config: Config) -> None:
        """Makes the directory with config.json, or makes an interrupted run ready to go on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._config_file, json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        for folder in (self.last, self.best):
            recover_folder(folder)

    def restore(self, learner: "Learner") -> None:
        """Loads the last checkpoint into the learner. Raises RunError for a damaged one."""
        try:
            learner.load(self.last)
            for moment, digest in learner.progress.kept.items():
                if sha256(self._val_file(moment)) != digest:
                    raise ValueError(f"{self._val_file(moment)} is damaged")
        except Exception as error:  # safetensors, json and torch each raise their own
            damage = f"cannot go on ({type(error).__name__}: {error})"
            raise RunError(f"{self.last}: {damage}; remove {self.folder} and train again") from error

    def save_epoch(self, learner: "Learner") -> None:
        """Saves a finished epoch. A kill at any moment leaves this epoch or the one before, never a mixture."""
        learner.save(self.last)
        self.complete_epoch(learner)

    def complete_epoch(self, learner: "Learner") -> None:
        """Writes what follows from the last checkpoint of a finished epoch: also after a kill between them."""
        if learner.progress.best_epoch == learner.progress.epoch:
            self.save_best(learner.model)
        self.write_history(learner)

    def save_best(self, model: "TIMAM") -> None:
        with replacing_folder(self.best) as folder:
            model.save_pretrained(folder)
            write_sums(folder)

    def write_history(self, learner: "Learner") -> None:
        import pandas as pd

        write_text(self.folder / "history.csv", pd.DataFrame(learner.progress.history).to_csv(index=False))

    def keep_embeddings(self, moment: str, embeddings: "Embeddings") -> str:
        """Writes validation embeddings; returns the file's SHA-256."""
        path = self._val_file(moment)
        path.parent.mkdir(exist_ok=True)
        embeddings.save(path)
        return sha256(path)

    def complete(self, learner: "Learner", test: "Embeddings", metrics: dict[str, Any]) -> None:
        """Writes the results, then metrics.json, then the checksums."""
        (self.folder / SUMS).unlink(missing_ok=True)  # of an end that was removed to be done again
        test.save(self._test_file)
        self.write_history(learner)  # it may have been damaged since the last epoch
        write_text(self._metrics_file, json.dumps(metrics, indent=2) + "\n")
        files = [p for p in self.folder.glob("*") if p.suffix in (".json", ".csv", ".safetensors")]
        write_sums(self.folder, files + [self._val_file(moment) for moment in self.moments()])

    def beside(self, form: str) -> Path:
        """A file beside the run, named by it. File systems allow 255 bytes, so a long name is cut."""
        folder = self.folder.resolve()  # "." has no name
        name = os.fsencode(folder.name)
        cut = f"{os.fsdecode(name[:200])}-{hashlib.sha256(name).hexdigest()[:8]}"
        return folder.with_name(form.format(cut if len(name) > 240 else folder.name))

    def _val_file(self, moment: str) -> Path:
        return self.folder / "val_embeddings" / f"{moment}.safetensors"
