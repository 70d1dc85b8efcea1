"""The first and the last cell of a notebook: what it was given, and what produced its executed copy."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from IPython.display import Markdown

from timam.config import PRESETS
from timam.data import DATASETS, load_dataset
from timam.provenance import commit, provenance
from timam_lab.notebook import REPOSITORY, configure, folder

# `check` is called first: these are of the notebook's start, whose code it runs.
STARTED, COMMIT = time.monotonic(), commit(*(REPOSITORY / part for part in ("notebooks", "timam", "timam_lab")))
# The other types accept themselves. Later cells make paths of folders' names, and the first ones may be executed again.
ACCEPTED: dict[type, tuple[type, ...]] = {float: (float, int), str: (str, type(Path()))}
CHOICES: dict[str, Collection[str]] = {"dataset": DATASETS, "preset": PRESETS}
READ = ("root", "collection", "study", "trained", "images", "instances")  # folders that must be there, if given


def check(namespace: Mapping[str, Any]) -> None:
    """Refuses parameters with wrong values at once, and unknown ones of papermill, which only warns of them.

    Args:
        namespace: `globals()` of the notebook. The cell of parameters annotates each with its type.

    Raises:
        ValueError: an unknown parameter, one of another type, or an unknown data set or preset; it names those known.
        FileNotFoundError: a folder to read that is not there.
    """
    declared = namespace.get("__annotations__", {})
    injected = next((cell for cell in reversed(namespace.get("In", [])) if cell.startswith("# Parameters")), "")
    for node in ast.parse(injected).body:
        for target in node.targets if isinstance(node, ast.Assign) else ():
            name = ast.unparse(target)
            if name not in declared:
                raise ValueError(f"unknown parameter {name}; this notebook has {', '.join(declared)}")
    for name, wanted in declared.items():
        value = namespace[name]
        if type(value) not in ACCEPTED.get(wanted, (wanted,)):
            raise ValueError(f"parameter {name} = {value!r}: expected {wanted.__name__}")
        if value and value not in CHOICES.get(name, (value,)):
            raise ValueError(f"parameter {name} = {value!r}: expected {', '.join(CHOICES[name])}")
        if value and name in READ and not (path := folder(str(value), "")).exists():
            raise FileNotFoundError(f"parameter {name} = {value!r}: no such folder or file: {path.resolve()}")


def produced(namespace: Mapping[str, Any]) -> Markdown:
    """A table for the last cell: commit, versions, hardware, data, parameters, time. Args as `check`.

    Folders are shown as seen from the working directory: an executed copy must not name those of a machine.
    """
    given = {name: namespace[name] for name in namespace.get("__annotations__", {})}
    parameters = {name: os.path.relpath(v) if isinstance(v, Path) else str(v) for name, v in given.items()}
    made = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    made |= {"commit": COMMIT, "seconds": round(time.monotonic() - STARTED)}
    dataset, root = parameters.get("dataset"), Path(parameters.get("root") or "?")
    if dataset and root.exists():
        columns = configure("paper", dataset, root, parameters.get("settings", "")).data.renamed
        made["data_fingerprint"] = load_dataset(dataset, root, columns=columns).fingerprint()
    lines = [f"| {key} | `{value}` |" for key, value in (made | parameters).items() if value != ""]
    return Markdown("\n".join(["| | |", "|---|---|", *lines]))
