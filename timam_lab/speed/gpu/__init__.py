"""What only a GPU can answer, in one command that fits into minutes: `python -m timam_lab.speed.gpu` (docs/gpu.md).

`parts` lists what `correct`, `costs` and `learns` measure, with the configs of `recipes`; `lab` writes it down,
`schedule` divides the time, and `carry` packs what a machine without a network needs. Nothing in this file imports
torch, whose import takes as long as a small part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
CARRIED = REPOSITORY / "carried"  # what `carry` packs
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Row = dict[str, Any]
# The stages in their order, with the share of each in the time: minutes of eight. The parts of a stage run at the same
# time: those of the first while the data of the later ones are rendered; and trainings, as one leaves a device idle.
# What is timed has a stage of its own.
STAGES = {
    ("runs", "processes"): 1.0,
    ("step",): 1.0,
    ("evaluation",): 0.5,
    ("learning", "studies"): 3.5,
    ("tests", "spread"): 0.7,  # pytest takes the cores that trainings need
    ("abreast",): 0.6,
    ("notebooks",): 0.7,
}
NAMES = [name for stage in STAGES for name in stage]
OWN_DATA = ("runs", "step", "abreast", "tests", "processes")  # the other parts read the rendered people


# Rendered data, of a rehearsal and full: as many training people as CUHK-PEDES has.
SMALLEST = {"train_identities": 34, "val_identities": 10, "test_identities": 10, "height": 64, "width": 32}
PEOPLE = {"train_identities": 11_003, "val_identities": 100, "test_identities": 150}


@dataclass(frozen=True)
class Lab:
    """Where a part works, and at which size.

    Attributes:
        work: data, stores and runs, which a second call finds again.
        output: the tables.
        rehearsal: small sizes, to try every line on a CPU.
    """

    work: Path
    output: Path
    rehearsal: bool

    def size(self, full: Any, small: Any) -> Any:
        return small if self.rehearsal else full


@dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
        table: the title of the table that its rows belong to.
        name: unique in that table.
        work: gives the rows. Those that it has given before it fails, or before its time is over, are kept.
    """

    table: str
    name: str
    work: Callable[[], Iterable[Row]]


@dataclass(frozen=True)
class Part:
    """A subject of the report.

    Attributes:
        title, text: head of its report.
        items: what is measured, the most valuable first. It may prepare things between two items.
    """

    title: str
    text: str
    items: Callable[[Lab], Iterator[Item]]
