"""Render our pedestrian benchmark to disk, in the layout of CUHK-PEDES with its exact ground truth beside it.

    OUTPUT/reid_raw.json      list of {"split", "captions", "file_path", "id"}
    OUTPUT/imgs/CAMERA/*.jpg
    OUTPUT/attributes.json    {"renderer", "spec", "identities", "images"}; ``_render_person`` lists the fields

The benchmark is ours. It exercises the machinery and serves controlled studies; it does not replace real data.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from timam.files import read_json
from timam_lab.pedestrians.attributes import Identity, draw_identity, vary_identity
from timam_lab.pedestrians.captions import Noise, write_caption
from timam_lab.pedestrians.scene import CAMERAS, render_image

RENDERER_VERSION = 1  # raise whenever the same spec would give other bytes
CUHK_PEDES_IDENTITIES = (11_003, 1_000, 1_000)
SPLITS = ("train", "val", "test")
_STREAMS = {"split": 0, "identity": 1, "count": 2, "image": 3, "caption": 4}  # first key of every random stream


@dataclass(frozen=True)
class PedestrianSpec:
    """What to render. Shares are fractions in [0, 1].

    Raises:
        ValueError: a field is out of its bounds; the message names field, value and bound.
    """

    train_identities: int = 1_000  # with the defaults below 3,710 images: well under a minute on a few cores
    val_identities: int = 100
    test_identities: int = 100
    images_per_identity: float = 40_206 / 13_003  # mean, as CUHK-PEDES
    captions_per_image: int = 2  # as CUHK-PEDES
    height: int = 192  # pixels; twice the width is the usual shape of a person crop
    width: int = 96
    seed: int = 0
    omission: float = 0.35  # share of the visible attributes a caption leaves out; gives about 21 words a caption
    mistake: float = 0.04  # share of the mentioned attributes that are wrong: people err, but not often
    misspelling: float = 0.015  # share of words; about one in three captions has one
    remark: float = 0.15  # share of captions that also say something of no use
    occlusion: float = 0.15  # share of images with something in front of the person
    near_duplicate: float = 0.15  # share of identities that differ from another one in one or two attributes

    def __post_init__(self) -> None:
        for name, low, high in (("height", 64, 512), ("width", 32, 512), ("seed", 0, 2**63 - 1)):
            _check_bounds(name, getattr(self, name), low, high, whole=True)
        for name in ("train_identities", "val_identities", "test_identities", "captions_per_image"):
            _check_bounds(name, getattr(self, name), 1, 1_000_000, whole=True)
        _check_bounds("images_per_identity", self.images_per_identity, 1, 1_000)
        for name in ("mistake", "misspelling", "remark", "occlusion", "near_duplicate"):
            _check_bounds(name, getattr(self, name), 0, 1)
        _check_bounds("omission", self.omission, 0, 0.9)  # a caption that mentions nothing is no caption

    @classmethod
    def of_size(cls, identities: int, **fields: Any) -> PedestrianSpec:
        """A spec with ``identities`` people in all, split in the proportions of CUHK-PEDES, each split at least one.

        Raises:
            ValueError: fewer than three identities, or a field out of its bounds.
        """
        _check_bounds("identities", identities, 3, 3_000_000, whole=True)
        _, val, test = (max(1, round(identities * part / sum(CUHK_PEDES_IDENTITIES))) for part in CUHK_PEDES_IDENTITIES)
        return cls(train_identities=identities - val - test, val_identities=val, test_identities=test, **fields)

    @property
    def identities(self) -> int:
        """Number of people in all splits."""
        return self.train_identities + self.val_identities + self.test_identities

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return round(self.images_per_identity * self.identities)


def _check_bounds(name: str, value: float, low: float, high: float, whole: bool = False) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} = {value!r} must be {'a whole number' if whole else 'a number'}")
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(f"{name} = {value} must lie in [{low}, {high}]")


def _generator(spec: PedestrianSpec, stream: str, *keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, _STREAMS[stream], *keys])))


@dataclass(frozen=True)
class _Person:
    """One line of work: a person of a split and how many images to render of them."""

    number: int  # 1-based
    split: str
    identity: Identity
    near_duplicate_of: int | None
    changed: list[str]
    images: int


def _draw_people(spec: PedestrianSpec) -> list[_Person]:
    """All people of all splits, numbered from 1, no two of a split alike."""
    counts = _image_counts(spec)
    people: list[_Person] = []
    for split_index, split in enumerate(SPLITS):
        size = getattr(spec, f"{split}_identities")
        order = _generator(spec, "split", split_index).permutation(np.arange(1, size))
        duplicates = set(order[: round(spec.near_duplicate * size)].tolist())  # never the first: it has no model yet
        first = len(people)
        seen: set[Identity] = set()
        for position in range(size):
            number, models = first + position + 1, people[first:] if position in duplicates else []
            identity, model, changed = _draw_unseen(_generator(spec, "identity", number), models, seen)
            seen.add(identity)
            people.append(_Person(number, split, identity, model, changed, counts[number - 1]))
    return people


def _draw_unseen(
    rng: np.random.Generator, models: list[_Person], seen: set[Identity]
) -> tuple[Identity, int | None, list[str]]:
    """A person not in ``seen``: fresh, or a variation of one of ``models`` where there are any."""
    while True:
        model = models[int(rng.integers(len(models)))] if models else None
        identity, changed = vary_identity(rng, model.identity) if model else (draw_identity(rng), [])
        if identity not in seen:
            return identity, model.number if model else None, changed


def _image_counts(spec: PedestrianSpec) -> list[int]:
    """Images per person: two each (one where the mean is below two), the rest thrown at random; the sum is exact."""
    least = 2 if spec.images_per_identity >= 2 else 1
    rest = spec.images - least * spec.identities
    rng = _generator(spec, "count")
    return (least + np.bincount(rng.integers(spec.identities, size=rest), minlength=spec.identities)).tolist()


def _render_person(person: _Person, spec: PedestrianSpec, images_dir: Path) -> list[dict[str, Any]]:
    """Render and describe one person; returns the ground truth of each image, with its captions' text.

    An image: file_path, id, camera, view, yaw (degrees, 0 is front), pose, occlusion (what hides part of the person, or
    null), hidden (attributes that cannot be seen in it), captions. A caption: text, mentioned, omitted (visible, not
    mentioned), wrong ({attribute, true, stated}), misspelled ({word, written}), remark.
    """
    cameras = _generator(spec, "image", person.number).permutation(len(CAMERAS))  # a new camera for each image
    size, noise = (spec.width, spec.height), Noise(spec.omission, spec.mistake, spec.misspelling, spec.remark)
    truths = []
    for index in range(person.images):
        camera = CAMERAS[int(cameras[index % len(cameras)])]
        rng = _generator(spec, "image", person.number, index + 1)
        image, truth = render_image(rng, person.identity, person.number, camera, size, spec.occlusion, spec.seed)
        file_path = f"{camera.folder}/{person.number:05d}_{index + 1}.jpg"
        image.save(images_dir / file_path, quality=truth.pop("jpeg_quality"))
        writers = [_generator(spec, "caption", person.number, index + 1, k) for k in range(spec.captions_per_image)]
        captions = [write_caption(writer, person.identity, truth["hidden"], noise) for writer in writers]
        truths.append({"file_path": file_path, "id": person.number, **truth, "captions": captions})
    return truths


def _render_all(
    people: list[_Person], spec: PedestrianSpec, images_dir: Path, workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield each person's truths, in order, whatever the number of processes."""
    render = partial(_render_person, spec=spec, images_dir=images_dir)
    if workers == 1:
        yield from map(render, people)
        return
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # this process ends the others
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore_interrupt) as pool:
        yield from pool.imap(render, people, chunksize=max(1, min(32, len(people) // (4 * workers))))


@contextmanager
def _complete_or_nothing(output: Path) -> Iterator[Path]:
    """A directory beside ``output`` that becomes ``output`` on success and vanishes otherwise."""
    partial_dir = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial_dir, ignore_errors=True)  # what an interrupted rendering may have left
    partial_dir.mkdir(parents=True)
    try:
        yield partial_dir
        if output.is_dir():
            output.rmdir()  # empty, or _already_rendered had refused
        os.rename(partial_dir, output)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def _already_rendered(output: Path, spec: PedestrianSpec) -> bool:
    """Whether ``output`` holds exactly this; raises FileExistsError if it holds something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        truth = read_json(output / "attributes.json")
        found, wanted = (truth["renderer"], dict(truth["spec"])), (RENDERER_VERSION, asdict(spec))
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{output} exists and holds no rendered pedestrians; choose another output") from None
    if found == wanted:
        return True
    differs = [f"{k}: {found[1].get(k)!r} there, {v!r} asked" for k, v in wanted[1].items() if found[1].get(k) != v]
    reason = "; ".join(differs) or f"renderer version {found[0]} there, {wanted[0]} here"
    raise FileExistsError(f"{output} holds other rendered pedestrians ({reason}); remove it or choose another output")


def render_pedestrians(
    output: Path | str, spec: PedestrianSpec, workers: int | None = None, progress: bool = True
) -> None:
    """Render the benchmark ``spec`` describes to ``output``, or do nothing if it is there already.

    The same spec gives the same bytes, whatever the number of workers. ``output`` appears only once complete. Render
    to one ``output`` from one process at a time.

    Args:
        output: directory to create; it must not exist, be empty, or hold this very spec.
        workers: processes; by default one per core this process may use. They are spawned, so a script that calls
            this needs the usual ``if __name__ == "__main__"`` unless it asks for one worker (this process itself).
        progress: show a progress bar.

    Raises:
        FileExistsError: ``output`` holds something else.
        ValueError: fewer than one worker.
    """
    output = Path(output)
    workers = workers if workers is not None else _usable_cores()
    _check_bounds("workers", workers, 1, 1024, whole=True)
    if _already_rendered(output, spec):
        return
    people = _draw_people(spec)
    with _complete_or_nothing(output) as folder:
        for camera in CAMERAS:
            (folder / "imgs" / camera.folder).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        with tqdm(total=spec.images, unit="image", desc="pedestrians", disable=not progress) as bar:
            for truths in _render_all(people, spec, folder / "imgs", min(workers, len(people))):
                images.extend(truths)
                bar.update(len(truths))
        _write_json(folder, people, images, spec)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_json(folder: Path, people: list[_Person], images: list[dict[str, Any]], spec: PedestrianSpec) -> None:
    records = [{"split": people[image["id"] - 1].split, "captions": [caption["text"] for caption in image["captions"]],
                "file_path": image["file_path"], "id": image["id"]} for image in images]  # fmt: skip
    identities = [{"id": p.number, "split": p.split, "near_duplicate_of": p.near_duplicate_of, "changed": p.changed,
                   "attributes": p.identity.as_dict()} for p in people]  # fmt: skip
    truth = {"renderer": RENDERER_VERSION, "spec": asdict(spec), "identities": identities, "images": images}
    (folder / "reid_raw.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "attributes.json").write_text(json.dumps(truth), encoding="utf-8")
