"""What the notebooks share: folders, configs, sentences from comparisons, ranked answers, tables of results."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import TINY_SETTINGS, write_person_search

from timam.config import PRESETS, override
from timam.data import Dataset, Record, load_dataset
from timam.evaluation import Embeddings
from timam.images import read_image
from timam.run import Run
from timam.training import fit
from timam_lab import notebook, panel, results, variations
from timam_lab.evaluating import evaluate_model
from timam_lab.failures import PedestrianTruth
from timam_lab.pedestrians import PedestrianSpec, render_pedestrians


def test_an_empty_folder_means_the_clone_whatever_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    root, runs, figures = notebook.folders("~/photos", "", "out", "studies")
    assert root == tmp_path / "photos"  # as on the command line
    assert runs.resolve() == notebook.REPOSITORY / "runs/studies"
    assert figures == notebook.Path("out/figures")
    assert str(runs) in capsys.readouterr().out
    monkeypatch.setattr(notebook, "REPOSITORY", tmp_path)  # a clone
    for path in ("notebooks", "runs/mine"):
        (tmp_path / path).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    read, written = (notebook.folder("runs/mine", "", written=written) for written in (False, True))
    assert (read, written) == (notebook.Path("../runs/mine"), notebook.Path("runs/mine"))


def test_configure_takes_overrides_as_the_command_line_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    config = notebook.configure("smoke", "csv", tmp_path, "seed=3", "epochs=2 max_steps=1")
    assert (config.data.root, config.train.seed, config.train.epochs) == (str(tmp_path), 3, 2)
    lines, changed, _ = notebook.settings_table(config).data.split("<details>")
    assert f"csv in {tmp_path.name}<" in lines  # without the folders of this machine
    assert ("train.max_steps" in changed, "lstm_hidden" in changed) == (True, False)  # which is as in the preset


def test_a_run_of_ones_own_comes_with_its_config(tmp_path):
    asked, own = (override(PRESETS["smoke"], [f"train.seed={seed}"]) for seed in (0, 7))
    run, config = notebook.run_of("", tmp_path, asked)
    assert (run.folder, config) == (Run.named(tmp_path, asked).folder, asked)
    Run(tmp_path / "mine").create(own)
    run, config = notebook.run_of(str(tmp_path / "mine"), tmp_path, asked)
    assert (run.folder, config) == (tmp_path / "mine", own)
    with pytest.raises(FileNotFoundError, match="config"):
        notebook.run_of(str(tmp_path), tmp_path, asked)


def test_choose_and_numbers_name_what_is_wrong():
    assert notebook.choose(" b; a", {"a": 1, "b": 2, "c": 3}) == {"b": 2, "a": 1}
    assert notebook.choose("", {"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="no variant d; there are a"):
        notebook.choose("a; d", {"a": 1})
    assert notebook.numbers("levels", 1, float) == [1.0]
    assert notebook.numbers("levels", "8 16", int) == [8, 16]
    with pytest.raises(ValueError, match=r"parameter levels = '1,2': expected ints"):
        notebook.numbers("levels", "1,2", int)


def test_a_difference_is_told_as_shown_not_shown_or_of_one_seed():
    shown = {"variant": "a", "baseline": "b", "difference": 0.2, "p_holm": 0.01, "detectable": 0.04, "seeds_low": 0.1,
             "seeds_high": 0.3, "identities_low": 0.15, "identities_high": 0.25}  # fmt: skip
    no_seeds = {"seeds_low": np.nan, "seeds_high": np.nan}
    changes = [{}, {"p_holm": 0.06}, {"seeds_low": -0.3}, {"identities_low": -0.01}, {"difference": -0.2}, no_seeds]
    rows = pd.DataFrame([shown | change for change in changes])
    gain, *unclear, loss, one_seed = notebook.in_words(rows)
    over_seeds, over_identities = "+10.0 to +30.0 over seeds", "+15.0 to +25.0 over identities"
    assert gain == f"**a** against *b*: +20.0 points ({over_seeds}, {over_identities}, corrected p = 0.010). A gain."
    told = "No difference is shown: 4.0 points could have been detected, up to 30.0 are left possible."
    assert [sentence[-len(told) :] for sentence in unclear] == [told] * 3
    assert loss.endswith("A loss.")
    assert one_seed.endswith("One seed, so nothing is shown.")


def test_tables_are_in_percent_and_variants_have_mean_and_half_interval():
    """0.1 and 0.3: mean 0.2, standard error 0.1, t(0.975, 1) = 12.706."""
    frame = pd.DataFrame({"variant": ["x", "x", "y"], "seconds": [60.0, 120.0, 30.0], "rank": [0.1, 0.3, 0.5]})
    table = notebook.variant_table(frame, ["rank"])
    assert table["minutes"].tolist() == [1.5, 0.5]
    bounds = pd.DataFrame({"variant": ["chance"], "rank": [0.01]})
    shown = notebook.percents(table, {"rank": "rank-1"}, bounds=bounds).data.set_index("variant")["rank-1"]
    assert shown.to_dict() == {"x": "20.0 ± 127.1", "y": "50.0", "chance": "1.0"}
    plain = notebook.titled(pd.DataFrame({"text_to_image_mAP": [0.2], "probe_accuracy": 0.9, "centroid_distance": 0.3}))
    assert plain.to_numpy().tolist() == [[20.0, 90.0, 0.3]]  # a distance is no fraction


def test_one_of_each_kind_of_answer():
    ranks = np.array([3.0, 1.0, 40.0, np.nan])
    assert notebook.one_of_each(ranks, np.random.default_rng(0)) == [1, 0, 2]
    assert notebook.one_of_each(ranks[:1], np.random.default_rng(0)) == [0]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    root = tmp_path_factory.mktemp("people") / "people"
    spec = PedestrianSpec(4, 1, 2, images_per_identity=1, height=64, width=32)
    render_pedestrians(root, spec, workers=1, progress=False)
    return root


def test_ranked_figure_says_where_the_right_picture_is_and_ties_count_against_it(people, monkeypatch):
    split = load_dataset("pedestrians", people).split("test")
    n, m = len(split.image_paths), len(split.captions)
    labels = torch.tensor(split.image_labels), torch.tensor(split.caption_labels)
    embeddings = Embeddings(torch.ones(n, 2), torch.ones(m, 2), *labels)  # all pictures alike: the right one is last
    figure = notebook.ranked(split, embeddings, [0])
    titles = [" ".join(axis.get_title(loc).split()) for axis in figure.axes for loc in ("left", "center")]
    wrong = int((split.image_labels != split.caption_labels[0]).sum())
    assert f"{'Near miss' if wrong < 5 else 'Failure'}: right picture at rank {1 + wrong}" in titles
    assert "right picture" in titles
    # And the attributes in which picture and sentence disagree: those of the third caption and the first picture.
    against = ["upper_second", "hair_colour", "bag", "scarf"]
    monkeypatch.setattr(PedestrianTruth, "contradicted", lambda _, *pair: against if pair == (2, 0) else [])
    embeddings = Embeddings(torch.eye(n), torch.eye(n)[[0] * m], *labels)
    below = notebook.ranked(split, embeddings, [2], k=1).axes[1].get_xlabel()
    assert " ".join(below.split()) == "1.00 ≠ second colour of the top, hair colour, bag and 1 more"


def test_variations_keep_the_people(people):
    assert variations.with_noise(people, 1) == people
    clean = variations.with_noise(people, 0)
    images = json.loads((clean / "attributes.json").read_text())["images"]
    assert not any(caption["wrong"] for image in images for caption in image["captions"])
    records = json.loads((people / "reid_raw.json").read_text())
    written = [image["captions"] for image in records if image["split"] == "test"]
    assert variations.rewritten(people) == written
    other = variations.rewritten(people, unseen_words=1.0)
    assert [len(texts) for texts in other] == [len(texts) for texts in written]
    assert other != written
    file = variations.with_fewer(people, 2) / "reid_raw.json"
    before = file.stat().st_mtime_ns
    fewer = load_dataset("pedestrians", variations.with_fewer(people, 2))
    assert file.stat().st_mtime_ns == before  # another process may be reading it
    assert len(fewer.split("train").identities) == 2
    assert len(fewer.split("test").identities) == 2


def test_search_panel_answers_requests_of_the_browser(people):
    paths = sorted((people / "imgs").rglob("*.*"))[:2]
    first, second = (path.read_bytes() for path in paths)
    asked = []

    def search(request):
        asked.append(request if isinstance(request, str) else request.read_bytes())
        return [(path, 0.5) for path in paths]

    shown = panel.SearchPanel(search, "a man")
    assert (asked, shown.status, shown.busy) == (["a man"], "found for: a man", False)
    assert [(a["name"], a["score"]) for a in shown.answers] == [(path.name, 0.5) for path in paths]
    for request, buffers, wanted, status in (
        ({"like": 1}, [], second, f"pictures like {paths[1].name}"),
        ({"sentence": "a man"}, [], "a man", "found for: a man"),  # the same sentence again
        ({"picture": "mine.png"}, [memoryview(first)], first, "pictures like mine.png"),
    ):
        shown._handle_custom_msg(request, buffers)
        assert (asked[-1], shown.status) == (wanted, status)
    shown._search = read_image
    shown._handle_custom_msg({"picture": "broken.png"}, [memoryview(b"no picture")])
    assert shown.status.startswith("The search failed. ImageError: broken.png: not a readable picture")
    assert (shown.answers, shown.busy) == ([], False)


def test_published_results_and_ours_have_the_same_columns():
    frame = pd.DataFrame({"dataset": "cub", "preset": "paper", "changed": "nothing", "data": "f0", "root": "birds",
                          "seed": [0, 1, 1], "run": ["a", "b", "copy of b"],
                          **dict.fromkeys(results.CLASS_LEVEL, 0.5)})  # fmt: skip
    ours = results.ours("cub", frame)
    assert ours.loc[0, ["method", "seeds", "data", "runs"]].tolist() == ["TIMAM, paper", 2, "birds (f0)", "a b"]
    assert ours.loc[0, results.CLASS_LEVEL[0]] == "50.0 (50.0 to 50.0)"
    theirs = results.published("cub").set_index("method")
    assert theirs.loc["CMPM+CMPC", [results.CLASS_LEVEL[0], "source"]].tolist() == [64.3, "published"]
    assert not pd.read_csv(results.PUBLISHED).duplicated(["dataset", "method", "metric"]).any()


@pytest.mark.slow
def test_transfer_tests_each_model_on_each_data_set(people, tmp_path, monkeypatch):
    monkeypatch.setenv("TIMAM_CACHE", str(tmp_path / "cache"))
    other, third = write_person_search(tmp_path / "other"), write_person_search(tmp_path / "third", test=5)
    common = ["epochs=1", "max_steps=1", *TINY_SETTINGS]
    trained = {"a": ("cuhk-pedes", other), "b": ("pedestrians", people), "c": ("pedestrians", people),
               "d": ("cuhk-pedes", third)}  # fmt: skip
    for name, (data, root) in trained.items():
        settings = [*common, f"dataset={data}", f"root={root}", f"seed={int(name == 'c')}"]
        fit(override(PRESETS["smoke"], settings), tmp_path / "runs" / name, progress=False)
    frame = results.finished_runs(tmp_path / "runs")
    matrix = results.transfer(frame, tmp_path / "runs")
    prints = {root.name: load_dataset("cuhk-pedes", root).fingerprint()[:8] for root in (other, third)}
    titles = [f"cuhk-pedes (other, {prints['other']})", "pedestrians", f"cuhk-pedes (third, {prints['third']})"]
    assert (list(matrix.index), list(matrix.columns)) == (["a", "b", "d"], titles)
    for run, data in zip(matrix.index, titles, strict=True):  # on its own data: what the run says itself
        tested = frame.set_index("run").loc[run, "text_to_image rank_1"]
        assert matrix.loc[run, data] == pytest.approx(100 * tested)
    crossed = evaluate_model(Run(tmp_path / "runs/a").best_model(), load_dataset("pedestrians", people))
    assert matrix.loc["a", "pedestrians"] == pytest.approx(100 * crossed["text_to_image"]["rank_1"])
    shutil.rmtree(other)
    shutil.rmtree(tmp_path / "runs/b/checkpoints")
    matrix = results.transfer(frame, tmp_path / "runs")
    assert (list(matrix.index), list(matrix.columns)) == (["a", "d"], ["pedestrians", "cuhk-pedes"])


def test_rendered_people_of_training_are_not_tested_on(tmp_path):
    """A larger set of the same seed trains on people whom a smaller one tests."""
    sets = {}
    for name, splits in (("small", ["train", "train", "test"]), ("large", ["train", "train", "train", "test"])):
        records = tuple(Record(f"{i}.png", ("a",), i, split, "") for i, split in enumerate(splits))
        sets[name] = Dataset(name, "identity", tmp_path / name / "imgs", records)
        (tmp_path / name).mkdir()
        (tmp_path / name / "attributes.json").write_text(json.dumps({"spec": {"seed": 0}}))
    assert results.shares_people(sets["large"], sets["small"])
    assert not results.shares_people(sets["small"], sets["large"])
    (tmp_path / "small/attributes.json").write_text(json.dumps({"spec": {"seed": 1}}))
    assert not results.shares_people(sets["large"], sets["small"])
