"""Every notebook from top to bottom in JupyterLab in a real browser; the search panel is used there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from test_notebooks import load_runner

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A copy of the notebooks with the parameters of the smoke report, and its data beside them."""
    root = tmp_path_factory.mktemp("lab")
    (root / "notebooks").mkdir()
    for name in ("execute.py", "reports.yaml"):
        shutil.copy(NOTEBOOKS / name, root / "notebooks")
    execute = load_runner(root / "notebooks/execute.py")
    report = execute.read_reports()["smoke"]
    execute._render(report["data"])
    for path in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(path, root / "notebooks")
    for name, values in execute.plan(report, {}):
        path = root / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        for key, text in {"output": "../reports", "runs": "../runs", **values}.items():
            quote = json.dumps if f"\n{key}: str" in f"\n{cell.source}" else str
            cell.source = re.sub(rf"^({key}: \w+) = [^#]*", rf"\1 = {quote(text)}  ", cell.source, flags=re.MULTILINE)
        nbformat.write(notebook, path)
    return root


@pytest.fixture(scope="module")
def lab(workplace):
    """A running JupyterLab; its address."""
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={workplace}",
    ]  # fmt: skip
    log = workplace / "lab.log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, stderr=stream, stdout=stream, env={**os.environ, "HOME": str(workplace)})
    try:
        for _ in range(120):
            if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab", log.read_text()):
                break
            time.sleep(1)
        else:
            pytest.fail(log.read_text()[-2000:])
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    """Where screenshots go: $TIMAM_SCREENSHOTS to look at them."""
    folder = Path(os.environ.get("TIMAM_SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def execute(page, command: str, **arguments):
    return page.evaluate("([command, options]) => window.jupyterapp.commands.execute(command, options)",
                         [command, arguments])  # fmt: skip


@pytest.mark.parametrize("name", sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_runs_in_jupyterlab(name, lab, browser, workplace, shots):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(600_000)
    page.goto(f"{lab}/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext?.isReady")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
    assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')") is not False
    if name.startswith("06"):
        use_search_panel(page, shots)
    execute(page, "docmanager:save")
    notebook = nbformat.read(workplace / "notebooks" / f"{name}.ipynb", as_version=4)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # its memory
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    errors = [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not errors
    assert all(cell.execution_count for cell in code)
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        execute(page, "apputils:change-theme", theme=theme)
        page.wait_for_timeout(1500)
        for part in ("top", "middle", "end"):
            page.evaluate("part => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = "
                          "{top: 0, middle: Math.floor(n.widgets.length / 2), end: n.widgets.length - 1}[part]; "
                          "n.scrollToItem(n.activeCellIndex); }", part)  # fmt: skip
            page.wait_for_timeout(700)
            page.screenshot(path=shots / f"{name}-{theme.split()[-1].lower()}-{part}.png")
    page.close()


def use_search_panel(page, shots: Path) -> None:
    """Types a sentence, searches by the first picture found, and types the same sentence again."""
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; "
                  "n.scrollToItem(n.widgets.length - 2); }")  # fmt: skip
    box = page.locator(".widget-text input")
    box.wait_for()
    for _ in range(2):
        box.fill("a woman in a red coat")
        box.press("Enter")
        page.get_by_text("found for: a woman in a red coat").wait_for()
        assert page.locator(".widget-html img").count() == 8
        page.screenshot(path=shots / "06-search-panel.png")
        page.get_by_role("button", name="like this").first.click()
        page.locator(".widget-label", has_text="pictures like").wait_for()
