"""Every notebook from top to bottom in JupyterLab in a real browser; the search panel is used there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from running import wait_until
from test_notebooks import load_runner

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A copy of the notebooks with the parameters of the smoke report, and its data beside them."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    execute = load_runner(root / "notebooks/execute.py")
    report = execute.read_reports()["smoke"]
    execute._render(report["data"])
    for name, values in execute.plan(report, {}):
        path = root / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        for key, text in {"output": "../reports", "runs": "../runs", **values}.items():
            value = json.loads(text) if re.search(rf"^{key}: (int|float|bool)", cell.source, re.MULTILINE) else text
            cell.source = re.sub(rf"^({key}: \w+) = [^#]*", rf"\1 = {value!r}  ", cell.source, flags=re.MULTILINE)
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
    address = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+/lab")
    try:
        wait_until(lambda: address.search(log.read_text()), server, seconds=600)
        yield address.search(log.read_text())[0]
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


def open_and_run(browser, address: str):
    """A page with a notebook whose cells were told to run."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(600_000)
    page.goto(f"{address}?reset")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.sessionContext?.isReady")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
    done = execute(page, "notebook:run-all-cells")
    cells = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells")
    errors = [o["evalue"] for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    assert done is not False, errors
    return page


def execute(page, command: str):
    return page.evaluate("command => window.jupyterapp.commands.execute(command)", command)


def leave(page) -> None:
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # its memory
    page.close()


@pytest.mark.parametrize("name", sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_runs_in_jupyterlab(name, lab, browser, workplace):
    page = open_and_run(browser, f"{lab}/tree/notebooks/{name}.ipynb")
    if name.startswith("06"):  # its panel, below the many cells
        page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; "
                      "n.scrollToItem(n.widgets.length - 2); }")  # fmt: skip
        page.locator(".timam-search").get_by_role("img").nth(1).click()
        page.locator(".timam-search").get_by_role("status").get_by_text("pictures like").wait_for()
    execute(page, "docmanager:save")
    notebook = nbformat.read(workplace / "notebooks" / f"{name}.ipynb", as_version=4)
    leave(page)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert all(cell.execution_count for cell in code)


PANEL = """
import time
from pathlib import Path
from timam_lab.panel import SearchPanel
PICTURES = sorted(Path("../data/smoke/imgs").rglob("*.*"))[:20]
requests = []
def search(request):
    time.sleep(1)  # long enough for a busy sign to be seen
    requests.append(request if isinstance(request, str) else (request.name, request.stat().st_size))
    if request == "nonsense":
        raise ValueError("no such word")
    start = PICTURES.index(request) if request in PICTURES else len(requests)
    return [(PICTURES[(start + i) % 20], 0.9 - 0.1 * i) for i in range(6)]
SearchPanel(search, "a first sentence", threshold=0)
"""


def test_search_panel_with_the_mouse_and_the_keyboard(lab, browser, workplace):
    """The panel alone in a notebook, over a search that takes a second."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PANEL)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, workplace / "notebooks/panel.ipynb")
    page = open_and_run(browser, f"{lab}/tree/notebooks/panel.ipynb")
    panel, keyboard = page.locator(".timam-search"), page.keyboard
    box, pictures = panel.get_by_role("searchbox"), panel.get_by_role("img")
    panel.evaluate("""el => {
        const status = el.querySelector('[role=status]');
        const see = () => window.seen.push(`${el.ariaBusy} ${status.textContent}`);
        window.seen = [];
        see();
        new MutationObserver(see).observe(el, {subtree: true, childList: true, attributes: true});
    }""")

    def wait(text: str, shown: int = 6) -> None:
        page.wait_for_function("text => window.seen.at(-1) === text", arg=f"false {text}")
        assert panel.locator("img:visible").count() == shown

    def ask(act, text: str, shown: int = 6) -> None:
        """Does it, and waits for an answer after a busy sign."""
        page.evaluate("() => { window.seen = []; }")
        act()
        wait(text, shown)
        assert page.evaluate("() => window.seen.some(s => s.startsWith('true searching ...'))")

    wait("found for: a first sentence")
    second = pictures.nth(1).get_attribute("alt").partition(": ")[2]
    ask(pictures.nth(1).click, f"pictures like {second}")
    assert pictures.first.get_attribute("alt") == f"1: {second}"
    ask(lambda: box.press("Enter"), "found for: a first sentence")  # the same sentence
    picture = min((workplace / "data/smoke/imgs").rglob("*.*"))
    for _ in range(2):  # the same file twice
        ask(lambda: panel.locator("[type=file]").set_input_files(picture), f"pictures like {picture.name}")
    box.fill("nonsense")
    search = panel.get_by_role("button", name="Search", exact=True)
    ask(search.click, "The search failed. ValueError: no such word")
    panel.get_by_role("slider").fill("0.65")
    wait("The search failed. ValueError: no such word (3 of 6 shown)", 3)
    panel.get_by_role("slider").fill("0")
    box.focus()
    keyboard.press("Control+a")
    keyboard.type("a dog")  # letters that JupyterLab takes as commands elsewhere
    ask(lambda: keyboard.press("Enter"), "found for: a dog")
    for _ in range(3):  # the button, the file, the threshold
        keyboard.press("Tab")
    for _ in range(45):
        keyboard.press("ArrowRight")
    wait("found for: a dog (5 of 6 shown)", 5)  # 0.4 is below 0.45
    keyboard.press("Tab")
    keyboard.press("Tab")
    for key in ("Enter", "Space"):  # the second picture, then what has taken its place
        second = page.evaluate("() => document.activeElement.querySelector('img').alt.split(': ')[1]")
        ask(lambda key=key: keyboard.press(key), f"pictures like {second} (5 of 6 shown)", 5)
    leave(page)
