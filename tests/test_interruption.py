"""timam.interruption: a signal raises at once or waits, and is the system's again afterwards."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from timam.interruption import Interrupted, interruptible

send = partial(os.kill, os.getpid())


def inside() -> object:
    with interruptible():
        return signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_raises_and_handlers_are_put_back(number, code):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        send(number)
    assert (caught.value.exit_code, signal.getsignal(number)) == (code, before)


def test_held_signal_waits_and_the_second_interrupt_does_not():
    with interruptible() as signals:
        signals.held = True
        for _ in range(3):  # batch systems repeat it
            send(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
    with interruptible(several=True) as signals:  # several processes hold what their launcher passes on
        signals.held = True
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert signals.number == signal.SIGINT


def test_a_held_signal_needs_nobody_who_reads_the_message(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    real = os.write
    monkeypatch.setattr(os, "write", lambda _, text: real(write, text))
    with interruptible() as signals:
        signals.held = True
        send(signal.SIGTERM)
    assert signals.number == signal.SIGTERM
    os.close(write)


def test_inner_one_gives_back_to_the_outer_one():
    with interruptible() as outer:
        outer.held = True
        with interruptible(), pytest.raises(Interrupted):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert outer.number == signal.SIGTERM


def test_other_threads_change_nothing():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(inside).result() == signal.getsignal(signal.SIGTERM)


def test_interrupted_survives_pickling():
    """As a Ray task's does."""
    copy = pickle.loads(pickle.dumps(Interrupted("saved", signal.SIGTERM)))
    assert (str(copy), copy.exit_code) == ("saved", 143)
