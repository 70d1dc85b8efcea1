"""The search panel of notebook 06: search by a sentence, by a picture of one's own, or by a click on a found picture.

What is drawn in the browser, and how it reacts to keys and the mouse, is in panel.js and panel.css.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from timam.images import read_image

Search = Callable[[str | Path], Sequence[tuple[Path, float]]]


class SearchPanel(anywidget.AnyWidget):
    """The panel, for a notebook to display.

    Args:
        search: from a sentence or a picture's path to pictures with their similarities, best first.
        sentence: searched at once, if there is one.
        threshold: similarity below which answers are hidden at first; the panel has a slider for it.
    """

    _esm = Path(__file__).with_name("panel.js")
    _css = Path(__file__).with_name("panel.css")
    sentence = traitlets.Unicode().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool().tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    answers: traitlets.List[Any] = traitlets.List().tag(sync=True)  # {"name", "score", "source": a data: URL}

    def __init__(self, search: Search, sentence: str = "", threshold: float = -1.0) -> None:
        super().__init__(sentence=sentence, threshold=threshold)
        self._search, self._found = search, list[Path]()
        self.on_msg(self._asked)
        if sentence:
            self._show(sentence, f"found for: {sentence}")

    def _asked(self, _: Any, request: dict[str, Any], buffers: list[bytes]) -> None:
        """A request of the browser: {"sentence": text}, {"like": index of an answer} or {"picture": name} and bytes."""
        if text := request.get("sentence"):
            self._show(text, f"found for: {text}")
        elif "like" in request:
            path = self._found[request["like"]]
            self._show(path, f"pictures like {path.name}")
        elif name := request.get("picture"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, Path(name).name)
                path.write_bytes(buffers[0])
                self._show(path, f"pictures like {name}")

    def _show(self, request: str | Path, title: str) -> None:
        self.busy, self.status = True, "searching ..."
        try:
            found = self._search(request)
            self.answers = [{"name": path.name, "score": score, "source": _thumbnail(path)} for path, score in found]
            self._found, self.status = [path for path, _ in found], title
        except Exception as error:  # of whatever `search` calls; a widget's traceback is shown nowhere
            folder = f"{request.parent}/" if isinstance(request, Path) else ""  # of this machine, or temporary
            self.answers, self.status = [], f"The search failed. {type(error).__name__}: {error}".replace(folder, "")
        finally:
            self.busy = False


def _thumbnail(path: Path) -> str:
    picture, buffer = read_image(path), io.BytesIO()
    picture.thumbnail((192, 576))  # pixels: twice what is drawn, for screens with a high resolution
    picture.save(buffer, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
