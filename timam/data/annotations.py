"""Parsers of the benchmarks' annotation files: person search, Karpathy's splits, Reed's captions of classes."""

import re
from pathlib import Path

from timam.data.parsing import Parsed, check_captions, check_split, read_lines, read_records, value
from timam.data.records import Record, path_guard, show


def parse_person_search(root: Path, files: list[str], path_key: str = "file_path") -> Parsed:
    """CUHK-PEDES, ICFG-PEDES, RSTPReid, UFine6926: a list of {split, captions, file_path or img_path, id}."""
    parsed, entries = read_records(root, files)
    for i, entry in enumerate(entries):
        with parsed.naming(source := f"{parsed.file} record {i}"):
            captions = check_captions(value(entry, "captions", list))
            path, identity = value(entry, path_key, str), value(entry, "id", int)
            parsed.records.append(Record(path, captions, identity, check_split(value(entry, "split", str)), source))
    return parsed


def parse_karpathy(root: Path, file: str) -> Parsed:
    """Karpathy's json: {"images": [{filename, split, sentences: [{raw}]}]}. Every picture is its own identity."""
    parsed, images = read_records(root, [file], key="images")
    for i, entry in enumerate(images):
        with parsed.naming(source := f"{file} image {i}"):
            split = check_split(value(entry, "split", str))
            captions = check_captions([value(s, "raw", str) for s in value(entry, "sentences", list)])
            path = value(entry, "filename", str)
            if "filepath" in entry and (folder := value(entry, "filepath", str)):  # COCO: val2014
                path = f"{folder}/{path}"
            parsed.records.append(Record(path, captions, i, split, source))
    return parsed


def parse_reed(root: Path, flat: bool = False) -> Parsed:
    """Reed's text_c10/CLASS/IMAGE.txt, a caption a line, and lists of classes; a class's number is its identity.

    Without trainclasses.txt or valclasses.txt, the classes of trainvalclasses.txt are training data. `flat`: the
    pictures lie in one folder (Flowers); else there is a folder a class (CUB).
    """
    bases = (root, root / "cvpr2016_cub", root / "cvpr2016_flowers")
    base = next((b for b in bases if (b / "text_c10").is_dir()), root)
    texts, parsed = base / "text_c10", Parsed("text_c10")
    if not texts.is_dir():
        parsed.problems.append(f"{texts}: no such folder of captions")
        return parsed
    split_of = _class_splits(base, parsed)
    class_of_number: dict[int, str] = {}
    refuse = path_guard(texts, root)
    for name, split in sorted(split_of.items()):
        with parsed.naming(f"class {name} ({split} split)"):
            number, files = re.search(r"\d{1,18}", name), sorted((texts / name).glob("*.txt"))
            if number is None or not files:
                raise ValueError(f"expected {'captions (*.txt) in text_c10' if number else 'a name with a number'}")
            if (other := class_of_number.setdefault(int(number[0]), name)) != name:
                raise ValueError(f"its number, {number[0]}, is that of {other}")
            for file in files:
                with parsed.naming(source := f"text_c10/{name}/{file.name}"):
                    if reason := refuse(f"{name}/{file.name}"):
                        raise ValueError(reason)
                    captions = _caption_lines(file, source, parsed)
                    image = f"{file.stem}.jpg" if flat else f"{name}/{file.stem}.jpg"
                    parsed.records.append(Record(image, captions, int(number[0]), split, source))
    if unlisted := {p.name for p in texts.iterdir() if p.is_dir()} - set(split_of):
        shown = ", ".join(sorted(unlisted)[:5])
        parsed.warnings.append(f"{len(unlisted)} classes stand in no list and are not used: {shown}")
    return parsed


def _class_splits(base: Path, parsed: Parsed) -> dict[str, str]:
    """{class: split} from the lists of classes."""
    split_of: dict[str, str] = {}
    listed = ("train", "val") if all((base / f"{n}classes.txt").exists() for n in ("train", "val")) else ("trainval",)
    for name in (*listed, "test"):
        classes: list[str] = []
        with parsed.naming(path := base / f"{name}classes.txt"):
            classes = [line for line in read_lines(path) if line]
        for class_name in classes:
            with parsed.naming(path.name):
                if re.search(r"^\.|[/\\\0]", class_name) or len(class_name) > 200:  # it becomes a folder's name
                    raise ValueError(f"{show.repr(class_name)}: expected a class name")
                if class_name in split_of:
                    hint = "are the lists of one origin? (Xian et al.'s lists have the names of Reed et al.'s)"
                    raise ValueError(f"{class_name} also stands in the {split_of[class_name]} split: {hint}")
                split_of[class_name] = "train" if name == "trainval" else name
    return split_of


def _caption_lines(file: Path, source: str, parsed: Parsed) -> tuple[str, ...]:
    """The lines that hold words. Empty lines are left out with a warning: the published folders may hold some."""
    lines = read_lines(file, errors="replace")
    while lines and not lines[-1]:
        lines.pop()
    if any("\ufffd" in line for line in lines):
        parsed.warnings.append(f"{source}: not valid UTF-8 throughout; the invalid bytes were replaced")
    parsed.warnings += [f"{source}: line {i}: an empty caption, left out" for i, c in enumerate(lines, 1) if not c]
    return check_captions([line for line in lines if line])
