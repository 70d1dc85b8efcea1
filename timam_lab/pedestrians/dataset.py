"""Render our pedestrian benchmark to disk, in the layout of CUHK-PEDES with its exact ground truth beside it.

OUTPUT/reid_raw.json      list of {"split", "captions", "file_path", "id"}
OUTPUT/imgs/CAMERA/*.jpg
OUTPUT/attributes.json    {"renderer", "spec", "identities", "images"}; ``_render_person`` lists the fields
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm.auto import tqdm

from timam.files import read_json, replacing_folder
from timam_lab.pedestrians.attributes import Identity, Rng, draw_identity, vary_identity
from timam_lab.pedestrians.captions import Describer, write_caption
from timam_lab.pedestrians.places import CAMERAS
from timam_lab.pedestrians.spec import PedestrianSpec

RENDERER_VERSION = 2  # raise whenever the same spec would give other bytes
T = TypeVar("T")
SPLITS = ("train", "val", "test")
_STREAMS = {"split": 0, "identity": 1, "count": 2, "image": 3, "caption": 4}  # first key of every random stream


def _generator(spec: PedestrianSpec, stream: str, *keys: int) -> Rng:
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
    least = 2 if spec.images_per_identity >= 2 else 1  # pictures of each; the rest is thrown at random
    rest = _generator(spec, "count").integers(spec.identities, size=spec.images - least * spec.identities)
    counts = (least + np.bincount(rest, minlength=spec.identities)).tolist()
    people: list[_Person] = []
    for split_index, split in enumerate(SPLITS):
        size = getattr(spec, f"{split}_identities")
        order = _generator(spec, "split", split_index).permutation(np.arange(1, size))
        duplicates = set(order[: round(spec.near_duplicate * size)].tolist())  # never the first: it has no model yet
        first = len(people)
        seen: set[Identity] = set()
        for position in range(size):
            number, identity = first + position + 1, None
            rng = _generator(spec, "identity", number)
            while identity is None or identity in seen:  # a variation of an earlier person of the split, or a new one
                model = people[first + int(rng.integers(position))] if position in duplicates else None
                identity, changed = vary_identity(rng, model.identity) if model else (draw_identity(rng), [])
            seen.add(identity)
            people.append(_Person(number, split, identity, model and model.number, changed, counts[number - 1]))
    return people


def _render_person(person: _Person, spec: PedestrianSpec, images_dir: Path) -> list[dict[str, Any]]:
    """Render and describe one person; returns the ground truth of each image, with its captions.

    An image: file_path, id, captions (fields as `write_caption`), and what `render_image` says of it.
    """
    from timam_lab.pedestrians.scene import render_image  # here: the command line needs the spec, but not SciPy

    cameras = _generator(spec, "image", person.number).permutation(len(CAMERAS))  # a new camera for each image
    spec = replace(spec, unseen_words=0.0) if person.split == "train" else spec
    truths = []
    for index in range(person.images):
        camera = CAMERAS[int(cameras[index % len(cameras)])]
        rng = _generator(spec, "image", person.number, index + 1)
        image, truth = render_image(rng, person.identity, person.number, camera, spec)
        file_path = f"{camera.folder}/{person.number:05d}_{index + 1}.jpg"
        image.save(images_dir / file_path, quality=truth.pop("jpeg_quality"))
        captions = describe(person.identity, (person.number, index + 1), truth["hidden"], spec)
        truths.append({"file_path": file_path, "id": person.number, **truth, "captions": captions})
    return truths


def describe(
    identity: Identity, number: tuple[int, int], hidden: Sequence[str], spec: PedestrianSpec
) -> list[dict[str, Any]]:
    """The captions of one picture: `write_caption` for each. `number`: of the person, and of its picture, from 1."""
    captions = []
    for k in range(spec.captions_per_image):
        writer = _generator(spec, "caption", *number, k)
        describer = Describer(int(writer.integers(spec.describers)), spec.seed)
        captions.append(write_caption(writer, identity, hidden, describer, spec))
    return captions


def _render_all(render: Callable[[_Person], T], people: list[_Person], workers: int) -> Iterator[T]:
    """What ``render`` returns for each person, in order, whatever the number of processes."""
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
    other = f"{output} holds other rendered pedestrians ({'; '.join(differs)})"
    raise FileExistsError(f"{other}; remove it or choose another output")


def render_pedestrians(
    output: Path | str, spec: PedestrianSpec, workers: int | None = None, progress: bool = True
) -> None:
    """Render the benchmark ``spec`` describes to ``output``, or do nothing if it is there already.

    The same spec gives the same bytes, whatever the number of workers. ``output`` appears only once complete.

    Args:
        output: directory to create, by one process at a time; empty, or with this very spec, it may exist.
        workers: processes, by default one per core that this process may use. More than one are spawned, so a script
            that calls this needs the usual ``if __name__ == "__main__"``.

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
            render = partial(_render_person, spec=spec, images_dir=folder / "imgs")
            for truths in _render_all(render, people, min(workers, len(people))):
                images.extend(truths)
                bar.update(len(truths))
        _write_json(folder, people, images, spec)


def _write_json(folder: Path, people: list[_Person], images: list[dict[str, Any]], spec: PedestrianSpec) -> None:
    records = [{"split": people[image["id"] - 1].split, "captions": [caption["text"] for caption in image["captions"]],
                "file_path": image["file_path"], "id": image["id"]} for image in images]  # fmt: skip
    identities = [{"id": p.number, "split": p.split, "near_duplicate_of": p.near_duplicate_of, "changed": p.changed,
                   "attributes": asdict(p.identity)} for p in people]  # fmt: skip
    truth = {"renderer": RENDERER_VERSION, "spec": asdict(spec), "identities": identities, "images": images}
    (folder / "reid_raw.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "attributes.json").write_text(json.dumps(truth), encoding="utf-8")
