"""timam_lab.parameters: what papermill has set is checked from inside; the last cell says what produced the copy."""

import os
from pathlib import Path

import pytest

from timam_lab import parameters


def namespace(injected: str, **values):
    """Of a notebook with the parameters root and level, as IPython keeps it."""
    declared = {"root": str, "dataset": str, "level": int, "share": float}
    cells = ["root: str = ''", f"# Parameters\n{injected}", "parameters.check(globals())"]
    return {"__annotations__": declared, "In": cells, "root": "", "dataset": "", "level": 1, "share": 0.5, **values}


def test_what_the_notebook_does_not_declare_is_refused_from_inside():
    parameters.check(namespace("level = 2\nshare = 1", level=2, share=1))
    parameters.check({**namespace("level = 2", level=2), "FROZEN": "a name of a later cell, which is executed again"})
    parameters.check(namespace("", root=Path(".")))  # a later cell makes a path of it
    with pytest.raises(ValueError, match="unknown parameter levle; this notebook has root, dataset, level, share"):
        parameters.check(namespace("levle = 2", levle=2))
    for wrong in ("2", True):
        with pytest.raises(ValueError, match=f"parameter level = {wrong!r}: expected int"):
            parameters.check(namespace("", level=wrong))  # written into the notebook, or set by papermill
    with pytest.raises(ValueError, match=r"parameter dataset = 'cvs': expected pedestrians, .*csv"):
        parameters.check(namespace("", dataset="cvs"))
    with pytest.raises(FileNotFoundError, match=r"parameter root = 'nowhere': no such folder or file: /.*/nowhere"):
        parameters.check(namespace("", root="nowhere"))


def test_the_last_cell_names_commit_versions_data_and_parameters(people: Path, monkeypatch):
    begun = parameters.COMMIT
    monkeypatch.setenv("TIMAM_COMMIT", "of a later commit, made while the notebook ran")
    text = parameters.produced(namespace("", root=people, dataset="cuhk-pedes")).data
    expected = {"commit": begun, "level": 1, "root": os.path.relpath(people)}
    assert [key for key, value in expected.items() if f"| {key} | `{value}` |" not in text] == []
    assert ("| torch | `" in text, "| data_fingerprint | `" in text) == (True, True)
    assert "data_fingerprint" not in parameters.produced(namespace("", root="nowhere", dataset="cuhk-pedes")).data
