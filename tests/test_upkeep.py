"""The versions that workflow, hooks and pyproject.toml name are the same ones."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]


def bound(package: str) -> str:
    return re.search(rf'"{package}>=([\d.]+)"', PROJECT)[1]


def test_workflow_runs_make_test_on_every_python_with_the_oldest_and_the_newest_torch():
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13"], "torch": ["newest", "oldest"]}
    assert re.search(r'^requires-python = ">=(.*)"$', PROJECT, re.M)[1] == matrix["python"][0]
    steps = [step.get("run", "") for step in WORKFLOW["jobs"]["test"]["steps"]]
    assert steps[-1] == "make test PYTHON=python"
    oldest = [f"torch=={bound('torch')}.0", f"torchvision=={bound('torchvision')}.0"]
    assert steps[-2].split()[-2:] == oldest
    assert WORKFLOW["jobs"]["lowest"]["steps"][1]["with"]["python-version"] == matrix["python"][0]


def test_hooks_lint_with_the_locked_ruff_and_keep_the_ids_of_cells():
    locked = re.search(r"^ruff==.*$", (ROOT / "requirements/lock.txt").read_text(encoding="utf-8"), re.M)[0]
    hooks = {hook["id"]: hook for hook in HOOKS}
    assert hooks["ruff-check"]["additional_dependencies"] == hooks["ruff-format"]["additional_dependencies"] == [locked]
    assert hooks["nbstripout"]["entry"] == "nbstripout --keep-id"  # else it renames every cell
    strips = re.compile(hooks["nbstripout"]["files"])
    assert strips.search("notebooks/02_training.ipynb")
    assert not strips.search("reports/quick/02_training.ipynb")  # executed ones are evidence
