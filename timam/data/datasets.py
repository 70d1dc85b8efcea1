"""The data sets, each declared once: how it is read, what is published of it, where it comes from.

A new data set is an entry of `DATASETS`, a test, and a row in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from timam.data.annotations import parse_karpathy, parse_one_person_search, parse_person_search, parse_reed
from timam.data.folders import parse_coco_captions, parse_flickr_token, parse_sidecar, parse_webdataset
from timam.data.parsing import Parsed
from timam.data.tables import parse_imagefolder, parse_parquet, parse_table

# (pictures, captions, identities or classes); None: not stated by any source that we could check.
Counts = tuple[int | None, int | None, int | None]

PROTOCOLS = {
    "identity": "relevant is every picture (or caption) of the same identity; rank-1/5/10, mAP, mINP, both directions",
    "instance": "relevant is the described picture, or any of its captions; rank-1/5/10, both directions",
    "class": "relevant is every picture of the same class; image-to-text rank-1, text-to-image AP@50 (and the ranks)",
}


@dataclass(frozen=True)
class DatasetSpec:
    """A data set as published, and its parser.

    Attributes:
        kind: what is relevant, a key of `PROTOCOLS`; the parser may decide otherwise.
        parse: parse(ROOT) reads the annotation; with `has_columns`, parse(ROOT, columns={...}) too.
        image_folders: where in ROOT the pictures may lie; "." is ROOT itself.
        layout: what ROOT must hold.
        source: where it is published, and who hands it out on request.
        terms: its licence or conditions.
        published: {split, or splits joined by "+": counts}.
        versions: {what to tell the user: counts of another version that is around}.
        holds_out: without a validation split, some training identities become one.
        folds: the test split is also searched in this many parts, whose results are averaged (COCO's 1K protocol).
    """

    kind: str
    parse: Callable[..., Parsed]
    image_folders: tuple[str, ...]
    layout: str
    source: str
    terms: str
    published: dict[str, Counts] = field(default_factory=dict)
    versions: dict[str, dict[str, Counts]] = field(default_factory=dict)
    holds_out: bool = False
    folds: int = 1
    has_columns: bool = False


_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_REED = "captions and class lists: https://github.com/reedscot/cvpr2016; pictures: "
_MSMT17 = "research only; the pictures under MSMT17's terms"
_FLICKR = "research only; the pictures belong to Flickr's users"

_persons = partial(DatasetSpec, kind="identity", image_folders=("imgs",))
_yours = partial(DatasetSpec, kind="identity", image_folders=(".",), source="your own", terms="yours", holds_out=True)

DATASETS: dict[str, DatasetSpec] = {
    "pedestrians": _persons(
        parse=partial(parse_person_search, files=("reid_raw.json",)),
        layout="reid_raw.json, imgs/, attributes.json",
        source="rendered here: timam data pedestrians --output ROOT",
        terms="as this project",
    ),
    "cuhk-pedes": _persons(
        parse=partial(parse_person_search, files=("reid_raw.json", "caption_all.json")),
        layout="reid_raw.json (or caption_all.json with a split file) and imgs/ with cam_a, cam_b, CUHK01, CUHK03, "
        "Market, test_query, train_query",
        source="on request from its authors: "
        "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
        terms="research only, not to be passed on",
        published={"train": (34_054, 68_126, 11_003), "val": (3_078, 6_158, 1_000), "test": (3_074, 6_156, 1_000)},
        versions={
            "11,000 training persons: a preprocessed copy that lost three (1369, 4116, 6116 in SSAN's scripts)": {
                "train": (None, None, 11_000)
            },
        },
    ),
    "icfg-pedes": _persons(
        parse=partial(parse_person_search, files=("ICFG-PEDES.json", "ICFG_PEDES.json")),
        layout="ICFG-PEDES.json and imgs/ (the folders of MSMT17: train, test; they are not the split)",
        source="on request from its authors: https://github.com/zifyloo/SSAN",
        terms=_MSMT17,
        published={"train+val": (34_674, 34_674, 3_102), "test": (19_848, 19_848, 1_000)},
        holds_out=True,
    ),
    "rstp-reid": _persons(
        parse=partial(parse_person_search, files=("data_captions.json",), path_key="img_path"),
        layout="data_captions.json and imgs/ (flat: 0000_c5_0022.jpg)",
        source="on request from its authors: https://github.com/NjtechCVLab/RSTPReid-Dataset",
        terms=_MSMT17,
        published={"train": (18_505, 37_010, 3_701), "val": (1_000, 2_000, 200), "test": (1_000, 2_000, 200)},
        versions={
            "the old split of 3,901/100/100 persons; the correct one has 3,701/200/200, and results on the two do "
            "not compare: fetch the present data_captions.json": {
                "train": (None, None, 3_901),
                "val": (None, None, 100),
                "test": (None, None, 100),
            },
        },
    ),
    "flickr8k": DatasetSpec(
        kind="instance",
        parse=partial(parse_karpathy, file="dataset_flickr8k.json"),
        image_folders=("Flicker8k_Dataset", "Flickr8k_Dataset", "images"),
        layout="dataset_flickr8k.json and Flicker8k_Dataset/ (so spelled; Flickr8k_Dataset/ or images/ will do)",
        source="pictures on request: https://hockenmaier.cs.illinois.edu/8k-pictures.html; dataset_flickr8k.json: "
        + _KARPATHY,
        terms=_FLICKR,
        published={"train": (6_000, 30_000, 6_000), "val": (1_000, 5_000, 1_000), "test": (1_000, 5_000, 1_000)},
    ),
    "flickr30k": DatasetSpec(
        kind="instance",
        parse=partial(parse_karpathy, file="dataset_flickr30k.json"),
        image_folders=("flickr30k-images", "images"),
        layout="dataset_flickr30k.json and flickr30k-images/ (or images/)",
        source="pictures on request: https://shannon.cs.illinois.edu/DenotationGraph; dataset_flickr30k.json: "
        + _KARPATHY,
        terms=_FLICKR,
        published={"train": (29_000, 145_000, 29_000), "val": (1_014, 5_070, 1_014), "test": (1_000, 5_000, 1_000)},
        versions={
            "28,000 training pictures: not Karpathy's split, which has 29,000": {"train": (28_000, None, None)},
            "29,783 training pictures: the split of Flickr30K Entities, not Karpathy's": {
                "train": (29_783, None, None)
            },
        },
    ),
    "coco": DatasetSpec(
        kind="instance",
        parse=partial(parse_karpathy, file="dataset_coco.json"),
        image_folders=("images", "."),
        layout="dataset_coco.json and train2014/, val2014/ (in ROOT or in ROOT/images)",
        source="pictures: https://cocodataset.org/#download (2014 train and val); dataset_coco.json: " + _KARPATHY,
        terms="captions CC BY 4.0; the pictures belong to Flickr's users",
        published={
            "train": (113_287, 566_747, 113_287),
            "val": (5_000, 25_010, 5_000),
            "test": (5_000, 25_010, 5_000),
        },
        versions={
            "82,783 training pictures: without the 30,504 of `restval`": {"train": (82_783, None, None)},
            "1,000 test pictures: one fold only; the published test has 5,000": {"test": (1_000, None, None)},
        },
        folds=5,
    ),
    "cub": DatasetSpec(
        kind="class",
        parse=parse_reed,
        image_folders=("CUB_200_2011/images", "images"),
        layout="text_c10/NNN.Class/*.txt with trainclasses.txt, valclasses.txt, testclasses.txt (in ROOT or in "
        "ROOT/cvpr2016_cub), and CUB_200_2011/images/ (or images/) of the original distribution",
        source=_REED + "https://www.vision.caltech.edu/datasets/cub_200_2011",
        terms="non-commercial research and education",
        published={
            "train": (None, None, 100),
            "val": (None, None, 50),
            "test": (None, None, 50),
            "train+val+test": (11_788, 117_880, 200),
        },
        holds_out=True,
    ),
    "flowers": DatasetSpec(
        kind="class",
        parse=partial(parse_reed, flat=True),
        image_folders=("jpg",),
        layout="text_c10/class_NNNNN/*.txt with trainvalclasses.txt (or trainclasses.txt and valclasses.txt) and "
        "testclasses.txt (in ROOT or in ROOT/cvpr2016_flowers), and jpg/image_NNNNN.jpg of the original distribution",
        source=_REED + "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        terms="not stated with the pictures; they come from the web",
        published={
            "train+val": (None, None, 82),
            "test": (None, None, 20),
            "train+val+test": (8_189, 81_890, 102),
        },
        holds_out=True,
    ),
    "coco-captions": DatasetSpec(
        kind="instance",
        parse=parse_coco_captions,
        image_folders=(".", "images", "train2014", "val2014"),
        layout="captions_train2014.json and captions_val2014.json (in ROOT or ROOT/annotations) and train2014/, "
        "val2014/ (in ROOT or ROOT/images)",
        source="https://cocodataset.org/#download; the published results use Karpathy's split, which `coco` reads",
        terms="captions CC BY 4.0; the pictures belong to Flickr's users",
        holds_out=True,
    ),
    "flickr30k-token": DatasetSpec(
        kind="instance",
        parse=parse_flickr_token,
        image_folders=("flickr30k-images", "images", "."),
        layout="results_20130124.token and flickr30k-images/ (or images/)",
        source="on request: https://shannon.cs.illinois.edu/DenotationGraph; the published results use Karpathy's "
        "split, which `flickr30k` reads",
        terms=_FLICKR,
    ),
    "ufine6926": DatasetSpec(
        kind="identity",
        parse=parse_one_person_search,
        image_folders=(".", "imgs"),
        layout="one .json of {split, id, file_path, captions} and the pictures, images/1.jpg",
        source="on request from its authors: https://github.com/Zplusdragon/UFineBench",
        terms="by a signed license agreement",
        published={"train+val+test": (26_206, 52_412, 6_926)},
        holds_out=True,
    ),
    "csv": _yours(
        parse=parse_table,
        layout="one table, captions.csv, .tsv, .jsonl or .parquet (or any other name, if it is the only one), with the "
        "columns image_path (relative to ROOT), caption, and optionally identity and split; or open_clip's filepath "
        "and title",
        has_columns=True,
    ),
    "parquet": _yours(
        parse=parse_parquet,
        layout="Parquet files with a column of pictures (image: bytes and path, as the Hugging Face hub has it) and "
        "one or several of captions; train, validation and test in the files' names or a column split",
        has_columns=True,
    ),
    "imagefolder": _yours(
        parse=parse_imagefolder,
        layout="metadata.csv, metadata.jsonl or metadata.parquet with file_name (relative to it) and one or several "
        "columns of captions, in ROOT or in train/, validation/, test/",
        has_columns=True,
    ),
    "webdataset": _yours(
        parse=parse_webdataset,
        layout=".tar shards of KEY.jpg with KEY.txt (a caption a line) or KEY.json; train, val and test in the "
        "shards' names or folders",
        has_columns=True,
    ),
    "sidecar": _yours(
        kind="instance",
        parse=parse_sidecar,
        layout="pictures, each with a text file of its name (0001.jpg, 0001.txt; a caption a line), in ROOT or in "
        "train/, val/, test/",
    ),
}
