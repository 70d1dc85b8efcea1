"""timam_lab.speed: the usual way of computing metrics gives the same values, and every report is written."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from timam.metrics import two_way_metrics
from timam_lab.speed import growth, search
from timam_lab.speed.metrics import embeddings, usual_two_way
from timam_lab.speed.timing import medians, turns


@pytest.mark.parametrize("loops", [True, False])
def test_the_usual_way_agrees_with_ours(loops):
    both = embeddings(40, 90, 12, 16)
    ours, usual = two_way_metrics(*both), usual_two_way(*both, loops=loops)
    for direction, values in usual.items():
        for name, value in values.items():
            assert ours[direction][name] == pytest.approx(value, abs=1e-6)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order = []
    taken = turns(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, lambda: order.append("-"))
    assert "".join(order) == "-a-b" * 3
    assert taken.shape == (2, 4)
    assert set(medians(1, {"a": lambda: None}, clock="processor")) == {"a"}


def test_peak_memory_counts_what_is_held_at_one_time():
    def work():
        for _ in range(5):
            torch.empty(1000, 256)  # 1,024,000 bytes each, freed at once
        return torch.empty(1000, 256), torch.empty(1000, 256)

    assert 2 * 1_024_000 <= growth.peak_memory(work, torch.device("cpu")) < 3 * 1_024_000


def test_a_report_names_its_command_and_commit(tmp_path: Path):
    output = tmp_path / "reports" / "search.md"
    arguments = ["--output", str(output), "--count", "4000", "--width", "8", "--rounds", "1"]
    result = CliRunner().invoke(search.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    text = output.read_text()
    assert text.startswith("# Search\n\n`python -m timam_lab.speed.search")
    assert "at commit" in text
    recall = re.search(r"^\| recall@10 .* \| ([01].\d+) \|$", text, re.MULTILINE)
    assert 0.5 < float(recall[1]) <= 1
