"""What the README and the docs say holds: commands parse, the first ones run, links exist.

Commands stand in blocks marked `bash`, snippets in blocks marked `python`. Commands on `ROOT` and `runs/mine` are run
in order and on tiny data; all others go through the parser of the program that they call.
"""

import importlib.util
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import papermill
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from hub import TOKEN, pretend_online, running_hub
from layouts import TINY_SETTINGS, write_picture, write_table
from test_notebooks import execute

from timam import cli, config
from timam.data import DATASETS

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The content of every fenced block of a language, in the order of the pages."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def commands() -> list[str]:
    """Every line of a `bash` block, joined where it ends in a backslash; then the commands within sentences."""
    lines = [line.strip() for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line] + re.findall(r"`((?:\.venv/bin/\w+|make|timam) [a-z][^`]*)`", TEXT)


def runs_here(command: str) -> bool:
    mine = re.search(r"--dataset csv --root ROOT|runs/mine|--output data/people", command)
    return command.startswith(".venv/bin/timam ") and mine is not None and "ray" not in command


@pytest.mark.slow
def test_commands_on_your_own_data_and_all_snippets_run_in_order(tmp_path, monkeypatch):
    write_table(tmp_path / "ROOT")
    for name in ("ANY/FOLDER/1.png", "a.jpg", "b.jpg"):
        write_picture(tmp_path / name, seed=len(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    tiny = [part for setting in (*TINY_SETTINGS, "train.epochs=1") for part in ("--set", setting)]
    small = {"train": tiny, "pedestrians": ["--identities", "12", "--workers", "1"]}
    ran, failed = set(), set()
    with running_hub() as hub:
        pretend_online(monkeypatch, hub.url)
        for command in filter(runs_here, commands()):
            words = shlex.split(command.replace("OWNER/NAME", "somebody/people"))
            words += next((more for name, more in small.items() if name in words[1:3]), [])
            monkeypatch.setattr(sys, "argv", words)
            try:
                cli.main()
            except SystemExit as stop:
                failed |= {command} if stop.code else set()
            ran.add(words[1])
        assert "somebody/people" in hub.repositories
    assert not failed
    assert ran == {"data", "train", "search", "evaluate", "push"}
    assert Path("runs/found.png").exists()
    for snippet in blocks("python"):
        exec(compile(snippet, "snippet", "exec"), {})


def parse_timam(words: list[str]) -> None:
    """Through click down to the command, without running it; and the settings through the config."""
    command, name = cli.cli, "timam"
    while isinstance(command, click.Group):
        command, name, words = command.get_command(click.Context(command), words[0]), words[0], words[1:]
    folders = ("runs", "runs/mine", "runs/own", "RUN", "ROOT", "FOLDER")  # which must exist
    words = ["." if word in folders else {"NAME": "csv"}.get(word, word) for word in words]
    given = command.make_context(name, words, resilient_parsing=not words).params
    if name == "train" and words:
        config.override(config.PRESETS[given["preset"]], [f"data.dataset={given['dataset']}", *given["settings"]])


def parse_notebook(words: list[str]) -> None:
    """Through the runner's own parser; parameter names and types against each notebook."""
    given = execute.main.make_context("execute.py", words).params
    assert not given["report"] or execute.plan(execute.read_reports()[given["report"]], {}, given["names"])
    for name in given["names"]:
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
        for key, value in given["pairs"]:
            typed = execute._typed(key, value, known[key]["inferred_type_name"])
            assert typed in {"dataset": DATASETS, "preset": config.PRESETS}.get(key, [typed])


@pytest.mark.parametrize("command", sorted({c for c in commands() if not runs_here(c)}))
def test_command_that_does_not_run_here_is_a_right_call(command):
    program, *words = shlex.split(command.removeprefix(".venv/bin/"))
    if program == "make":
        subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
    elif program == "timam":
        parse_timam(words)
    elif program == "accelerate":
        given = launch_command_parser().parse_args(words[1:])
        assert (given.module, given.training_script) == (True, "timam")
        parse_timam(given.training_script_args)
    elif [program, words[0]] == ["python", "-m"]:
        assert importlib.util.find_spec(words[1])
    elif [program, words[0]] == ["python", "notebooks/execute.py"]:
        parse_notebook(words[1:])
    else:
        assert [program, *words] == ["jupyter", "lab", "notebooks"]


def test_recipes_of_the_clusters_are_well_formed():
    """SLURM's script is valid shell; Kubernetes' manifest is YAML; both call the runner rightly."""
    (script,), (manifest,) = blocks("sbatch"), blocks("yaml")
    for shell in (script, *blocks("sh")):
        subprocess.run(["bash", "-n"], input=shell, text=True, check=True)
    entry = yaml.safe_load(manifest)["spec"]["entrypoint"]
    for command in (script.replace("\\\n", " ").strip().splitlines()[-1], entry):
        parse_notebook(shlex.split(command.partition("notebooks/execute.py ")[2]))


@pytest.mark.slow
def test_worked_examples_apply_to_the_code_and_pass_its_tests(tmp_path):
    files = subprocess.run(["git", "ls-files", "timam", "timam_lab", "tests", "docs", "pyproject.toml"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    for file in filter(lambda name: (ROOT / name).exists(), files):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for patch in blocks("diff"):
        applied = subprocess.run(["git", "apply"], cwd=tmp_path, input=patch, capture_output=True, text=True)
        assert not applied.returncode, f"an example of CONTRIBUTING.md no longer fits: {applied.stderr}"
    # Of each file the tests that would fail if an example broke the code around it.
    chosen = {"losses": "by_hand", "objective": "definitions", "metrics": "two_directions", "readers": "shop"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", " or ".join(chosen.values())]
    command += [f"tests/test_{name}.py" for name in chosen]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    tested = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert not tested.returncode, tested.stdout


def headings(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    plain = [re.sub(r"[`*]|\]\(.*?\)", "", heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_hold_and_named_modules_exist(page):
    whole = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", whole, flags=re.M | re.S)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"\]\(((?!http)[^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert str(file.relative_to(ROOT)) in listed.split(), target  # a link into what git ignores breaks in a clone
        assert not anchor or anchor in headings(file.read_text(encoding="utf-8")), target
    if page.name != "CHANGELOG.md":  # which also names what is gone
        for name in re.findall(r"`((?:timam|timam_lab)(?:\.\w+)+)", whole):
            assert pkgutil.resolve_name(name), name


def test_readme_is_short_and_complete():
    assert len(README.encode()) <= 8000
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *DOCS]:
        assert f"]({path.relative_to(ROOT)}" in README, path.name
    rank_1 = float(re.search(r"^\| seed 0 \| ([\d.]+)", README, re.M)[1])
    assert f"With seed 0, {100 - rank_1:.0f} of 100 sentences" in " ".join(README.split())


def read_yaml(name: str):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_workflow_conda_and_hooks_name_the_versions_of_pyproject_and_the_lock():
    jobs, conda = read_yaml(".github/workflows/test.yml")["jobs"], read_yaml("environment.yml")["dependencies"]
    python = re.search(r'^requires-python = ">=(.*)"$', PROJECT, re.M)[1]
    oldest = [f"{name}=={version}.0" for name, version in re.findall(r'"(torch|torchvision)>=([\d.]+)"', PROJECT)]
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == python
    assert any(step.get("run", "").split()[-2:] == oldest for step in jobs["test"]["steps"])
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == python
    assert conda[0].startswith(f"python >={python},")
    locked = re.search(r"^ruff==.*$", (ROOT / "requirements/lock.txt").read_text(encoding="utf-8"), re.M)[0]
    hooks = {hook["id"]: hook for hook in read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]}
    assert hooks["ruff-check"]["additional_dependencies"] == hooks["ruff-format"]["additional_dependencies"] == [locked]
    assert hooks["nbstripout"]["entry"] == "nbstripout --keep-id"  # else it renames every cell
    assert not re.search(hooks["nbstripout"]["files"], "reports/quick/02_training.ipynb")  # executed ones are evidence
