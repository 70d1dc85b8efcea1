"""Executes notebooks headless with papermill: up-to-date ones are passed over, failed ones leave no report.

    python notebooks/execute.py --output reports/quick -p preset quick 01_data_exploration 02_training

A report is up to date while its notebook, its parameters, the package and the data's annotation file are what they
were when it was written on this machine (OUTPUT/.stamps, which is not committed).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import click
import nbformat
import papermill

HERE = Path(__file__).resolve().parent


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the executed notebooks.")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the notebooks.")
def main(names: tuple[str, ...], output: Path, pairs: tuple[tuple[str, str], ...]) -> None:
    """Execute NAMES (notebooks beside this file, without the suffix) in the order given."""
    if twice := sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1}):
        raise click.UsageError(f"parameter {twice[0]} is given twice")
    output.mkdir(parents=True, exist_ok=True)
    parameters = {"output": os.path.relpath(output, HERE), **dict(pairs)}
    failed = [name for name in names if not _execute(name, output.resolve(), parameters)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    click.echo(f"done: the executed notebooks and their figures are in {output}/")


def _typed(name: str, text: str, declared: str) -> Any:
    """The text as what the notebook's annotation says. Exits where it is no such thing."""
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


def _execute(name: str, output: Path, texts: dict[str, str]) -> bool:
    """Executes one notebook; False where it failed."""
    source, report, stamp = HERE / f"{name}.ipynb", output / f"{name}.ipynb", output / ".stamps" / name
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(texts) - set(known))
    if unknown:  # papermill itself only warns, and the notebook would run with its default
        sys.exit(f"{source.name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    parameters = {key: _typed(key, text, known[key]["inferred_type_name"]) for key, text in texts.items()}
    wanted = _fingerprint(source, parameters)
    if report.exists() and stamp.exists() and stamp.read_text() == wanted:
        click.echo(f"{name}: up to date")
        return True
    started, temporary = time.monotonic(), output / f".{name}.ipynb"  # moved only on success
    try:
        papermill.execute_notebook(
            str(source), str(temporary), parameters, cwd=str(HERE), stderr_file=sys.stderr, progress_bar=False
        )
    except papermill.PapermillExecutionError as error:
        click.echo(f"{name}: failed\n{error}", err=True)
        return False
    finally:
        _tidy(temporary)
    _sign(temporary, parameters, time.monotonic() - started)
    os.replace(temporary, report)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    click.echo(f"{name}: done in {time.monotonic() - started:.0f} s, at most {memory:.1f} GiB of memory")
    return True


def _tidy(path: Path) -> None:
    """Takes progress bars (stderr) out of an executed notebook, and papermill's paths of this machine."""
    if not path.exists():
        return
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    for key in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    nbformat.write(notebook, path)


def _sign(path: Path, parameters: dict[str, Any], seconds: float) -> None:
    """Adds a last cell that says what produced this report: commit, versions, hardware, data, parameters, time."""
    import torch

    from timam.data import load_dataset
    from timam.provenance import commit, provenance

    made = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    made |= {"commit": commit(HERE, HERE.parent / "timam"), "seconds": round(seconds), "parameters": parameters}
    if root := parameters.get("root"):
        made["data_fingerprint"] = load_dataset(parameters.get("dataset", "pedestrians"), HERE / root).fingerprint()
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["timam"] = made
    lines = [f"| {key} | `{value}` |" for key, value in made.items()]
    text = "\n".join(["## What produced this report", "", "| | |", "|---|---|", *lines])
    notebook.cells.append(nbformat.v4.new_markdown_cell(text, id="provenance"))
    nbformat.write(notebook, path)


def _fingerprint(source: Path, parameters: dict[str, Any]) -> str:
    """Of everything that a report is made from."""
    files = [source, *sorted((HERE.parent / "timam").rglob("*.py"))]
    root = parameters.get("root") or papermill.inspect_notebook(str(source)).get("root", {}).get("default", "''").strip(
        "'\""
    )
    files += sorted(f for f in (HERE / root).glob("*") if f.suffix in (".json", ".csv", ".parquet", ".txt"))
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
