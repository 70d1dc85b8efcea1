"""The notebooks run headless on other data than the defaults, and their runner keeps its promises."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from layouts import karpathy_images, write_karpathy, write_language_model, write_person_search, write_reed, write_table
from running import wait_until

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def load_runner(path):
    spec = importlib.util.spec_from_file_location("execute", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_runner(ROOT / "notebooks/execute.py")
REPORTS = execute.read_reports()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_sources_are_without_outputs_and_say_their_question_and_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert not any("load_dataset(dataset, root)" in cell.source for cell in code)  # a table's columns have other names
    assert any("notebook.folder" in cell.source for cell in code)  # an empty one is the clone's
    assert all(part in notebook.cells[0].source for part in ("**Question.**", "**Runtime.**"))
    assert notebook.cells[-3].source.startswith("## Reading")
    assert "parameters.check(globals())" in notebook.cells[2].source
    assert notebook.cells[-1].source == "parameters.produced(globals())"
    parameters = papermill.inspect_notebook(str(path))
    assert {"dataset", "preset", "output"} <= set(parameters)
    assert {"root", "seed"} <= set(parameters) or path.stem.startswith("07")  # which reads finished runs alone
    assert all(parameter["help"] for parameter in parameters.values())
    if path.stem in execute.SHOWS_RUNS:
        folder, default = execute.SHOWS_RUNS[path.stem]
        assert f"empty: {default.removeprefix('../')}" in parameters[folder]["help"]
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert len(parameters) == len(cell.source.splitlines())  # papermill passes over a line that it cannot parse


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_made_of_notebooks_and_parameters_that_exist(name):
    report, used = REPORTS[name], set()
    for notebook, texts in execute.plan(report, {}):
        known = papermill.inspect_notebook(str(ROOT / f"notebooks/{notebook}.ipynb"))
        assert set(texts) <= set(known), notebook
        for key, text in texts.items():
            execute._typed(key, text, known[key]["inferred_type_name"])
        used |= set(texts)
    assert set(report["parameters"]) <= used


def test_smoke_report_has_every_notebook_and_the_callers_parameters_win_and_must_exist():
    assert set(REPORTS["smoke"]["notebooks"]) == {path.stem for path in NOTEBOOKS}
    ((name, parameters),) = execute.plan(REPORTS["studies"], {"preset": "smoke"}, ("03_ablation_modules",))
    chosen = {"preset": "smoke", "seeds": "5", "root": "../data/pedestrians"}
    assert (name, chosen.items() <= parameters.items()) == ("03_ablation_modules", True)
    with pytest.raises(SystemExit, match="not in this report: levle"):
        execute.plan(REPORTS["studies"], {"levle": "3"})


# Classes, a tenth of the trainval ones held out by the reader for validation: two, for the probes' sake.
FLOWERS = {"trainval": [f"class_{i:05d}" for i in range(1, 21)], "test": ["class_00021", "class_00022"]}
# Three pictures, no identities, no splits: fewer than a notebook would like to show. Columns of other names.
OWN = [["Bild", "Satz"], *([f"p/{i}.png", f"a person in a red coat number {i}"] for i in range(3))]
# The paper's architecture at the size of a thumbnail and with random weights. Clipped: four thumbnails send gradients
# of 1e15 through a hundred random batch-normalised layers.
SMALL = (
    "backbone_weights=none image_height=32 image_width=32 max_tokens=16 lstm_hidden=8 embedding_dim=16 batch_size=4 "
    "epochs=1 max_steps=1 gradient_clip=1"
)
# data: (how to write them, notebooks that treat them in a way of their own, of which 02, 05, 06 and 07 share a run,
# and their parameters; variants are some of each kind that the smoke report leaves out)
KINDS = {
    "coco": (lambda root: write_karpathy(root, karpathy_images(train=12, val=4, test=6), ".", "coco"), "02 06", {}),
    "flowers": (lambda root: write_reed(root, FLOWERS, flat=True), "02 05 07", {}),
    "csv": (lambda root: write_table(root, OWN), "01", {"settings": "columns=image_path=Bild;caption=Satz"}),
    "cuhk-pedes": (write_person_search, "03", {"preset": "paper", "settings": f"{SMALL} backbone=resnet18", "variants":
                   "matching + identification; adversarial, frozen language model; gradient reversal; triplet"}),
    "flickr30k": (lambda root: write_karpathy(root, karpathy_images(train=12, val=4, test=4)), "04",
                  {"preset": "paper", "settings": SMALL, "variants": "ResNet-50; ResNet-101"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_notebooks_run_on_data_of_the_other_kinds_and_with_the_paper_preset(name, tmp_path):
    write, numbers, parameters = KINDS[name]
    runs, settings = tmp_path / "runs", parameters.get("settings", "epochs=2 max_steps=2")
    if "preset" in parameters:
        settings += f" language_model={write_language_model(tmp_path / 'bert')}"
    chosen = {"dataset": name, "root": write(tmp_path / "data"), "preset": "smoke", "runs": runs, **parameters,
              "settings": settings}  # fmt: skip
    for path in [path for path in NOTEBOOKS if path.stem[:2] in numbers.split()]:
        known = papermill.inspect_notebook(str(path)).keys() - ({"dataset"} if "results" in path.stem else set())
        pairs = [part for key, value in chosen.items() if key in known for part in ("-p", key, value)]
        command = ["--output", tmp_path / "reports", *pairs, path.stem]
        result = CliRunner().invoke(execute.main, list(map(str, command)))
        assert result.exit_code == 0, result.output[-3000:]
        executed = nbformat.read(tmp_path / "reports" / path.name, as_version=4)
        assert (tmp_path / "reports" / path.name).stat().st_size < 1_000_000  # more, and a code host draws nothing
        streams = [o for cell in executed.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        assert not streams  # progress bars belong to the terminal
        assert "input_path" not in executed.metadata["papermill"]  # a path of this machine
        printed = str([cell.get("outputs") for cell in executed.cells])
        if "training" in path.stem:  # what the literature reports for this kind of data
            assert ("text_to_image_ap_50" in printed) == (name == "flowers")
        if "results" in path.stem:  # a row of ours links to its run
            finished = [file.parent.name for file in runs.glob("*/metrics.json")]
            assert finished
            assert all(f'<a href="../runs/{run}">' in printed for run in finished)
    assert {p.suffix for p in (tmp_path / "reports/figures").iterdir()} == {".png", ".pdf", ".csv"}
    if "variants" in parameters:
        presets = [json.loads(file.read_text())["preset"] for file in runs.glob("*/config.json")]
        assert presets == ["paper"] * len(parameters["variants"].split(";"))


def test_the_exploration_names_data_that_are_not_there_and_passes_over_incomplete_ones_beside_its_own(tmp_path):
    write_person_search(tmp_path / "cuhk-pedes", train=0, val=2, test=0)
    cells = [c.source for c in nbformat.read(NOTEBOOKS[0], 4).cells if c.cell_type == "code"]
    parameters, _, start, inventory, *_ = cells
    exec(parameters, names := {})
    with pytest.raises(SystemExit, match=r"cub: .*/none/text_c10: no such folder of captions; cub is published here: "):
        exec(start, names | {"dataset": "cub", "root": str(tmp_path / "none")})
    own = {"dataset": "flowers", "root": str(write_reed(tmp_path / "own", FLOWERS, flat=True)), "preset": "smoke"}
    exec(start, names := names | own | {"collection": str(tmp_path)})
    exec(inventory, names)
    found = names["inventory"].set_index("data set")["found here"]
    assert found["cuhk-pedes"] == "not usable: cuhk-pedes has no pictures in its train split"
    assert found["flowers"].startswith("train ")


@pytest.mark.slow
def test_plain_papermill_from_any_folder_writes_only_where_it_is_told_to(tmp_path):
    """The default of an empty `runs` is the clone's, not one relative to the caller's folder."""
    (tmp_path / "here").mkdir()
    path, out = ROOT / "notebooks/07_results.ipynb", tmp_path / "here/out.ipynb"
    command = [sys.executable, "-m", "papermill", path, out, "-p", "output", "tables", "-p", "dataset", "cub"]
    subprocess.run(list(map(str, command)), capture_output=True, cwd=tmp_path / "here", timeout=600, check=True)
    assert {p.name for p in (tmp_path / "here").iterdir()} == {"out.ipynb", "tables"}
    assert "| torch | `" in str(nbformat.read(out, as_version=4).cells[-1].outputs)  # what produced it
    assert {p.name for p in tmp_path.iterdir()} == {"here"}
    assert "CMPM+CMPC" in (tmp_path / "here/tables/07_cub.csv").read_text()


@pytest.fixture
def trial(tmp_path):
    """A folder with the repository's layout and a copy of the runner; executes a notebook of one code cell."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "timam").mkdir()
    (tmp_path / "timam/module.py").write_text("x = 1\n")
    copied = load_runner(shutil.copy(ROOT / "notebooks/execute.py", tmp_path / "notebooks"))

    def run(code, *arguments):
        parameters = nbformat.v4.new_code_cell(
            'root: str = "."  # data\noutput: str = "."  # figures\nlevel: int = 1  # of x', id="parameters"
        )
        parameters.metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code, id="code")])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks/09_trial.ipynb")
        call = ["--output", str(tmp_path / "reports"), *arguments, "09_trial"]
        return CliRunner().invoke(copied.main, call)

    return run


def test_unknown_parameter_is_refused_and_known_ones_reach_the_notebook(trial, tmp_path):
    (tmp_path / "notebooks/08_first.ipynb").write_text("no notebook: it is not read")
    assert trial("", "08_frist").output.startswith("08_frist: no such notebook; there are 08_first, 09_trial")
    refused = trial("print(level + 1)", "-p", "levle", "3")
    assert refused.exit_code == 1
    assert "no parameter levle" in refused.output
    assert not (tmp_path / "reports/09_trial.ipynb").exists()
    assert trial("print(level + 1, output)", "-p", "level", "3", "-p", "output", "3").exit_code == 0
    executed = nbformat.read(tmp_path / "reports/09_trial.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "4 3\n"
    assert 'output = "3"' in str(executed.cells)  # a text that looks like a number is a text


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise KeyError('missing figure')", "missing figure"),
     ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "DeadKernelError")],  # as for lack of memory
)  # fmt: skip
def test_failed_notebook_leaves_no_report_and_a_non_zero_exit(trial, tmp_path, code, reason):
    result = trial(code)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert reason in result.output
    assert "failed: 09_trial" in result.output
    assert list((tmp_path / "reports").iterdir()) == []


@pytest.mark.slow
def test_sigterm_lets_the_cell_clean_up_and_says_how_to_go_on(trial, tmp_path):
    code = """
import time
from pathlib import Path
try:
    Path('../begun').touch()
    time.sleep(60)
except KeyboardInterrupt:
    Path('../saved').touch()
    raise"""

    def stop():
        wait_until((tmp_path / "begun").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(stop)
        result = trial(code)
        stopping.result()
    assert (result.exit_code, (tmp_path / "saved").exists()) == (143, True)
    assert "the same command goes on" in result.output
    assert list((tmp_path / "reports").iterdir()) == []


def test_progress_bars_and_their_state_are_not_kept(trial, tmp_path):
    """In a notebook tqdm.auto shows a widget, beside which a text says the same. Other widgets stay."""
    code = "from tqdm.auto import tqdm\nfor _ in tqdm([1, 2]): print('done')"
    widget = "import ipywidgets; display(ipywidgets.Text('mine'))"
    for more, kept in (("", 0), (widget, 1)):
        assert trial(f"{code}\n{more}").exit_code == 0
        executed = nbformat.read(tmp_path / "reports/09_trial.ipynb", as_version=4)
        shown = str([cell.get("outputs") for cell in executed.cells])
        assert ("done" in shown, "%|" in shown, shown.count("widget-view")) == (True, False, kept)
        assert ("widgets" in executed.metadata) == bool(kept)


def test_relative_folders_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = execute._given((("root", "mydata"), ("runs", "/data/runs"), ("study", ""), ("level", "3")))
    assert (ROOT / "notebooks" / given.pop("root")).resolve() == tmp_path.resolve() / "mydata"
    assert given == {"runs": "/data/runs", "study": "", "level": "3"}


@pytest.mark.slow
def test_up_to_date_report_is_not_made_again_until_something_changes(trial, tmp_path):
    code = "from pathlib import Path\nPath('../count').open('a').write('x')"
    changes = [None, None, "timam/module.py", "timam/presets.yaml", "notebooks/data.json", "notebooks/deep/a.JSONL"]
    for times, change in enumerate(changes):
        if change:  # the package, or an annotation file in the data's root
            (tmp_path / change).parent.mkdir(exist_ok=True)
            (tmp_path / change).write_text("2\n")
        assert trial(code).exit_code == 0
        assert (tmp_path / "count").read_text() == "x" * max(1, times)
    assert trial(code, "-p", "level", "2").exit_code == 0
    assert (tmp_path / "count").read_text() == "x" * 6
