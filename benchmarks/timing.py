"""Timing that can be trusted on a shared machine: contenders take turns in one process, medians are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(rounds: int, **contenders: Callable[[], float]) -> dict[str, float]:
    """The median of what each contender returns, taking turns."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            found[name].append(run())
    return {name: median(values) for name, values in found.items()}


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process: other processes on the machine disturb them less than the clock's seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started
