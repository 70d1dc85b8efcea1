"""Ctrl-C and SIGTERM: what takes long cleans up on its way out, and a training step is finished and saved before."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C, the stop button of a notebook) or SIGTERM (a batch system, before it kills)."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message or "interrupted; the same command goes on (timam train: with --resume)")
        self.exit_code = 128 + number  # as shells have it: 130 for SIGINT, 143 for SIGTERM


@dataclass
class Signals:
    """While `held`, a signal waits: its number is noted in `number`."""

    held: bool = False
    number: int | None = None


@contextmanager
def interruptible(several: bool = False) -> Iterator[Signals]:
    """Inside, SIGTERM raises `Interrupted` as Ctrl-C does, or waits while the yielded `held` is set.

    A second Ctrl-C waits for nothing, except where there are `several` processes, whose launcher passes on what the
    terminal has sent already. Python delivers signals to its main thread only: in another one nothing changes.
    """
    signals = Signals()

    def handle(number: int, _: Any) -> None:
        if signals.held and (signals.number is None or several or number != signal.SIGINT):
            if signals.number is None:  # not print: the signal may have come in the middle of another one
                with suppress(OSError):  # who reads it may be gone
                    os.write(2, b"\ninterrupted: the step is finished and saved\n")
            signals.number = number
            return
        raise Interrupted(number=number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
