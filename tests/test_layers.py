"""Who may import whom (style.md section 1): the arrows between the package's modules point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports(path)
    for package in ("timam", "timam_lab")
    for path in (ROOT / package).rglob("*.py")
}


def within(names: set[str], prefix: str) -> set[str]:
    """Those of `names` that are the module `prefix` or lie below it."""
    return {n for n in names if n == prefix or n.startswith(prefix + ".")}


def all_imports_of(prefix: str) -> set[str]:
    sources = within(set(IMPORTS), prefix)
    assert sources, f"{prefix} is gone: mend this test"
    return set().union(*(IMPORTS[m] for m in sources))


ABOVE = ["timam.training", "timam.evaluation", "timam.stores", "timam.losses", "timam.cli"]
# source -> what it must never import; losses, metrics and the gap are pure functions
FORBIDDEN = {
    **{pure: ["timam"] for pure in ("timam.losses", "timam.metrics", "timam.gap")},
    "timam.data": [*ABOVE, "timam.models"],
    "timam.models": [*ABOVE, "timam.data"],
    "timam.images": [*ABOVE, "timam.data", "timam.models"],
    "timam.stores": ["timam.training", "timam.evaluation", "timam.losses", "timam.cli"],
    "timam.evaluation": ["timam.training", "timam.losses", "timam.cli"],
    "timam.search": ["timam.training", "timam.data", "timam.losses", "timam.cli"],
    "timam_lab.statistics": [*ABOVE, "timam.data", "timam.models"],
    "timam_lab.pedestrians": [*ABOVE, "timam.data", "timam.models"],
}


@pytest.mark.parametrize("source", FORBIDDEN)
def test_arrow_points_one_way(source):
    assert {target: found for target in FORBIDDEN[source] if (found := within(all_imports_of(source), target))} == {}


# module -> those outside of it that import it
IMPORTERS = {
    "timam_lab": {"timam.cli"},  # and that inside commands only, else the lab could not import the command line
    "timam.training": {"timam.cli", "timam_lab.studies", "timam_lab.speed.training", "timam_lab.speed.gpu.correct",
                       "timam_lab.speed.gpu.learns"},
    "timam.cli": {"timam.__main__", "timam_lab.commands"},
    "tqdm.tqdm": set(),  # tqdm.auto's bar is one of a notebook in a notebook
    **{name: set() for name in ("tests", "notebooks", "conftest", "layouts", "pytest", "papermill")},
}  # fmt: skip


@pytest.mark.parametrize("target", IMPORTERS)
def test_only_these_import_it(target):
    importers = {module for module, names in IMPORTS.items() if within(names, target)}
    assert importers - within(importers, target) == IMPORTERS[target]
