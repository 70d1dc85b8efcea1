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
import signal
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from tqdm.auto import tqdm

from timam.files import read_json, replacing_folder
from timam_lab.pedestrians.attributes import Identity, draw_identity, vary_identity
from timam_lab.pedestrians.captions import Describer, Manner, write_caption
from timam_lab.pedestrians.places import CAMERAS
from timam_lab.pedestrians.scene import TALLEST, Conditions, render_image

RENDERER_VERSION = 2  # raise whenever the same spec would give other bytes
CUHK_PEDES_IDENTITIES = (11_003, 1_000, 1_000)
SPLITS = ("train", "val", "test")
_STREAMS = {"split": 0, "identity": 1, "count": 2, "image": 3, "caption": 4}  # first key of every random stream
DIFFICULTIES: dict[str, dict[str, float]] = {  # standard: the defaults of `PedestrianSpec`
    "easy": {"omission": 0.2, "mistake": 0, "misspelling": 0, "remark": 0, "negation": 0, "unseen_words": 0,
             "habits": 0.3, "shades": 0, "occlusion": 0.05, "company": 0.1, "cut_off": 0, "smallest": 120,
             "near_duplicate": 0},
    "standard": {},
    "hard": {"omission": 0.45, "mistake": 0.08, "misspelling": 0.03, "remark": 0.3, "negation": 0.3,
             "unseen_words": 0.5, "habits": 0.9, "shades": 0.5, "occlusion": 0.3, "company": 0.5, "cut_off": 0.2,
             "near_duplicate": 0.3},
}  # fmt: skip
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class PedestrianSpec:
    """What to render. Shares are fractions in [0, 1].

    Raises:
        ValueError: a field is out of its bounds; the message names field, value and bound.
    """

    train_identities: Count = 1_000  # with the defaults below 3,710 images: about a minute on a few cores
    val_identities: Count = 100
    test_identities: Count = 100
    images_per_identity: Annotated[float, Field(ge=1, le=1_000)] = 40_206 / 13_003  # mean, as CUHK-PEDES
    captions_per_image: Count = 2  # as CUHK-PEDES
    height: Annotated[int, Field(ge=64, le=512)] = 192  # pixels; twice the width is the usual shape of a person crop
    width: Annotated[int, Field(ge=32, le=512)] = 96
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    # Share of the visible attributes a caption leaves out: gives about 22 words; all of them left out is no caption.
    omission: Annotated[float, Field(ge=0, le=0.9)] = 0.35
    mistake: Share = 0.04  # of the mentioned attributes that are wrong: people err, but not often
    misspelling: Share = 0.015  # of the words; about one in three captions has one
    remark: Share = 0.15  # of the captions that also say something of no use
    negation: Share = 0.15  # of the captions that also say what is not there
    unseen_words: Share = 0.2  # of the mentions in validation and test in words that no training caption has
    describers: Annotated[int, Field(ge=1, le=1_000)] = 12  # people who write the captions
    habits: Share = 0.7  # of a describer's choices (order, length, words, ...) that follow a habit
    shades: Share = 0.3  # of the shades that a describer calls by another colour's name
    occlusion: Share = 0.15  # of the images with something in front of the person
    company: Share = 0.3  # of the images with other people
    cut_off: Share = 0.1  # of the images whose edge cuts the person
    smallest: Annotated[int, Field(ge=40, le=TALLEST)] = (
        40  # pixels: least original height, before it is brought to size
    )
    near_duplicate: Share = 0.15  # of the identities that differ from another one in one or two attributes

    @classmethod
    def of_size(cls, identities: int, difficulty: str = "standard", **given: Any) -> PedestrianSpec:
        """A spec with ``identities`` people in all, split in the proportions of CUHK-PEDES, each split at least one.

        Args:
            difficulty: one of DIFFICULTIES, for the fields that are not given.

        Raises:
            ValueError: fewer than three identities, an unknown difficulty, or a field out of its bounds.
        """
        if not 3 <= identities <= 3_000_000:
            raise ValueError(f"identities = {identities} must lie in [3, 3000000]")
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty = {difficulty!r} must be one of {', '.join(DIFFICULTIES)}")
        _, val, test = (max(1, round(identities * part / sum(CUHK_PEDES_IDENTITIES))) for part in CUHK_PEDES_IDENTITIES)
        sizes = {"train_identities": identities - val - test, "val_identities": val, "test_identities": test}
        return cls(**DIFFICULTIES[difficulty] | sizes | given)

    @property
    def identities(self) -> int:
        """Number of people in all splits."""
        return self.train_identities + self.val_identities + self.test_identities

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return round(self.images_per_identity * self.identities)


def _generator(spec: PedestrianSpec, stream: str, *keys: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, _STREAMS[stream], *keys])))


class _Person(NamedTuple):
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
    """Render and describe one person; returns the ground truth of each image, with its captions.

    An image: file_path, id, captions (fields as `write_caption`), and what `render_image` says of it.
    """
    cameras = _generator(spec, "image", person.number).permutation(len(CAMERAS))  # a new camera for each image
    conditions = Conditions(**{field.name: getattr(spec, field.name) for field in fields(Conditions)})
    manner = Manner(**{field.name: getattr(spec, field.name) for field in fields(Manner)})
    manner = replace(manner, unseen_words=0.0) if person.split == "train" else manner
    truths = []
    for index in range(person.images):
        camera = CAMERAS[int(cameras[index % len(cameras)])]
        rng = _generator(spec, "image", person.number, index + 1)
        image, truth = render_image(rng, person.identity, person.number, camera, conditions)
        file_path = f"{camera.folder}/{person.number:05d}_{index + 1}.jpg"
        image.save(images_dir / file_path, quality=truth.pop("jpeg_quality"))
        captions = []
        for k in range(spec.captions_per_image):
            writer = _generator(spec, "caption", person.number, index + 1, k)
            describer = Describer(int(writer.integers(spec.describers)), spec.seed)
            captions.append(write_caption(writer, person.identity, truth["hidden"], describer, manner))
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
    if found[0] != wanted[0]:
        differs = [f"renderer version {found[0]} there, {wanted[0]} here"]
    difference = "; ".join(differs)
    raise FileExistsError(
        f"{output} holds other rendered pedestrians ({difference}); remove it or choose another output"
    )


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
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers = {workers}: expected 1 or more")
    if _already_rendered(output, spec):
        return
    people = _draw_people(spec)
    with replacing_folder(output, durable=False) as folder:
        for camera in CAMERAS:
            (folder / "imgs" / camera.folder).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        with tqdm(total=spec.images, unit="image", desc="pedestrians", disable=not progress) as bar:
            for truths in _render_all(people, spec, folder / "imgs", min(workers, len(people))):
                images.extend(truths)
                bar.update(len(truths))
        _write_json(folder, people, images, spec)


def _write_json(folder: Path, people: list[_Person], images: list[dict[str, Any]], spec: PedestrianSpec) -> None:
    records = [{"split": people[image["id"] - 1].split, "captions": [caption["text"] for caption in image["captions"]],
                "file_path": image["file_path"], "id": image["id"]} for image in images]  # fmt: skip
    identities = [{"id": p.number, "split": p.split, "near_duplicate_of": p.near_duplicate_of, "changed": p.changed,
                   "attributes": p.identity.as_dict()} for p in people]  # fmt: skip
    truth = {"renderer": RENDERER_VERSION, "spec": asdict(spec), "identities": identities, "images": images}
    (folder / "reid_raw.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "attributes.json").write_text(json.dumps(truth), encoding="utf-8")
