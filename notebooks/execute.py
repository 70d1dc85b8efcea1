"""Executes notebooks headless with papermill, named one by one or as a report of reports.yaml.

    python notebooks/execute.py --report quick
    python notebooks/execute.py --output reports/mine -p preset quick 01_data_exploration 02_training

An executed notebook that is up to date is skipped: its source, its parameters, the packages, the data's annotation
files and, in `SHOWS_RUNS`, the finished runs are what they were when it was written on this machine (OUTPUT/.stamps,
which is not committed).
A notebook that fails leaves no executed copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import nbformat
import papermill
import yaml
from traitlets.config import Config

from timam.interruption import Interrupted, interruptible

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REPORTS = HERE / "reports.yaml"
FOLDERS = ("root", "runs", "instances", "collection", "study", "trained", "images")  # parameters that name a folder
ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar", ".txt", ".token")
# They show all runs in a folder, which other notebooks made: the parameter that names it, and its default.
SHOWS_RUNS = {"05_modality_gap": ("study", "../runs/studies"), "07_results": ("runs", "../runs")}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--report", help="Makes this report of reports.yaml, with its data; NAMES select some of its notebooks.")
@click.option("--data-only", is_flag=True, help="Renders the report's data and stops.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the executed notebooks.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the notebooks.")
def main(
    names: tuple[str, ...], report: str | None, data_only: bool, output: Path | None, pairs: tuple[tuple[str, str], ...]
) -> None:
    """Executes NAMES (notebooks beside this file, without the suffix), or a report, in the order given.

    For example: --output reports/mine -p dataset csv -p root ROOT 01_data_exploration 02_training. The first cell of a
    notebook lists its parameters.
    """
    given = _given(pairs)
    try:
        with interruptible():  # SIGTERM reaches the kernel as Ctrl-C does: a training run in it saves its step
            if report:
                entry = read_reports().get(report) or sys.exit(f"{REPORTS.name} has no report {report}")
                _render(entry["data"])
                output = output or ROOT / entry["output"]
                jobs = [] if data_only else plan(entry, given, names)
            elif names and output and not data_only:
                jobs = [(name, given) for name in names]
            else:
                raise click.UsageError("expected --report NAME, or --output FOLDER and the names of notebooks")
            output.mkdir(parents=True, exist_ok=True)
            place = {"output": os.path.relpath(output, HERE)}
            # Mistakes in all of them are told before the first one starts.
            typed = [(name, _parameters(name, place | texts)) for name, texts in jobs]
            failed = [name for name, parameters in typed if not _execute(name, output.resolve(), parameters)]
    except Interrupted as error:
        click.echo("interrupted; the same command goes on from the finished notebooks and the saved step", err=True)
        sys.exit(error.exit_code)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    click.echo(f"done: the executed notebooks and their figures are in {os.path.relpath(output)}/")


def _given(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The parameters of the command line; folders relative to the caller's as seen from the notebooks."""
    given: dict[str, str] = {}
    for key, value in pairs:
        if key in given:
            raise click.UsageError(f"parameter {key} is given twice")
        is_folder = key in FOLDERS and value and not os.path.isabs(value)
        given[key] = os.path.relpath(os.path.realpath(os.path.expanduser(value)), HERE) if is_folder else value
    return given


def read_reports() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(REPORTS.read_text(encoding="utf-8"))


def plan(
    report: dict[str, Any], given: dict[str, str], names: tuple[str, ...] = ()
) -> list[tuple[str, dict[str, str]]]:
    """The notebooks of a report, each with its parameters as text; `given` wins over the file."""
    root = os.path.relpath(ROOT / report["data"]["output"], HERE)
    jobs, used = [], set()
    for name, own in report["notebooks"].items():
        if names and name not in names:
            continue
        known = papermill.inspect_notebook(str(HERE / f"{name}.ipynb"))
        shared = {"root": root, **report["parameters"]}
        values = {k: v for k, v in shared.items() if k in known} | (own or {})
        values |= {k: v for k, v in given.items() if k in known}
        used |= values.keys()
        jobs.append((name, {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}))
    if unknown := [*(set(given) - used), *(set(names) - set(report["notebooks"]))]:
        sys.exit(f"not in this report: {', '.join(sorted(unknown))}")
    return jobs


def _render(data: dict[str, Any]) -> None:
    """Renders the pedestrians of a report, unless they are there."""
    options = [part for key, value in data.items() for part in (f"--{key}", str(value))]
    with subprocess.Popen([sys.executable, "-m", "timam", "data", "pedestrians", *options], cwd=ROOT) as process:
        try:
            code = process.wait()
        except Interrupted as error:
            if error.exit_code != 130:  # a terminal's Ctrl-C has reached that process already
                process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        sys.exit(code)


def _typed(name: str, text: str, declared: str) -> Any:
    """The text as the type that the notebook's annotation names. Exits where it is no such value."""
    if declared not in ("int", "float", "bool"):
        if text.isprintable():
            return text
        sys.exit(f"parameter {name} = {text!r}: expected printable characters")
    try:
        value = json.loads(text.lower())
        fits = type(value).__name__ == declared or (declared, type(value)) == ("float", int)
        if fits and math.isfinite(value):
            return value
    except (OverflowError, RecursionError, ValueError):
        pass
    sys.exit(f"parameter {name} = {text!r}: expected {declared}")


def _parameters(name: str, texts: dict[str, str]) -> dict[str, Any]:
    """The parameters of one notebook with their types. Exits where it has no such parameter, or is not there."""
    source = HERE / f"{name}.ipynb"
    if not source.exists():
        sys.exit(f"{name}: no such notebook; there are {', '.join(sorted(file.stem for file in HERE.glob('*.ipynb')))}")
    known = papermill.inspect_notebook(str(source))
    if unknown := sorted(set(texts) - set(known)):  # papermill only warns, and the notebook would run with its default
        sys.exit(f"{source.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    return {key: _typed(key, text, known[key]["inferred_type_name"]) for key, text in texts.items()}


def _execute(name: str, output: Path, parameters: dict[str, Any]) -> bool:
    """Executes one notebook; False where it failed."""
    source, executed, stamp = HERE / f"{name}.ipynb", output / f"{name}.ipynb", output / ".stamps" / name
    known = papermill.inspect_notebook(str(source))
    default = known["root"]["default"].strip("'\"") if "root" in known else ""
    root = parameters.get("root") or default or "../data/pedestrians"  # what the notebooks take an empty one for
    wanted = _fingerprint(source, parameters, HERE / root)
    if name in SHOWS_RUNS:
        key, runs = SHOWS_RUNS[name]
        wanted += _state((HERE / (parameters.get(key) or runs)).rglob("metrics.json"))
    if executed.exists() and stamp.exists() and stamp.read_text() == wanted:
        click.echo(f"{name}: up to date")
        return True
    click.echo(f"{name}: running")
    started, temporary = time.monotonic(), output / f".{name}.ipynb"  # moved only on success
    try:
        papermill.execute_notebook(
            str(source), str(temporary), parameters, cwd=str(HERE), progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr,  # a line for each epoch, and warnings, while one waits
            config=Config(KernelManager={"transport_encryption": "auto"}),  # ipykernel warns without it
        )  # fmt: skip
        _tidy(temporary)
        os.replace(temporary, executed)
    except Exception as error:  # of a cell; or the kernel died, or is not installed
        click.echo(f"{name}: failed\n{type(error).__name__}: {error}", err=True)
        return False
    finally:
        temporary.unlink(missing_ok=True)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    click.echo(f"{name}: done in {time.monotonic() - started:.0f} s, at most {memory:.1f} GiB of memory")
    return True


def _tidy(path: Path) -> None:
    """Removes progress bars (stderr or widgets) from an executed notebook, and papermill's paths of this machine."""
    notebook = nbformat.read(path, as_version=4)
    bar = lambda o: o.get("name") == "stderr" or "%|" in o.get("data", {}).get("text/plain", "")  # noqa: E731
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not bar(o)]
    if "widget-view" not in str(notebook.cells):  # the others' state goes with them
        notebook.metadata.pop("widgets", None)
    for key in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    nbformat.write(notebook, path)


def _fingerprint(source: Path, parameters: dict[str, Any], root: Path) -> str:
    """SHA-256 of the source, the parameters, the packages' files and the state of the data's annotation files."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    packages = [file for package in ("timam", "timam_lab") for file in sorted((ROOT / package).rglob("*.*"))]
    for file in [source, *(file for file in packages if file.is_file() and "__pycache__" not in file.parts)]:
        digest.update(file.read_bytes())
    annotations = (file for file in root.rglob("*.*") if file.suffix.lower() in ANNOTATIONS)
    digest.update(_state(annotations if root.is_dir() else [root]).encode())
    return digest.hexdigest()


def _state(files: Iterable[Path]) -> str:
    """SHA-256 of names, sizes and times of change: annotations may have gigabytes."""
    stats = [(str(file), file.stat()) for file in sorted(files) if file.exists()]
    content = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return hashlib.sha256(content.encode()).hexdigest()


if __name__ == "__main__":
    main()
