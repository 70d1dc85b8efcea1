"""The front door: every command of the README and the docs runs, every link holds, every derived number is derived.

Commands stand in blocks marked `bash`, snippets in blocks marked `python`. They are executed in order, in a folder of
small data; a command that cannot run here is named in PARSED with the reason, and taken through the parser of what
it calls.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import papermill
import pytest
import torch
import torchvision
import transformers
import yaml
from hub import TOKEN, Hub, pretend_online, running_hub
from layouts import TINY_SETTINGS, karpathy_images, write_karpathy, write_person_search, write_picture, write_reed

from timam import cli, config
from timam.data.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
TINY = [part for setting in (*TINY_SETTINGS, "train.epochs=1") for part in ("--set", setting)]

# What is only parsed, and why. Everything else in a block marked `bash` is executed.
PARSED = {
    r"make \w[-\w]*": "minutes to hours, in an environment of its own; `make -n` says what it would do",
    r"\.venv/bin/jupyter lab notebooks": "a server that waits for a browser; tests/test_browser.py drives it",
    r"\.venv/bin/python notebooks/execute\.py .*": "needs data that we do not hold; test_notebooks.py runs each",
    r"\.venv/bin/accelerate launch .*": "needs GPUs; test_distributed.py runs two processes on a CPU",
    r"\.venv/bin/timam train .* --dataset (coco|flowers|icfg-pedes|rstp-reid) .*": "as those that run",
    r"\.venv/bin/timam search .* --engine ray .*": "needs a cluster with GPUs; test_search.py has one of two nodes",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, content) of every fenced block of a language, in order."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [(page.name, block) for page in PAGES for block in fenced.findall(page.read_text(encoding="utf-8"))]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line of a `bash` block; a line that ends in a backslash goes on."""
    lines = [(page, line.strip()) for page, block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    return [(page, line) for page, line in lines if line]


def parsed_only(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in PARSED)


# -- commands that run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder with what the README supposes: a table of one's own, pictures, and benchmarks under data/."""
    place = tmp_path_factory.mktemp("reader")
    rows = ["image_path,caption,identity,split"]
    for person in range(12):
        for picture in range(2):
            colours = ("red", "blue") if person % 2 else ("green", "white")
            write_picture(place / "ROOT" / f"cam1/{person}_{picture}.png", *colours, seed=2 * person + picture)
            split = "train" if person < 6 else "val" if person < 9 else "test"
            rows.append(f"cam1/{person}_{picture}.png,A person in {colours[0]} and {colours[1]}.,p{person},{split}")
    (place / "ROOT/captions.csv").write_text("\n".join(rows) + "\n")
    for name in ("ANY/FOLDER/1.png", "ANY/FOLDER/sub/2.png", "a.jpg", "b.jpg"):
        write_picture(place / name, seed=len(name))
    write_person_search(place / "data/CUHK-PEDES")
    write_karpathy(place / "data/flickr30k", karpathy_images(train=6, val=3, test=3))
    lists = {s: [f"{3 * k + i:03d}.{s}_{i}" for i in range(3)] for k, s in enumerate(("train", "val", "test"))}
    write_reed(place / "data/cub", lists)
    return place


@pytest.fixture
def hub(monkeypatch) -> Hub:
    with running_hub() as found:
        pretend_online(monkeypatch, found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.mark.slow
def test_commands_and_snippets_run_in_order(place, hub, monkeypatch):
    monkeypatch.chdir(place)
    failures, ran = [], []
    for page, command in commands():
        if parsed_only(command):
            continue
        words = shlex.split(command.replace("OWNER/NAME", "somebody/people"))
        words = [{"NAME": "csv"}.get(word, word.replace("/data/", "data/")) for word in words]
        if words[0] != ".venv/bin/timam":
            failures.append(f"{page}: {command}: neither run nor named in PARSED")
            continue
        small = {"train": TINY, "data pedestrians": ["--identities", "12", "--workers", "1"]}
        words += next((more for start, more in small.items() if " ".join(words[1:]).startswith(start)), [])
        monkeypatch.setattr(sys, "argv", words)
        try:
            cli.main()
        except SystemExit as stop:
            if stop.code:
                failures.append(f"{page}: {command}: exit code {stop.code}")
        ran.append(words[1])
    assert not failures
    assert set(ran) == {"data", "train", "search", "evaluate", "push"}  # every command of the command line
    assert (place / "found.png").exists()
    assert "somebody/people" in hub.repositories
    for page, snippet in blocks("python"):
        exec(compile(snippet, page, "exec"), {})


# -- commands that are parsed -----------------------------------------------------------------------------------


def parse_timam(words: list[str]) -> None:
    """Through click down to the command, without running it; and the settings through the config."""
    command, name = cli.cli, "timam"
    while hasattr(command, "commands"):
        command, name, words = command.commands[words[0]], words[0], words[1:]
    given = command.make_context(name, ["." if word == "runs/mine" else word for word in words]).params  # must exist
    if name == "train":
        config.override(config.PRESETS[given["preset"]], [f"data.dataset={given['dataset']}", *given["settings"]])


def parse_notebook(words: list[str]) -> None:
    """Through the runner's own parser; parameter names and types against each notebook."""
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks/execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    given = execute.main.make_context("execute.py", words).params
    for name in given["names"]:
        known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
        assert known, f"no notebook {name}"
        for key, value in given["pairs"]:
            assert key in known, f"{name} has no parameter {key}"
            typed = execute._typed(key, value, known[key]["inferred_type_name"])
            assert key != "dataset" or typed in BENCHMARKS
            assert key != "preset" or typed in config.PRESETS


def parse(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == ".venv/bin/timam":
        parse_timam(words[1:])
    elif words[:2] == [".venv/bin/python", "notebooks/execute.py"]:
        parse_notebook(words[2:])
    elif words[0] == ".venv/bin/accelerate":
        from accelerate.commands.launch import launch_command_parser

        given = launch_command_parser().parse_args(words[2:])
        assert given.module
        assert given.training_script == "timam"
        parse_timam(given.training_script_args)
    else:
        assert words == [".venv/bin/jupyter", "lab", "notebooks"]
        assert importlib.util.find_spec("jupyterlab")


@pytest.mark.parametrize(("page", "command"), [pair for pair in commands() if parsed_only(pair[1])])
def test_command_that_does_not_run_here_is_a_right_call(page, command):
    parse(command)


def test_each_reason_for_only_parsing_is_needed():
    unused = [pattern for pattern in PARSED if not any(re.fullmatch(pattern, c) for _, c in commands())]
    assert unused == []


def test_commands_within_sentences_are_right_calls():
    """`.venv/bin/timam ...` and `make ...` in running text; capitals stand for what a reader puts in."""
    found = [(page.name, code) for page in PAGES for code in re.findall(r"`((?:\.venv/bin/timam|make) [a-z][^`]*)`",
                                                                       page.read_text(encoding="utf-8"))]  # fmt: skip
    assert len(found) > 5
    for _, code in found:
        parse(code.replace("NAME", "csv"))


def test_recipes_of_the_clusters_are_well_formed():
    """SLURM's script is valid shell; Kubernetes' manifest is YAML; both call the runner rightly."""
    scripts, manifests = blocks("sbatch"), blocks("yaml")
    assert len(scripts) == len(manifests) == 1
    script = scripts[0][1]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    manifest = yaml.safe_load(manifests[0][1])
    assert manifest["kind"] == "RayJob"
    for command in (script.replace("\\\n", " ").strip().splitlines()[-1], manifest["spec"]["entrypoint"]):
        parse_notebook(shlex.split(command.partition("notebooks/execute.py ")[2]))


def test_conda_gets_the_pythons_of_pyproject_and_all_extras():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    oldest = re.search(r'^requires-python = "(.*)"$', project, re.M)[1]
    assert dependencies[0].startswith(f"python {oldest}")
    assert dependencies[-1] == {"pip": ['-e ".[dev]"']}


# -- links ------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\(.*?\)", "", heading).strip().lower()).replace(" ", "-")


def headings(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {slug(h) for h in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_hold(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    tracked = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert str(file.relative_to(ROOT)) in tracked, target  # a link into what git ignores breaks in every clone
        assert not anchor or anchor in headings(file), target


def test_readme_names_every_notebook_and_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "docs").glob("*.md")]:
        assert f"]({path.relative_to(ROOT)}" in readme, path.name


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values["id"]} if values.get("id") else set()
        self.links += [values["href"]] if tag == "a" and values.get("href") else []


@pytest.mark.slow
def test_api_reference_builds_and_its_links_hold(tmp_path):
    """As `make docs` builds it."""
    recipe = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in recipe.splitlines() if "-m pdoc" in line)
    words = shlex.split(line.replace("docs/api", str(tmp_path)))[1:]
    built = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    assert "Warn" not in built.stderr  # pdoc's word for what it could not read
    pages = {}
    for path in tmp_path.rglob("*.html"):
        pages[path] = _Anchors()
        pages[path].feed(path.read_text(encoding="utf-8"))
    modules = [p for p in (ROOT / "timam").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    assert {p.relative_to(ROOT).with_suffix(".html") for p in modules} <= {p.relative_to(tmp_path) for p in pages}
    for path, page in pages.items():
        for link in page.links:
            if "://" in link or link.startswith("data:"):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages, f"{path.name}: {link}"
            assert not anchor or anchor in pages[target].ids, f"{path.name}: {link}"


# -- numbers ----------------------------------------------------------------------------------------------------


def test_estimated_cost_follows_from_its_derivation():
    """FLOPs by torch's counter on shapes alone; pictures from what is published; hours as the README derives them."""
    from torch.utils.flop_counter import FlopCounterMode

    def gflop(call) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 1e9

    with torch.device("meta"):
        resnet = torchvision.models.resnet101()
        bert = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
        sizes = {name: (config.PRESETS[name].model.image_height, config.PRESETS[name].model.image_width)
                 for name in ("paper", "modern")}  # fmt: skip
        images = {name: gflop(lambda s=size: resnet(torch.empty(1, 3, *s))) for name, size in sizes.items()}
        words = gflop(lambda: bert(torch.zeros(1, 32, dtype=torch.long)))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = " ".join(readme.split())
    assert f"({images['paper']:.1f} GFLOP at 224x224, {images['modern']:.1f} at 384x128)" in text
    assert f"({words:.1f} GFLOP)" in text
    step = 3 * (images["paper"] + words)
    assert f"{step:.0f} GFLOP a picture" in text
    assert all(config.PRESETS[name].train.epochs == 60 for name in sizes)
    section = readme.partition("## Benchmarks on a GPU")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (?:about |at most )?([\d,]+)[^|]*\| ([\d.]+) \|$", section, re.M)
    known = {name.replace("-", "").lower(): b.published for name, b in BENCHMARKS.items()} | {
        "rstpreid": BENCHMARKS["rstp-reid"].published
    }
    assert len(rows) == 7
    for name, pictures, hours in rows:
        count, published = int(pictures.replace(",", "")), known[name.replace("-", "").lower()]
        if name in ("CUB", "Flowers"):  # published for all classes together; the training classes' share of them
            total, _, classes = published["train+val+test"]
            train = published.get("train", published.get("train+val"))[2]
            assert count == math.floor(total * train / classes), name
        else:
            assert count == published.get("train", published.get("train+val"))[0], name
        assert float(hours) == pytest.approx(count * 60 * step * 1e9 / 30e12 / 3600, abs=0.051), name


def test_share_of_wrong_answers_is_that_of_the_result():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rank_1 = float(re.search(r"^\| TIMAM, `quick` \| \*\*([\d.]+)\*\*", readme, re.M)[1])
    assert f"In the run above {100 - rank_1:.0f} of 100 sentences" in " ".join(readme.split())
