"""What is published about each benchmark: how its folder looks, what it holds, and who hands it out on which terms."""

from __future__ import annotations

from dataclasses import dataclass, field

# (pictures, captions, identities or classes); None where no source that we could check states it.
Counts = tuple[int | None, int | None, int | None]

PROTOCOLS = {
    "identity": "relevant is every picture (or caption) of the same identity; rank-1/5/10, mAP, mINP, both directions",
    "instance": "relevant is the described picture, or any of its captions; rank-1/5/10, both directions",
    "class": "relevant is every picture of the same class; image-to-text rank-1, text-to-image AP@50 (and the ranks)",
}


@dataclass(frozen=True)
class Benchmark:
    """One data set as published.

    Attributes:
        layout: how ROOT must look.
        source: where it is published, and from whom it must be requested if so.
        terms: its licence or conditions.
        published: split, or splits joined by "+" -> counts.
        versions: known other versions: what is counted there -> what to tell the user.
        folds: parts of the test split that are searched on their own and averaged, beside the whole.
    """

    layout: str
    source: str
    terms: str
    published: dict[str, Counts] = field(default_factory=dict)
    versions: tuple[tuple[dict[str, Counts], str], ...] = ()
    folds: int = 1


BENCHMARKS: dict[str, Benchmark] = {
    "pedestrians": Benchmark(
        layout="reid_raw.json, imgs/, attributes.json",
        source="rendered here: timam data pedestrians --output ROOT",
        terms="as this project",
    ),
    "cuhk-pedes": Benchmark(
        layout="reid_raw.json (or caption_all.json with a split file) and imgs/ with cam_a, cam_b, CUHK01, CUHK03, "
        "Market, test_query, train_query",
        source="on request from its authors: "
        "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
        terms="research only, not to be passed on",
        published={
            "train": (34_054, 68_126, 11_003),
            "val": (3_078, 6_158, 1_000),
            "test": (3_074, 6_156, 1_000),
        },
        versions=(
            (
                {"train": (None, None, 11_000)},
                "11,000 training persons: a preprocessed copy that lost three (1369, 4116, 6116 in SSAN's scripts)",
            ),
        ),
    ),
    "icfg-pedes": Benchmark(
        layout="ICFG-PEDES.json and imgs/ (the folders of MSMT17: train, test; they are not the split)",
        source="on request from its authors: https://github.com/zifyloo/SSAN",
        terms="research only; the pictures under MSMT17's terms",
        published={"train+val": (34_674, 34_674, 3_102), "test": (19_848, 19_848, 1_000)},
    ),
    "rstp-reid": Benchmark(
        layout="data_captions.json and imgs/ (flat: 0000_c5_0022.jpg)",
        source="on request from its authors: https://github.com/NjtechCVLab/RSTPReid-Dataset",
        terms="research only; the pictures under MSMT17's terms",
        published={"train": (18_505, 37_010, 3_701), "val": (1_000, 2_000, 200), "test": (1_000, 2_000, 200)},
        versions=(
            (
                {"train": (None, None, 3_901), "val": (None, None, 100), "test": (None, None, 100)},
                "the old split of 3,901/100/100 persons; the correct one has 3,701/200/200, and results on the two do "
                "not compare: fetch the present data_captions.json",
            ),
        ),
    ),
    "flickr8k": Benchmark(
        layout="dataset_flickr8k.json and Flicker8k_Dataset/ (so spelled; Flickr8k_Dataset/ or images/ will do)",
        source="pictures on request: https://hockenmaier.cs.illinois.edu/8k-pictures.html; dataset_flickr8k.json: "
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        terms="research only; the pictures belong to Flickr's users",
        published={
            "train": (6_000, 30_000, 6_000),
            "val": (1_000, 5_000, 1_000),
            "test": (1_000, 5_000, 1_000),
        },
    ),
    "flickr30k": Benchmark(
        layout="dataset_flickr30k.json and flickr30k-images/ (or images/)",
        source="pictures on request: https://shannon.cs.illinois.edu/DenotationGraph; dataset_flickr30k.json: "
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        terms="research only; the pictures belong to Flickr's users",
        published={
            "train": (29_000, 145_000, 29_000),
            "val": (1_014, 5_070, 1_014),
            "test": (1_000, 5_000, 1_000),
        },
        versions=(
            ({"train": (28_000, None, None)}, "28,000 training pictures: not Karpathy's split, which has 29,000"),
            (
                {"train": (29_783, None, None)},
                "29,783 training pictures: the split of Flickr30K Entities, not Karpathy's, which has 29,000",
            ),
        ),
    ),
    "coco": Benchmark(
        layout="dataset_coco.json and train2014/, val2014/ (in ROOT or in ROOT/images)",
        source="pictures: https://cocodataset.org/#download (2014 train and val); dataset_coco.json: "
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        terms="captions CC BY 4.0; the pictures belong to Flickr's users",
        published={
            "train": (113_287, 566_747, 113_287),
            "val": (5_000, 25_010, 5_000),
            "test": (5_000, 25_010, 5_000),
        },
        versions=(
            ({"train": (82_783, None, None)}, "82,783 training pictures: without the 30,504 of `restval`"),
            ({"test": (1_000, None, None)}, "1,000 test pictures: one fold only; the published test has 5,000"),
        ),
        folds=5,
    ),
    "cub": Benchmark(
        layout="text_c10/NNN.Class/*.txt with trainclasses.txt, valclasses.txt, testclasses.txt (in ROOT or in "
        "ROOT/cvpr2016_cub), and CUB_200_2011/images/ (or images/) of the original distribution",
        source="captions and class lists: https://github.com/reedscot/cvpr2016; pictures: "
        "https://www.vision.caltech.edu/datasets/cub_200_2011",
        terms="non-commercial research and education",
        published={
            "train": (None, None, 100),
            "val": (None, None, 50),
            "test": (None, None, 50),
            "train+val+test": (11_788, 117_880, 200),
        },
    ),
    "flowers": Benchmark(
        layout="text_c10/class_NNNNN/*.txt with trainvalclasses.txt (or trainclasses.txt and valclasses.txt) and "
        "testclasses.txt (in ROOT or in ROOT/cvpr2016_flowers), and jpg/image_NNNNN.jpg of the original distribution",
        source="captions and class lists: https://github.com/reedscot/cvpr2016; pictures: "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        terms="not stated with the pictures; they come from the web",
        published={
            "train+val": (None, None, 82),
            "test": (None, None, 20),
            "train+val+test": (8_189, 81_890, 102),
        },
    ),
    "csv": Benchmark(
        layout="one table, captions.csv or captions.parquet (or any other name, if it is the only one), with the "
        "columns image_path (relative to ROOT), caption, and optionally identity and split; a row a caption",
        source="your own",
        terms="yours",
    ),
}
