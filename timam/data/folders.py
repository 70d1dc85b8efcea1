"""Parsers of layouts without a table: text files beside pictures, tar archives, COCO's and Flickr30k's own files."""

from __future__ import annotations

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from timam.config import LONGEST_TEXT
from timam.data.parsing import Parsed, objects, read_first_json, read_text, value
from timam.data.records import path_guard
from timam.data.rows import add_rows, split_of_name
from timam.data.tables import choose_columns, row_of
from timam.files import files_below

_LARGEST = 4 * LONGEST_TEXT  # bytes of a text member


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def parse_sidecar(root: Path) -> Parsed:
    """PICTURE.txt beside each picture, in ROOT and in folders below it; a caption a line."""
    from timam.images import SUFFIXES  # here: it imports torch

    parsed, rows, bare, refuse = Parsed("*.txt"), [], [], path_guard(root, root)
    for picture in files_below(root, SUFFIXES):
        image, text = picture.relative_to(root), picture.with_suffix(".txt")
        source = text.relative_to(root).as_posix()
        if not text.exists():
            bare.append(image.as_posix())
            continue
        try:
            if reason := refuse(source):
                raise OSError(reason)
            captions = _lines(read_text(text))
        except (OSError, ValueError) as error:
            parsed.problems.append(f"{source}: not readable ({error})")
            continue
        split = split_of_name(image.with_name("-"))  # by the folder alone
        rows.append((source, {"image_path": image.as_posix(), "captions": captions, "named_split": split}))
    if bare:
        shown = ", ".join(bare[:5])
        parsed.warnings.append(f"{len(bare):,} pictures without a text file are not used: {shown}")
    if not rows and not parsed.problems:
        parsed.problems.append(f"{root}: no picture with a text file of its name")
    parsed.unreadable = not rows
    add_rows(rows, parsed)
    return parsed


def parse_webdataset(root: Path, columns: Mapping[str, str] | None = None) -> Parsed:
    """Uncompressed .tar shards of KEY.jpg with KEY.txt (a caption a line) or KEY.json (an object, as a row of a table).

    Pictures are named SHARD#MEMBER and read from the shard (`timam.embedded`).
    """
    shards = files_below(root, (".tar",))
    parsed, rows = Parsed(shards[0].name if len(shards) == 1 else f"{len(shards)} shards"), []
    if not shards:
        packed = [f.name for f in files_below(root, (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2"))]
        hint = f"; {packed[0]} is compressed: decompress it" if packed else ""
        parsed.problems.append(f"{root}: no shard *.tar{hint}")
    for shard in shards:
        name = shard.relative_to(root).as_posix()
        try:
            if not shard.is_file():
                raise OSError("not a regular file")
            for source, row in _samples(shard, name, columns or {}, parsed):
                rows.append((source, row | {"named_split": split_of_name(PurePosixPath(name))}))
        except (OSError, ValueError, tarfile.TarError) as error:
            parsed.problems.append(f"{shard}: not readable as a tar archive ({error})")
    parsed.unreadable = bool(parsed.problems) and not rows
    add_rows(rows, parsed)
    return parsed


def _samples(
    shard: Path, name: str, columns: Mapping[str, str], parsed: Parsed
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of a shard: members that share their name up to the first dot. Raises OSError and TarError."""
    from timam.images import SUFFIXES

    pictures: dict[str, str] = {}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            folder, _, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            key, extension = f"{folder}/{stem}" if folder else stem, f".{extension.lower()}"
            if not member.isreg() or member.issparse():
                continue
            if extension in SUFFIXES:
                pictures[key] = member.name
            elif extension in (".txt", ".json") and member.size > _LARGEST:
                parsed.problems.append(f"{name} {member.name}: {member.size:,} bytes; expected at most {_LARGEST:,}")
            elif extension in (".txt", ".json") and (stream := archive.extractfile(member)):
                texts[key][extension] = stream.read().decode("utf-8-sig", errors="replace")
    for key, picture in pictures.items():
        source, found = f"{name} {picture}", texts.get(key, {})
        row: dict[str, Any] = {}
        if ".json" in found:
            try:
                content = json.loads(found[".json"])
                if not isinstance(content, dict):
                    raise ValueError(f"expected an object, found {type(content).__name__}")
                header = ["image_path", *(["caption"] if ".txt" in found else []), *content]
                noted = parsed if not parsed.notes else Parsed("")  # of the first sample only
                row = row_of(content, choose_columns(list(dict.fromkeys(header)), columns, noted))
            except (ValueError, RecursionError) as error:
                if ".txt" not in found:
                    parsed.problems.append(f"{name} {key}.json: {error}")
                    continue
        if ".txt" in found:
            row["captions"] = _lines(found[".txt"])
        yield source, {"captions": [], **row, "image_path": f"{name}#{picture}"}


def parse_coco_captions(root: Path) -> Parsed:
    """COCO's own captions_train2014.json and captions_val2014.json, in ROOT or ROOT/annotations."""
    files = sorted(
        f.relative_to(root) for f in (*root.glob("captions_*.json"), *root.glob("annotations/captions_*.json"))
    )
    parsed, rows = Parsed(files[0].as_posix() if len(files) == 1 else f"{len(files)} caption files"), []
    if not files:
        parsed.problems.append(f"{root}: no captions_*.json, also not in annotations/")
    for file in files:
        content, read = read_first_json(root, (file.as_posix(),))
        read.file = file.as_posix()
        names: dict[int, Any] = {}
        for _, source, image in objects(value(content, "images", list, read.problems, read.file) or [], read, "image"):
            key = value(image, "id", int, read.problems, source)
            names[key] = value(image, "file_name", str, read.problems, source)
        annotations = value(content, "annotations", list, read.problems, read.file) or []
        for _, source, entry in objects(annotations, read, "annotation"):
            image_id = value(entry, "image_id", int, read.problems, source)
            if image_id is not None and image_id not in names:
                read.problems.append(f"{source}: image_id {image_id} is not among the images")
            elif image_id is not None and names[image_id]:
                row = {"captions": [entry.get("caption")], "named_split": split_of_name(file)}
                rows.append((source, row | {"image_path": _coco_path(root, file, names[image_id])}))
        parsed.problems += read.problems
    parsed.unreadable = bool(parsed.problems) and not rows
    add_rows(rows, parsed)
    return parsed


def _coco_path(root: Path, file: Path, name: str) -> str:
    """val2014/NAME for captions_val2014.json, if ROOT or ROOT/images has such a folder; else NAME."""
    folder = file.stem.partition("_")[2]
    return f"{folder}/{name}" if any((root / base / folder).is_dir() for base in ("", "images")) else name


def parse_flickr_token(root: Path, file: str = "results_20130124.token") -> Parsed:
    """Flickr30k's own caption file, which has no splits: lines of PICTURE.jpg#NUMBER, a tab and a sentence."""
    parsed, rows = Parsed(file), []
    try:
        lines = read_text(root / file).split("\n")
    except (OSError, ValueError) as error:
        reason = "no such annotation file" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
        parsed.problems.append(f"{root / file}: {reason}")
        lines, parsed.unreadable = [], True
    for i, line in enumerate(lines, 1):
        picture, tab, caption = line.strip().partition("\t")
        name, _, number = picture.rpartition("#")
        if tab and name and re.fullmatch(r"\d+", number):
            rows.append((f"{file} line {i}", {"image_path": name, "captions": [caption]}))
        elif line.strip():
            parsed.problems.append(
                f"{file} line {i}: {line.strip()[:80]!r}: expected PICTURE.jpg#NUMBER, a tab, a sentence"
            )
    add_rows(rows, parsed)
    return parsed
