"""The data sets that can be read: `DATASETS`, from datasets.yaml, where each is declared once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from timam.data.annotations import parse_karpathy, parse_one_person_search, parse_person_search, parse_reed
from timam.data.folders import parse_coco_captions, parse_flickr_token, parse_sidecar, parse_webdataset
from timam.data.parsing import Parsed
from timam.data.tables import parse_imagefolder, parse_parquet, parse_table

Counts = list[int | None]  # [pictures, captions, identities or classes]; None: no source states it

PROTOCOLS = {
    "identity": "relevant is every picture (or caption) of the same identity; rank-1/5/10, mAP, mINP, both directions",
    "instance": "relevant is the described picture, or any of its captions; rank-1/5/10, both directions",
    "class": "relevant is every picture of the same class; image-to-text rank-1, text-to-image AP@50 (and the ranks)",
}
_PARSERS: dict[str, Callable[..., Parsed]] = {
    f.__name__.removeprefix("parse_"): f
    for f in (
        parse_person_search, parse_one_person_search, parse_karpathy, parse_reed, parse_coco_captions,
        parse_flickr_token, parse_sidecar, parse_webdataset, parse_table, parse_parquet, parse_imagefolder,
    )
}  # fmt: skip


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as published, and how it is read.

    Attributes:
        kind: what is relevant, a key of `PROTOCOLS`; the parser may decide otherwise.
        parser, options: parse_PARSER(ROOT, **options) reads the annotation; with `has_columns`, it takes columns={...}.
        image_folders: where in ROOT the pictures may lie; "." is ROOT itself.
        layout: what ROOT must hold.
        source: where it is published, and who hands it out on request.
        terms: its licence or conditions.
        published: {split, or splits joined by "+": counts}.
        versions: {what to tell the user: counts of another version that is around}.
        holds_out: without a validation split, some training identities become one.
        folds: the test split is also searched in this many parts, whose results are averaged (COCO's 1K protocol).
    """

    kind: str
    parser: str
    image_folders: list[str]
    layout: str
    source: str
    terms: str
    options: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Counts] = field(default_factory=dict)
    versions: dict[str, dict[str, Counts]] = field(default_factory=dict)
    holds_out: bool = False
    folds: int = 1
    has_columns: bool = False

    @property
    def parse(self) -> Callable[..., Parsed]:
        return partial(_PARSERS[self.parser], **self.options)


_DECLARED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DATASETS: dict[str, DatasetSpec] = {name: DatasetSpec(**entry) for name, entry in _DECLARED.items()}
