"""The search panel of notebook 06: a text field, and below it the pictures found, each of which can be searched by."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets

from timam.images import read_image

WIDTH = 96  # pixels of a thumbnail


def search_panel(search: Callable[[str | Path], Sequence[tuple[Path, float]]], sentence: str = "") -> widgets.VBox:
    """The panel, for a notebook to display.

    Args:
        search: from a sentence or a picture's path to pictures with their similarities, best first.
        sentence: searched at once, if there is one.
    """
    box = widgets.Text(placeholder="a sentence", continuous_update=False, layout=widgets.Layout(width="90%"))
    status, answers = widgets.Label(), widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))

    def show(request: str | Path, title: str) -> None:
        status.value = "searching ..."
        answers.children = [tile(path, score) for path, score in search(request)]
        status.value = title

    def tile(path: Path, score: float) -> widgets.VBox:
        def like_this(_: widgets.Button) -> None:
            box.value = ""  # so that the same sentence, typed again, is a change
            show(path, f"pictures like {path.name}")

        button = widgets.Button(description="like this", layout=widgets.Layout(width=f"{WIDTH}px"))
        button.on_click(like_this)
        return widgets.VBox([widgets.HTML(_image(path)), widgets.Label(f"{score:.2f}"), button])

    def typed(change: dict[str, str]) -> None:
        if text := change["new"].strip():
            show(text, f"found for: {text}")

    box.observe(typed, "value")
    box.value = sentence
    return widgets.VBox([box, status, answers])


def _image(path: Path) -> str:
    """A thumbnail as HTML with a text for those who do not see it."""
    picture, buffer = read_image(path), io.BytesIO()
    picture.thumbnail((WIDTH, 3 * WIDTH))
    picture.save(buffer, "png")
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{source}" width="{WIDTH}" alt="{html.escape(path.name)}">'
