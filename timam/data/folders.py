"""Parsers of layouts without a table: text files beside pictures, tar archives, COCO's and Flickr30k's own files."""

import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from timam.config import LONGEST_TEXT
from timam.data.parsing import Parsed, add_rows, expect, read_lines, split_of_name, value
from timam.data.records import path_guard
from timam.data.tables import choose_columns, parse_imagefolder, parse_parquet, row_of
from timam.embedded import read_member, tar_members
from timam.files import files_below, parse_json, read_json

_LARGEST = 4 * LONGEST_TEXT  # bytes of a text member


def parse_hub(root: Path, columns: Mapping[str, str] | None = None) -> Parsed:
    """A downloaded data set of the Hugging Face hub: tar shards, pictures with a metadata file, or Parquet files."""
    found = files_below(root, (".tar", ".csv", ".jsonl", ".parquet")) if root.is_dir() else []
    if any(file.suffix.lower() == ".tar" for file in found):
        return parse_webdataset(root, columns)
    return (parse_imagefolder if any(file.stem == "metadata" for file in found) else parse_parquet)(root, columns)


def parse_sidecar(root: Path) -> Parsed:
    """PICTURE.txt beside each picture, in ROOT and in folders below it; a caption a line."""
    from timam.images import SUFFIXES, unread_kinds  # here: it imports torch

    parsed, rows, bare, refuse = Parsed("*.txt"), [], [], path_guard(root, root)
    for picture in files_below(root, SUFFIXES):
        image, text = picture.relative_to(root), picture.with_suffix(".txt")
        if not text.exists():
            bare.append(image.as_posix())
            continue
        with parsed.naming(source := text.relative_to(root).as_posix()):
            if reason := refuse(source):
                raise ValueError(reason)
            captions = [line for line in read_lines(text) if line]
            split = split_of_name(image.with_name("-"))  # by the folder alone
            rows.append((source, {"image_path": image.as_posix(), "captions": captions, "named_split": split}))
    if bare:
        parsed.warnings.append(f"{len(bare):,} pictures without a text file are not used: {', '.join(bare[:5])}")
    parsed.warnings += unread_kinds(root)
    if not rows and not parsed.problems:
        parsed.problems.append(f"{root}: no picture with a text file of its name")
    return add_rows(rows, parsed)


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
        split = split_of_name(PurePosixPath(name))
        with parsed.naming(shard):
            rows += [(s, row | {"named_split": split}) for s, row in _samples(shard, name, columns or {}, parsed)]
    return add_rows(rows, parsed)


def _samples(shard: Path, name: str, columns: Mapping[str, str], parsed: Parsed) -> Iterator[tuple[str, dict]]:
    """The samples of a shard: members that share their name up to the first dot. Raises OSError and ValueError."""
    from timam.images import SUFFIXES

    if not shard.is_file():
        raise OSError("not a regular file")
    try:
        members = tar_members(shard, shard.stat().st_mtime_ns)
    except tarfile.TarError as error:
        raise ValueError(f"not readable as a tar archive ({error})") from error
    pictures: dict[str, str] = {}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for member, (offset, size) in members.items():
        folder, slash, file = member.rpartition("/")
        stem, dot, extension = file.lower().partition(".")  # a hidden one, such as macOS' ._1.jpg, has no stem
        key = member[: len(folder + slash + stem)]
        if stem and dot + extension in SUFFIXES:
            pictures[key] = member
        elif stem and extension in ("txt", "json"):
            with parsed.naming(f"{name} {member}"):
                if size > _LARGEST:
                    raise ValueError(f"{size:,} bytes; expected at most {_LARGEST:,}")
                texts[key][extension] = read_member(shard, offset, size).decode("utf-8-sig", errors="replace")
    for key, picture in pictures.items():
        with parsed.naming(f"{name} {key}.json"):
            yield f"{name} {picture}", {**_row(texts[key], columns, parsed), "image_path": f"{name}#{picture}"}


def _row(texts: dict[str, str], columns: Mapping[str, str], parsed: Parsed) -> dict[str, Any]:
    """The row in a sample's .json, with the captions of a .txt if there is one."""
    row: dict[str, Any] = {"captions": []}
    if "json" in texts:
        content = expect(parse_json(texts["json"]), dict)
        header = ["image_path", *(["caption"] if "txt" in texts else []), *content]
        noted = parsed if not parsed.notes else Parsed("")  # of the first sample only
        row = row_of(content, choose_columns(list(dict.fromkeys(header)), columns, noted))
    if "txt" in texts:
        row["captions"] = [line.strip() for line in texts["txt"].split("\n") if line.strip()]
    return row


def parse_coco_captions(root: Path) -> Parsed:
    """COCO's own captions_train2014.json and captions_val2014.json, in ROOT or ROOT/annotations."""
    files = [f.relative_to(root) for g in ("", "annotations/") for f in sorted(root.glob(f"{g}captions_*.json"))]
    parsed, rows = Parsed(files[0].as_posix() if len(files) == 1 else f"{len(files)} caption files"), []
    if not files:
        parsed.problems.append(f"{root}: no captions_*.json, also not in annotations/")
    for file in files:
        images, annotations = [], []
        with parsed.naming(root / file):
            content = read_json(root / file)
            images, annotations = value(content, "images", list), value(content, "annotations", list)
        names: dict[int, str] = {}
        for i, image in enumerate(images):
            with parsed.naming(f"{file} image {i}"):
                names[value(image, "id", int)] = value(image, "file_name", str)
        # the pictures of captions_val2014.json lie in val2014/, if ROOT or ROOT/images has such a folder
        year = file.stem.partition("_")[2]
        folder = f"{year}/" if any((root / base / year).is_dir() for base in ("", "images")) else ""
        for i, entry in enumerate(annotations):
            with parsed.naming(source := f"{file} annotation {i}"):
                if (image_id := value(entry, "image_id", int)) not in names:
                    raise ValueError(f"image_id {image_id} is not among the images")
                row = {"captions": [value(entry, "caption", str)], "named_split": split_of_name(file)}
                rows.append((source, row | {"image_path": folder + names[image_id]}))
    return add_rows(rows, parsed)


def parse_flickr_token(root: Path, file: str = "results_20130124.token") -> Parsed:
    """Flickr30k's own caption file, which has no splits: lines of PICTURE.jpg#NUMBER, a tab and a sentence."""
    parsed, rows, lines = Parsed(file), [], []
    with parsed.naming(root / file):
        lines = read_lines(root / file)
    for i, line in enumerate(lines, 1):
        with parsed.naming(source := f"{file} line {i}"):
            picture, tab, caption = line.partition("\t")
            name, _, number = picture.rpartition("#")
            if tab and name and re.fullmatch(r"\d+", number):
                rows.append((source, {"image_path": name, "captions": [caption]}))
            elif line:
                raise ValueError(f"{line[:80]!r}: expected PICTURE.jpg#NUMBER, a tab, a sentence")
    return add_rows(rows, parsed)
