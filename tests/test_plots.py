"""timam_lab.plots: what a reader must find in a figure: the right answer, units, words instead of identifiers."""

import base64
import io
from unittest.mock import Mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from timam.objective import TERMS
from timam_lab import notebook, plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def words(texts):
    return [text.get_text() for text in texts]


def test_rankings_show_the_right_picture_at_the_end():
    picture = Image.new("RGB", (4, 8))
    figure = plots.rankings(["a man", "a woman"], [[picture] * 2] * 2, [[0.9, 0.5], [0.8, 0.1]],
                            [[False, True], [True, False]], references=[picture] * 2,
                            titles=["near miss", "success"])  # fmt: skip
    assert len(figure.axes) == 2 * 4
    found = words(text for axis in figure.axes for text in (axis.title, axis.xaxis.label, *axis.texts))
    assert {"1  ✗", "2  ✓", "right picture", "0.90", "a man"} <= set(found)
    assert found.count("right picture") == 2
    assert [axis.get_title(loc="left") for axis in figure.axes[::4]] == ["near miss", "success"]
    assert [axis.texts[0].get_va() for axis in figure.axes[::4]] == ["top"] * 2  # no long sentence touches its title
    marked = plots.rankings(["a man"], [[picture] * 2], [[0.9, 0.5]], np.array([[False, True]]))  # of NumPy's type
    assert [axis.spines["top"].get_linestyle() for axis in marked.axes[1:]] == [(0, (3, 2)), "-"]
    long = plots.rankings(["a man in a red coat " * 40], [["a"]], [[0.5]])
    assert len(long.axes) == 2
    *lines, last = long.axes[0].texts[0].get_text().splitlines()
    assert (len(lines), last[-2:]) == (11, " …")
    empty = plots.rankings(["a car", "a man"], [[], [picture]], [[], [-0.001]])
    assert [axis.texts[0].get_text() for axis in empty.axes[:2]] == ["a car", "nothing here fits"]
    assert empty.axes[3].get_xlabel() == "0.00"


def test_sentences_are_drawn_as_written():
    picture, text, word = Image.new("RGB", (4, 8)), r"a bag with $\foo$ on it", r"$\foo$"  # no symbol of TeX
    effects = pd.DataFrame({"word": [word], "effect": [0.1]})
    for figure in (
        plots.rankings([text], [[picture]], [[0.5]], titles=[text]),
        plots.rankings([picture], [[text]], [[0.5]], references=[text]),
        plots.captioned_pictures([picture], [text]),
        plots.word_effects([(text, effects)]),
        plots.heat_maps([picture], [np.ones((2, 2))], [text], [text]),
    ):
        figure.canvas.draw()  # would raise for an unknown symbol
        assert any(word in t.get_text() for t in figure.findobj(Text))


def test_seeds_are_in_percent_but_for_plain_measures():
    frame = pd.DataFrame({"variant": ["a", "a", "b"], "rank_1": [0.2, 0.4, 0.1], "distance": [0.3, 0.5, 1.2]})
    figure = plots.seeds(frame, {"rank_1": "rank-1", "distance": "distance"}, ["a", "b"], plain=["distance"])
    percent, plain = figure.axes
    assert (percent.get_xlabel(), plain.get_xlabel()) == ("percent", "")
    means = [[float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "o"] for axis in figure.axes]
    assert means == [pytest.approx([30, 10]), pytest.approx([0.4, 1.2])]


def test_panels_with_other_variants_have_a_legend_each():
    rows = [("modules", "a"), ("modules", "b"), ("choices", "b")]
    frame = pd.DataFrame([(*row, level, 0.2, seed) for row in rows for level in (1, 6250) for seed in (0, 1)],
                         columns=["panel", "variant", "level", "value", "seed"])  # fmt: skip
    figure = plots.trends(frame, {"modules": "epoch", "choices": "epoch"}, "points")
    assert [words(axis.get_legend().get_texts()) for axis in figure.axes] == [["a", "b"], ["b"]]
    assert all([line.get_ydata()[0] for line in axis.lines][-1] == 0 for axis in figure.axes)  # where points begin
    assert plots.described(figure).startswith("points at epoch 6,250: a = 20, b = 20. points at epoch 6,250: b = 20. ")
    assert figure.axes[0].get_ylabel() == "points\nmean and 95 % interval over seeds, n = 2"
    assert words(figure.axes[0].get_xticklabels()) == ["1", "6,250"]
    (one,) = plots.trends(frame[frame["panel"] == "modules"], {"modules": "epoch"}).legends
    assert words(one.get_texts()) == ["a", "b"]


def test_tradeoffs_have_intervals_both_ways_and_no_point_hides_another():
    frame = pd.DataFrame({"variant": ["a", "a", "b", "b"], "gap": [1.0, 3.0, 2.0, 2.0], "rank": [0.1, 0.3, 0.5, 0.5]})
    first, axis = plots.tradeoffs(frame, {"gap": "gap (0: none)"}, {"gap": "gap", "rank": "rank-1"}).axes
    assert (first.get_xlabel(), axis.get_xlabel()) == ("", "gap\n(0: none)")
    (a, _, (across, up)), _ = axis.containers
    assert (a.get_xdata()[0], a.get_ydata()[0], a.get_fillstyle()) == (2, pytest.approx(20), "none")
    half = 12.706  # t(0.975, 1) times the standard error, which is 1
    assert across.get_segments()[0][:, 0] == pytest.approx([2 - half, 2 + half], rel=1e-4)
    assert up.get_segments()[0][:, 1] == pytest.approx([20 - 10 * half, 20 + 10 * half], rel=1e-4)


def test_gaps_are_in_percent_where_they_say_so_and_a_value_may_lie_outside_its_interval():
    frame = pd.DataFrame({"variant": ["a"], "x": [0.9], "x_low": [0.6], "x_high": [0.8]})
    (axis,) = plots.gaps(frame, {"x": "probe, percent right (50: no gap)"}).axes
    (bar,) = axis.containers[0].lines[2]
    assert bar.get_segments()[0][:, 0] == pytest.approx([60, 80])
    assert [line.get_xdata()[0] for line in axis.lines[-2:]] == [90, 50]
    assert axis.get_title() == "probe, percent right\n(50: no gap)"


def test_every_curve_of_the_growth_has_ticks_that_can_be_read():
    frame = pd.DataFrame({"axis": "size", "level": [1, 2, 4] * 2, "variant": ["a"] * 3 + ["b"] * 3,
                          "seconds": [0.2, 0.3, 0.5] * 2, "floor": [0.1, 0.1, 0.1] * 2})  # fmt: skip
    (axis,) = plots.growth(frame, {"size": "size"}, "seconds", "seconds", "floor").axes
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 3
    wide = [line.get_markersize() for line in axis.lines if line.get_linestyle() == "-"]
    assert wide[0] > wide[1]  # the second curve, drawn over the first, leaves it visible
    assert [line.get_label() for line in axis.lines if line.get_linestyle() == "--"] == ["floor"]  # that both share


def test_of_many_values_the_label_has_both_ends_and_the_threshold_says_its_rate():
    curve = pd.DataFrame({"false alarms": [1.0, 5, 10, 20, 50, 99], "answered": [2.0, 10, 20, 30, 40, 50]})
    figure = plots.open_set(curve, "half is absent", (13.4, 25.0))
    assert "answered, by false alarms: 1.0 = 2, 99.0 = 50 (lowest and highest of 6). " in plots.described(figure)
    assert words(figure.axes[0].get_legend().get_texts()) == ["threshold chosen for 10 % on validation: 13 % here"]
    assert plots.open_set(curve, "half is absent").axes[0].get_legend() is None


HISTORY = pd.DataFrame({"epoch": [1, 2], "language_model_frozen": [True, False], "discriminator_accuracy": 0.5,
                        "val_text_to_image_rank_1": [0.1, 0.2], "val_image_to_text_rank_1": [0.2, 0.3],
                        **{term.name: [2.0, 1.0] for term in TERMS}, "total": [5.0, 3.0],
                        "discriminator": 1.4})  # fmt: skip


def test_training_curves_name_every_loss_term():
    losses, scores, _ = plots.training_curves(HISTORY, 2, 0.01).axes
    named = {term.label for term in TERMS} | {"discriminator", "language model trains"}
    assert named <= set(words(losses.get_legend().get_texts()))
    assert "chosen epoch (2)" in words(scores.get_legend().get_texts())
    older = plots.training_curves(HISTORY.drop(columns="discrepancy"), 2, 0.01).axes[0]  # of before there was one
    assert "discrepancy of the modalities" not in words(older.get_legend().get_texts())


def test_live_curves_are_one_output_that_is_renewed(monkeypatch):
    handle = Mock()
    monkeypatch.setattr(notebook, "display", lambda *_, **__: handle)
    draw = notebook.live_curves(chance=0.01)
    draw(HISTORY.head(1).to_dict("records"))
    figure = draw(HISTORY, 2)
    _, ((data,), options) = handle.update.call_args_list
    assert data["text/plain"].startswith("Rank-1 on validation in percent, by epoch: 1 = 10, 2 = 20. ")
    assert options["metadata"]["image/png"]["alt"] == data["text/plain"]
    assert not plt.fignum_exists(figure.number)  # else a notebook would show it a second time


def test_the_same_thing_has_the_same_colour_in_every_figure_and_markers_tell_lines_apart_in_grey():
    first, second = list(plots._styles(["a", "regularised game", "b"])), list(plots._styles(["regularised game", "a"]))
    assert first[1][1] == second[0][1] == next(plots._styles(["regularised game (of quick)"]))[1]
    assert len({colour for _, colour, _ in first}) == 3
    many = list(plots._styles(["no adversary", *range(11)]))  # more than the palette has
    assert len({marker for *_, marker in many}) == 12
    assert {colour for _, colour, _ in many} == set(plots.PALETTE)
    assert many[0][1] == next(plots._styles(["with the frozen language model (InfoNCE)"]))[1]  # the same training


@pytest.mark.parametrize("theme", ["white", "#111111"])  # JupyterLab's two
def test_text_and_colours_stand_out_on_both_themes(theme):
    """WCAG 2.1 asks for 3 to 1 for large text; 2 to 1 is what the palette's palest and darkest colours have."""

    def luminance(colour):  # relative, of sRGB
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    def contrast(colour):
        low, high = sorted((luminance(colour), luminance(theme)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(plots.TEXT) > 4
    used = {plots.MAIN, plots.RIGHT, plots.WRONG, *(plots.PALETTE[i] for i in plots.KNOWN.values())}
    assert min(map(contrast, used)) > 2


def test_a_figure_in_a_notebook_is_small_transparent_and_told_in_words():
    pictures = [Image.effect_noise((100, 200), 90).convert("RGB") for _ in range(6)]
    scores, right = ["0.9\n≠ bag", 0.5, 0.4, 0.3, 0.2], [True, *[False] * 4]
    figure = plots.rankings(["a man"] * 4, [pictures[:5]] * 4, [scores] * 4, [right] * 4, None, pictures[:4],
                            titles=["Success"] * 4)  # fmt: skip
    data, metadata = plots.thumbnail(figure)
    drawn = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert drawn.convert("RGBA").getpixel((0, 0))[3] == 0
    assert metadata["image/png"]["width"] == drawn.width
    assert len(data["image/png"]) < 400_000  # of noise, which compresses badly
    assert all(text in data["text/plain"] for text in ("Success", "a man", "1 ✓", "0.9 ≠ bag"))


def test_saved_figures_have_black_text_in_the_pdf_and_their_numbers_beside(tmp_path):
    figure = plots.shares(pd.DataFrame({"share": [0.5], "kind": ["x"]}), "share", "kind", "share")
    plots.save(figure, tmp_path, "x", pd.DataFrame({"a": [1]}))
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.pdf", "x.csv"}
    assert all(text.get_color() == "black" for text in figure.findobj(Text) if text.get_text())


@pytest.mark.parametrize(("chance", "told"), [(0.04, True), (np.nan, False)])
def test_the_figure_of_the_table_speaks_of_chance_where_it_is_drawn(chance, told):
    measures = {f"{d}_to_{e}_rank_1{end}": [0.5] for d, e in (("text", "image"), ("image", "text"))
                for end in ("", "_low", "_high")}  # fmt: skip
    figure = plots.variants(pd.DataFrame({"variant": ["a=1, " * 40], "seeds": ["0"], "chance": [chance], **measures}))
    drawn = any(line.get_linestyle() == ":" for line in figure.axes[0].lines)
    assert ("dotted: chance" in figure.get_supxlabel(), drawn) == (told, told)
    assert figure.axes[0].get_yticklabels()[0].get_text().count("\n") == 1  # a longer name would cover its neighbours
