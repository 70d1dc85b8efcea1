"""Rendered pedestrians with other captions, fewer identities or more difficulty, in folders beside the original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from timam.files import write_text
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians
from timam_lab.pedestrians.attributes import Identity
from timam_lab.pedestrians.dataset import describe

NOISE = ("omission", "mistake", "misspelling")


def spec_of(root: Path) -> PedestrianSpec:
    """What rendered the folder. Raises FileNotFoundError for a folder of other data."""
    return PedestrianSpec(**json.loads((root / "attributes.json").read_text(encoding="utf-8"))["spec"])


def with_shares(root: Path, name: str, **shares: Any) -> Path:
    """The same people with other shares (fields of `PedestrianSpec`), rendered to ROOT-NAME unless it is there."""
    target = root.with_name(f"{root.name}-{name}")
    with FileLock(root.with_name(f".{target.name}.lock")):  # several processes may execute a study
        render_pedestrians(target, replace(spec_of(root), **shares), progress=False)
    return target


def rewritten(root: Path, **shares: Any) -> list[list[str]]:
    """The captions of each test picture, in the order of the file, with other shares and nothing rendered.

    With `unseen_words=1` each caption says the same in words that no training caption has, wherever the lexicon has
    such words. Raises FileNotFoundError for a folder of other data.
    """
    truth = json.loads((root / "attributes.json").read_text(encoding="utf-8"))
    spec = PedestrianSpec(**{**truth["spec"], **shares})
    people = {p["id"]: Identity(**p["attributes"]) for p in truth["identities"] if p["split"] == "test"}
    texts = []
    for image in truth["images"]:
        if image["id"] in people:
            number = image["id"], int(Path(image["file_path"]).stem.rpartition("_")[2])
            captions = describe(people[image["id"]], number, image["hidden"], spec)
            texts.append([caption["text"] for caption in captions])
    return texts


def with_noise(root: Path, level: float) -> Path:
    """The same people and pictures, described with `level` times the omissions, mistakes and misspellings."""
    if level == 1:
        return root
    spec = spec_of(root)
    return with_shares(root, f"noise-{level:g}", **{name: level * getattr(spec, name) for name in NOISE})


def with_fewer(root: Path, count: int) -> Path:
    """The first `count` training identities; validation and test stay whole. Pictures and attributes are linked."""
    target = root.with_name(f"{root.name}-identities-{count}")
    records = json.loads((root / "reid_raw.json").read_text(encoding="utf-8"))
    kept = set(sorted({r["id"] for r in records if r["split"] == "train"})[:count])
    target.mkdir(exist_ok=True)
    for name in ("imgs", "attributes.json"):
        if not (target / name).exists():
            (target / name).symlink_to(root.resolve() / name)
    text = json.dumps([r for r in records if r["split"] != "train" or r["id"] in kept])
    file = target / "reid_raw.json"
    if not file.exists() or file.read_text(encoding="utf-8") != text:  # other processes may be reading it
        write_text(file, text)
    return target
