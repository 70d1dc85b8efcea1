"""The first and the last cell of a notebook: what it was given, and what produced its executed copy."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from IPython.display import Markdown

from timam.data import load_dataset
from timam.provenance import commit, provenance
from timam_lab.notebook import REPOSITORY, configure

# `check` is called first: these are of the notebook's start, whose code it runs.
STARTED, COMMIT = time.monotonic(), commit(*(REPOSITORY / part for part in ("notebooks", "timam", "timam_lab")))
ACCEPTED: dict[type, tuple[type, ...]] = {float: (float, int)}  # the other types accept themselves


def check(namespace: Mapping[str, Any]) -> None:
    """Refuses what papermill has set and the notebook does not declare, of which papermill only warns.

    Args:
        namespace: `globals()` of the notebook. The cell of parameters annotates each with its type.

    Raises:
        ValueError: an unknown parameter, or one of another type; it names the parameters that there are.
    """
    declared = namespace.get("__annotations__", {})
    injected = next((cell for cell in reversed(namespace.get("In", [])) if cell.startswith("# Parameters")), "")
    for node in ast.parse(injected).body:
        for target in node.targets if isinstance(node, ast.Assign) else ():
            name = ast.unparse(target)
            if name not in declared:
                raise ValueError(f"unknown parameter {name}; this notebook has {', '.join(declared)}")
            value, wanted = namespace[name], declared[name]
            if type(value) not in ACCEPTED.get(wanted, (wanted,)):
                raise ValueError(f"parameter {name} = {value!r}: expected {wanted.__name__}")


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
