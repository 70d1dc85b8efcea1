"""Divides the time between the parts. Each runs in a process of its own, so that one that fails ends only itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click

from timam.interruption import interruptible
from timam_lab.speed.gpu import CARRIED, NAMES, OWN_DATA, PEOPLE, REPOSITORY, SMALLEST, STAGES, Lab

GRACE = 20.0  # seconds that a part has to stop
Stage = tuple[str, ...]


def lead(work: Callable[..., None], *arguments: Any) -> None:
    """A process: leads a process group, so that what it leaves behind can be ended with it."""
    os.setsid()
    work(*arguments)


def render(lab: Lab) -> None:
    """Renders the data of the later parts, on all cores but two."""
    from timam_lab.pedestrians import PedestrianSpec, render_pedestrians

    spec = PedestrianSpec(**lab.size(PEOPLE, SMALLEST))
    render_pedestrians(lab.work / "people", spec, max(1, (os.cpu_count() or 2) - 2), progress=False)


def part(name: str, lab: Lab, start: Connection) -> None:
    """One part: imports what it needs, then waits for its turn."""
    from timam_lab.speed.gpu.lab import run_part
    from timam_lab.speed.gpu.parts import PARTS

    start.recv()
    run_part(name, PARTS[name], lab)


def end(process: BaseProcess, seconds: float) -> None:
    """Waits so long, then asks the process to stop, then ends it and everything that it has started."""
    process.join(max(0.0, seconds))
    if process.is_alive():
        process.terminate()
        process.join(GRACE)
    if process.pid:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def summary(output: Path, names: list[str]) -> str:
    """Writes OUTPUT/summary.md, a line for each part so far, and returns it."""
    made: dict[str, Any] = {}
    lines = []
    for name in names:
        if not (file := output / f"{name}.json").exists():
            lines.append(f"| {name} | none: see the log | | |")
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        made, entries = content["made"], content["items"].values()
        failed = sum(entry["error"] is not None for entry in entries)
        seconds = sum(entry["seconds"] for entry in entries)
        lines.append(f"| [{name}]({name}.md) | {len(entries) - failed} | {failed} | {seconds:.0f} |")
    head = f"# Measured on a GPU\n\n{made.get('device')}, commit {made.get('commit')}.\n"
    text = "\n".join([head, "| part | measured | not measured | seconds |", "|---|---|---|---|", *lines]) + "\n"
    (output / "summary.md").write_text(text, encoding="utf-8")
    return text


def measure(names: list[str], finish: float, lab: Lab, archive: Path | None) -> None:
    """Runs the stages in turn; the parts of the next one import meanwhile.

    Args:
        finish: the time of `time.monotonic` at which all must be over.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the state of CUDA

    def begin(stage: Stage) -> list[tuple[BaseProcess, Connection]]:
        begun: list[tuple[BaseProcess, Connection]] = []
        for name in stage:
            theirs, ours = context.Pipe(duplex=False)
            process = context.Process(target=lead, args=(part, name, lab, theirs))
            process.start()
            begun.append((process, ours))
        return begun

    shares = {tuple(n for n in stage if n in names): minutes for stage, minutes in STAGES.items()}
    stages = [stage for stage in shares if stage]
    beside = set(next(iter(STAGES)))  # the parts that may run while the data are rendered
    renderer = context.Process(target=lead, args=(render, lab))
    if set(names) - set(OWN_DATA):
        renderer.start()
    started = [begin(stages[0])]
    try:
        require_gpu(lab)  # imports torch while the first parts do
        for position, stage in enumerate(stages):
            if renderer.pid and not beside.issuperset(stage):  # timings need quiet cores, too
                end(renderer, finish - time.monotonic())
            current, left = started[-1], finish - time.monotonic()
            deadline = time.monotonic() + left * shares[stage] / sum(shares[s] for s in stages[position:])
            print(f"{', '.join(stage)}: at most {deadline - time.monotonic():.0f} of {left:.0f} s", flush=True)
            for _, connection in current:
                with suppress(BrokenPipeError):  # it died while it imported
                    connection.send("go")
            if position + 1 < len(stages):
                started.append(begin(stages[position + 1]))
            if renderer.pid and beside.issuperset(stage):  # costs nothing while the data are made
                renderer.join(max(0.0, finish - time.monotonic()))
            for process, _ in current:
                end(process, deadline - time.monotonic())
            text = summary(lab.output, [name for s in stages[: position + 1] for name in s])
            if archive:
                with tarfile.open(archive, "w:gz") as file:
                    file.add(lab.output, lab.output.name)
        print(text)
    finally:
        for process in (renderer, *(process for stage in started for process, _ in stage)):
            if process.pid:
                end(process, 0)


def require_gpu(lab: Lab) -> None:
    import torch

    if not (lab.rehearsal or torch.cuda.is_available()):
        sys.exit("torch sees no GPU here; --rehearse tries every line on a CPU, at small sizes")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--minutes", default=8.0, show_default=True, help="For everything together.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the tables.  [default: reports/gpu]")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of data and runs.  [default: runs/gpu]")
@click.option("--archive", type=click.Path(path_type=Path), help="Packs the tables here after each part, .tar.gz.")
@click.option("--rehearse", is_flag=True, help="Small sizes: tries every line, on a CPU too. The numbers mean nothing.")
def main(
    names: tuple[str, ...], minutes: float, output: Path | None, work: Path | None, archive: Path | None, rehearse: bool
) -> None:
    """Measures the parts NAMES, by default all. What an earlier call measured on this commit and device is kept."""
    finish = time.monotonic() + 60 * minutes
    work = (work or REPOSITORY / ("runs/gpu-rehearsal" if rehearse else "runs/gpu")).resolve()
    lab = Lab(work, (output or (work / "tables" if rehearse else REPOSITORY / "reports/gpu")).resolve(), rehearse)
    for folder in (lab.work, lab.output):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["TIMAM_CACHE"] = str(lab.work / "cache")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms need it before CUDA starts
    if (commit := CARRIED / "commit.txt").exists():
        os.environ.setdefault("TIMAM_COMMIT", commit.read_text(encoding="utf-8").strip())
    with interruptible():  # the processes that it has started end with it
        measure([name for name in NAMES if name in names or not names], finish, lab, archive)
