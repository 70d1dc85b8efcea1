"""Measures the items of a part. Each is kept as soon as it is there: OUTPUT/PART.json, and PART.md to read."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from timam.files import write_text
from timam.interruption import Interrupted, interruptible
from timam.provenance import provenance
from timam_lab.speed.gpu import Item, Lab, Part, Row
from timam_lab.speed.timing import DEVICE, document


class Record:
    """The results of a part: {"made": provenance, "items": {name: {"table", "rows", "error", "seconds"}}}.

    Results of another commit or device are not taken over.
    """

    def __init__(self, lab: Lab, name: str, part: Part) -> None:
        self.file, self.title = lab.output / f"{name}.json", part.title
        self.text = "A rehearsal at small sizes: its numbers mean nothing." if lab.rehearsal else part.text
        cuda = {"cuda": torch.version.cuda} if DEVICE.type == "cuda" else {}
        self.made = provenance(DEVICE) | cuda
        self.items: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            known = json.loads(self.file.read_text(encoding="utf-8"))
            if all(known["made"].get(key) == self.made[key] for key in ("commit", "device", "torch")):
                self.items = known["items"]

    def measure(self, item: Item) -> None:
        """Does the work, unless it was done without an error before. Raises Interrupted when the time is over."""
        key = f"{item.table}: {item.name}"
        if self.items.get(key, {"error": "new"})["error"] is None:
            return
        rows: list[Row] = []
        # Written now, for the case that this process is killed.
        entry = {"table": item.table, "rows": rows, "error": "stopped: its time was over", "seconds": 0.0}
        self.items[key] = entry
        self.write()
        started = time.monotonic()
        try:
            for row in item.work():
                rows.append(row)  # not extend: those before an error are kept
            entry["error"] = None
        except Exception as error:
            traceback.print_exc()
            entry["error"] = f"{type(error).__name__}: {error}"
        finally:
            entry["seconds"] = round(time.monotonic() - started, 1)
            self.write()

    def write(self) -> None:
        content = {"made": self.made, "items": self.items}
        write_text(self.file, json.dumps(content, indent=1, default=float) + "\n")
        versions = ", ".join(f"{k} {v}" for k, v in self.made.items() if k not in ("device", "commit", "threads"))
        made = document("gpu", self.title, f"{versions}. {self.text}", *self._tables())
        write_text(self.file.with_suffix(".md"), made)

    def _tables(self) -> Iterator[list[dict[str, str]] | str]:
        for title in dict.fromkeys(entry["table"] for entry in self.items.values()):
            entries = {key: entry for key, entry in self.items.items() if entry["table"] == title}
            rows = [row for entry in entries.values() for row in entry["rows"]]
            columns = list(dict.fromkeys(column for row in rows for column in row))
            yield f"## {title}"
            if rows:
                yield [{column: _text(row.get(column, "")) for column in columns} for row in rows]
            if problems := [f"- {key}: {e['error']}" for key, e in entries.items() if e["error"]]:
                yield "Not measured:\n\n" + "\n".join(" ".join(line.split())[:600] for line in problems)


def _text(value: Any) -> str:
    if isinstance(value, bool | str | None):
        return str(value).replace("|", "\\|").replace("\n", " ")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def run_part(name: str, part: Part, lab: Lab) -> None:
    """Measures the items of a part in order. SIGTERM ends it; what was measured by then is written."""
    record = Record(lab, name, part)
    record.items.pop("Preparation: between two items", None)
    with interruptible():
        try:
            for item in part.items(lab):
                record.measure(item)
                gc.collect()
                if DEVICE.type == "cuda":
                    torch.cuda.empty_cache()
        except Interrupted:
            print(f"{name}: its time is over", flush=True)
        except Exception as error:
            failed = error
            record.measure(Item("Preparation", "between two items", lambda: _again(failed)))


def _again(error: Exception) -> Iterable[Row]:
    raise error
