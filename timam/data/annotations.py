"""Parsers of the benchmarks' annotation files: person search, Karpathy's splits, Reed's captions of classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from timam.data.parsing import Parsed, check_captions, check_split, objects, read_first_json, read_text, value
from timam.data.records import SPLITS, Record, path_guard, show

# -- person search ----------------------------------------------------------------------------------------------


def parse_person_search(root: Path, files: tuple[str, ...], path_key: str = "file_path") -> Parsed:
    """CUHK-PEDES, ICFG-PEDES, RSTPReid: a list of {split, captions, file_path or img_path, id}.

    caption_all.json of CUHK-PEDES has no splits; they are read from the files beside it (`_split_files`).
    """
    content, parsed = read_first_json(root, files)
    problems = parsed.problems
    if not parsed.unreadable and not isinstance(content, list):
        problems.append(f"{parsed.file}: expected a list of records, found {type(content).__name__}")
    if problems:
        return parsed
    splits = _split_files(root, parsed) if parsed.file == "caption_all.json" else None
    for _, source, entry in objects(content, parsed, "record"):
        found = len(problems)
        captions = check_captions(value(entry, "captions", list, problems, source), problems, source)
        path = value(entry, path_key, str, problems, source)
        identity = value(entry, "id", int, problems, source)
        if splits is None or "split" in entry:
            split = check_split(value(entry, "split", str, problems, source), problems, source)
        elif not splits:
            continue  # _split_files has added one problem for all records
        else:
            split = splits.get(path) or splits.get(identity, "")
            if not split and len(problems) == found:
                problems.append(f"{source}: neither {show.repr(path)} nor id {identity} stands in a split file")
        if len(problems) == found:
            parsed.records.append(Record(path, captions, identity, split, source))
    return parsed


def parse_one_person_search(root: Path) -> Parsed:
    """As `parse_person_search`, for a data set that does not name its annotation file: the one .json in ROOT."""
    files = tuple(sorted(f.name for f in root.glob("*.json")))
    if len(files) > 1:
        problem = f"{root}: expected one annotation file *.json; found {', '.join(files)}"
        return Parsed(files[0], problems=[problem], unreadable=True)
    return parse_person_search(root, files or ("*.json",))


def _split_files(root: Path, parsed: Parsed) -> dict[Any, str]:
    """{picture path or identity: split} from the files beside caption_all.json, in the forms of public repositories.

    Either split.json, {"train": [...], "val": [...], "test": [...]}, or one file a split: train_reid.json or
    train.json, a list (or {"annotations": list}) of paths, identities or records with `file_path`.
    """
    splits: dict[str | int, str] = {}
    whole: dict[str, Any] = {}
    if (root / "split.json").exists():
        content, read = read_first_json(root, ("split.json",))
        whole = content if isinstance(content, dict) else {}
        parsed.problems += read.problems or ([] if whole else ["split.json: expected an object of lists of splits"])
    for name in SPLITS:
        files = tuple(f for f in (f"{name}_reid.json", f"{name}.json") if (root / f).exists())
        members: Any = whole.get(name)
        if files:
            members, read = read_first_json(root, files)
            parsed.problems += read.problems
        file = files[0] if files else f"split.json {name}"
        if isinstance(members, dict):
            members = members.get("annotations")
        if members is not None and not isinstance(members, list):
            parsed.problems.append(f"{file}: expected a list, found {type(members).__name__}")
            continue
        for i, member in enumerate(members or []):
            key: Any = member.get("file_path") if isinstance(member, dict) else member
            if type(key) not in (int, str):
                parsed.problems.append(f"{file} entry {i}: {show.repr(key)}: expected a file_path or an id")
            elif splits.setdefault(key, name) != name:
                parsed.problems.append(f"split files: {show.repr(key)} stands in {splits[key]} and in {name}")
    if not splits:
        parsed.problems.append(
            f"{root / parsed.file} has no splits, and no file beside it gives them; expected split.json "
            '({"train": [...], "val": [...], "test": [...]} of file_path or id), or {train,val,test}_reid.json. '
            "reid_raw.json, which the authors send, needs none"
        )
    return splits


# -- Karpathy's splits ------------------------------------------------------------------------------------------


def parse_karpathy(root: Path, file: str) -> Parsed:
    """Karpathy's json: {"images": [{filename, split, sentences: [{raw}]}]}. Every picture is its own identity."""
    content, parsed = read_first_json(root, (file,))
    if parsed.unreadable:
        return parsed
    problems = parsed.problems
    images = value(content, "images", list, problems, file)
    for i, source, entry in objects(images or [], parsed, "image"):
        found = len(problems)
        split = check_split(value(entry, "split", str, problems, source), problems, source)
        sentences = value(entry, "sentences", list, problems, source) or []
        raws = [value(s, "raw", str, problems, f"{source} sentence {k}") for k, s in enumerate(sentences)]
        if len(problems) == found:
            check_captions(raws, problems, source)
        path = value(entry, "filename", str, problems, source)
        folder = value(entry, "filepath", str, problems, source) if "filepath" in entry else ""  # COCO: val2014
        if len(problems) == found:
            parsed.records.append(Record(f"{folder}/{path}" if folder else path, tuple(raws), i, split, source))
    return parsed


# -- Reed's captions of CUB and Oxford Flowers ------------------------------------------------------------------


def parse_reed(root: Path, flat: bool = False) -> Parsed:
    """text_c10/CLASS/IMAGE.txt, a caption a line, and lists of classes; a class's number is its identity.

    The authors' .t7 and .h5 files in these folders are ignored. Without trainclasses.txt or valclasses.txt, the
    classes of trainvalclasses.txt are training data.

    Args:
        flat: the pictures lie in one folder (Flowers); else there is a folder a class (CUB).
    """
    bases = (root, root / "cvpr2016_cub", root / "cvpr2016_flowers")
    base = next((b for b in bases if (b / "text_c10").is_dir()), root)
    texts, parsed = base / "text_c10", Parsed("text_c10")
    if not texts.is_dir():
        parsed.problems.append(f"{texts}: no such folder of captions")
    split_of = _class_splits(base, parsed)
    parsed.unreadable = bool(parsed.problems) and not (texts.is_dir() and split_of)
    if parsed.unreadable:
        return parsed
    class_of_number: dict[int, str] = {}
    refuse = path_guard(texts, root)
    for class_name, split in sorted(split_of.items()):
        number = re.search(r"\d{1,18}", class_name)
        files = sorted((texts / class_name).glob("*.txt"))
        if number is None or not files:
            what = "a name with a number" if number is None else "captions (*.txt) in text_c10"
            parsed.problems.append(f"class {class_name} ({split} split): expected {what}")
            continue
        if (other := class_of_number.setdefault(int(number[0]), class_name)) != class_name:
            parsed.problems.append(f"class {class_name} ({split} split): its number, {number[0]}, is that of {other}")
        for file in files:
            source = f"text_c10/{class_name}/{file.name}"
            if reason := refuse(f"{class_name}/{file.name}"):
                parsed.problems.append(f"{source}: {reason}")
            elif captions := _caption_lines(file, source, parsed):
                image = f"{file.stem}.jpg" if flat else f"{class_name}/{file.stem}.jpg"
                parsed.records.append(Record(image, captions, int(number[0]), split, source))
    unlisted = {p.name for p in texts.iterdir() if p.is_dir()} - set(split_of)
    if unlisted:
        parsed.warnings.append(
            f"{len(unlisted)} classes stand in no list and are not used: {', '.join(sorted(unlisted)[:5])}"
        )
    return parsed


def _class_splits(base: Path, parsed: Parsed) -> dict[str, str]:
    """{class: split} from the lists of classes."""
    split_of: dict[str, str] = {}
    listed = ("train", "val") if all((base / f"{n}classes.txt").exists() for n in ("train", "val")) else ("trainval",)
    for name in (*listed, "test"):
        path = base / f"{name}classes.txt"
        try:
            classes = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        except (OSError, ValueError) as error:
            reason = "no such list of classes" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
            parsed.problems.append(f"{path}: {reason}")
            continue
        for class_name in classes:
            if re.search(r"^\.|[/\\\0]", class_name) or len(class_name) > 200:  # it becomes a folder's name
                parsed.problems.append(f"{path.name}: {show.repr(class_name)}: expected a class name")
                continue
            if class_name in split_of:
                parsed.problems.append(
                    f"{path.name}: {class_name} also stands in the {split_of[class_name]} split: are the lists "
                    "of one origin? (Xian et al.'s lists have the names of Reed et al.'s)"
                )
            split_of.setdefault(class_name, "train" if name == "trainval" else name)
    return split_of


def _caption_lines(file: Path, source: str, parsed: Parsed) -> tuple[str, ...]:
    """The lines that hold words. Empty lines are left out with a warning: the published folders may hold some."""
    try:
        text = read_text(file, errors="replace")
    except OSError as error:
        parsed.problems.append(f"{source}: not readable ({error})")
        return ()
    if "\ufffd" in text:
        parsed.warnings.append(f"{source}: not valid UTF-8 throughout; the invalid bytes were replaced")
    lines = [line.strip() for line in text.rstrip().split("\n")]  # splitlines would also split at form feeds
    parsed.warnings += [f"{source}: line {i}: an empty caption, left out" for i, c in enumerate(lines, 1) if not c]
    return check_captions([line for line in lines if line], parsed.problems, source)
