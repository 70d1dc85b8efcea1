"""Retrieval metrics against brute force, hand-computed rankings and the mistakes of public person-search code."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel

from timam import metrics
from timam.metrics import class_retrieval_metrics, open_set_metrics, query_metrics, retrieval_metrics, two_way_metrics
from timam_lab.class_readings import CLASS_OPTIONS, class_readings

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def unit(*degrees: float) -> torch.Tensor:
    """Vectors in the plane at these angles: the cosine similarity of two is the cosine of their angle."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def slow_search(queries, gallery, query_labels, gallery_labels, similarity=cosine_similarity, tie: float = 0.0):
    """Each query's ranks of its relevant items, best first, and its largest similarity.

    A relevant item stands after those that are as similar, up to `tie`.
    """
    relevant_items = (query_labels[:, None] == gallery_labels).cpu().numpy()
    for row, relevant in zip(similarity(queries.cpu(), gallery.cpu()), relevant_items, strict=True):
        ranks = rankdata(tie * relevant - row, method="ordinal")
        yield np.sort(ranks[relevant]), row.max()


def slow_metrics(*case, tie: float = 0.0) -> dict[str, list[float]]:
    ranks = [found for found, _ in slow_search(*case, tie=tie)]
    return {
        "rank": [r[0] if len(r) else math.nan for r in ranks],
        "average_precision": [np.mean(np.arange(1, len(r) + 1) / r) if len(r) else math.nan for r in ranks],
        "inverse_penalty": [len(r) / r[-1] if len(r) else math.nan for r in ranks],
    }


def random_case(queries: int, gallery: int, identities: int, dtype=torch.float64, integers: bool = False):
    """Embeddings of any length; with integers, coordinates of -1, 0 and 1: many ties, and vectors of length zero."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (queries, gallery)]
    if integers:
        drawn = [torch.randint(-1, 2, (len(e), 3), generator=generator) for e in drawn]
    identity = [torch.randint(identities, (n,), generator=generator) for n in (queries, gallery)]
    return *(e.to(dtype) for e in drawn), *identity


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("queries", "gallery", "identities", "integers"),
    [(20, 31, 5, False), (31, 20, 5, False), (1, 17, 2, False), (17, 1, 2, False), (25, 40, 30, False),
     (12, 12, 1, False), (30, 40, 4, True)],
)  # fmt: skip
@pytest.mark.parametrize(
    "sizes",
    [{}, *({"_CHUNK": c} for c in (1, 31, 7 * 31)), *({"_BLOCK": b, "_MOST_COMPARED": c} for b in (1, 31, 100)
      for c in (0, 128))], ids=str,
)  # fmt: skip
def test_equals_brute_force(queries, gallery, identities, integers, dtype, sizes, monkeypatch):
    for name, size in sizes.items():  # a query at once or several; by a sort, and by counting parts of rows, or rows
        monkeypatch.setattr(metrics, name, size)
    case = random_case(queries, gallery, identities, dtype, integers)  # 30 identities: some queries have no positive
    doubled = case[0].double(), case[1].double(), *case[2:]
    expected = slow_metrics(*doubled, tie=1e-10 if integers else 0.0)
    if integers:
        assert expected["rank"] != slow_metrics(*doubled, tie=-1e-10)["rank"]  # ties do matter here
    large = [side - 10**12 for side in case[2:]]  # labels may be any integers, also in floating point
    found = query_metrics(*case[:2], large[0], large[1].double())
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=TOLERANCE[dtype])
        assert found[key].dtype == np.float64
    known = ~np.isnan(expected["rank"])
    ranks = np.array(expected["rank"])[known]
    means = {f"rank_{k}": np.mean(ranks <= k) for k in (1, 5, 100)}  # 100: more than the gallery
    means |= {"mAP": np.nanmean(expected["average_precision"]), "mINP": np.nanmean(expected["inverse_penalty"])}
    found = retrieval_metrics(case[0][known], case[1], case[2][known], case[3], ranks=(1, 5, 100))
    assert {name: found[name] for name in means} == pytest.approx(means, rel=TOLERANCE[dtype])


def test_single_query_by_hand():
    # The second and the fourth item are relevant. By the trapezoid rule the average precision would be 0.333.
    rank, average_precision, inverse_penalty = 2, (1 / 2 + 2 / 4) / 2, 2 / 4
    found = retrieval_metrics(unit(0), unit(5, 10, 15, 20), labels(1), labels(0, 1, 0, 1))
    assert found["mAP"] == pytest.approx(average_precision, rel=1e-12)
    assert found == retrieval_metrics(unit(0).double(), unit(5, 10, 15, 20).float(), labels(1), labels(0, 1, 0, 1))
    assert found["mINP"] == pytest.approx(inverse_penalty, rel=1e-12)
    assert [found["rank_1"], found["rank_5"], found["rank_10"]] == [rank <= 1, rank <= 5, rank <= 10]


@pytest.mark.parametrize("chunk", [10**6, 5])  # one product for both directions, and one for each
def test_two_directions_are_a_search_each(chunk, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    images, texts, image_labels, text_labels = random_case(20, 31, 3)
    assert two_way_metrics(images, texts, image_labels, text_labels) == {
        "text_to_image": pytest.approx(retrieval_metrics(texts, images, text_labels, image_labels)),
        "image_to_text": pytest.approx(retrieval_metrics(images, texts, image_labels, text_labels)),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 7, 256, 1000])
@pytest.mark.parametrize(("gallery", "positives"), [(6, 2), (37, 1)])
def test_collapsed_embeddings_give_the_worst_ranks(dim, gallery, positives, dtype):
    # Equal vectors: matrix products round them differently from column to column, which must not decide the order.
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(dim)).to(dtype).repeat(gallery, 1)
    identities = torch.arange(gallery) // positives
    found = query_metrics(vector, vector, identities, identities)
    assert set(found["rank"]) == {gallery - positives + 1}
    assert set(found["inverse_penalty"]) == {positives / gallery}


@pytest.mark.parametrize(
    ("dtype", "degrees", "rank"),  # cos 10 deg - cos 10.01 deg = 3e-5, far above float32's rounding
    [(torch.float64, 0, 2), (torch.float32, 1e-2, 1), (torch.float64, 1e-9, 1)],
)
def test_a_tie_counts_against_the_query_and_a_small_difference_is_none(dtype, degrees, rank):
    sides = unit(0).to(dtype), unit(10, -10 - degrees).to(dtype), labels(1), labels(1, 0)
    assert query_metrics(*sides)["rank"].tolist() == [rank]


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("function", [query_metrics, open_set_metrics, class_readings])
def test_no_operation_gives_a_tensor_of_all_pairs(function, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 3000)
    queries, gallery, query_labels, gallery_labels = random_case(400, 300, 9)
    with LargestTensor() as largest:
        if function is class_readings:
            function(queries, query_labels, gallery, gallery_labels, query="caption", similarity="dot")
        else:
            query_labels[:5] = 99  # unknown queries
            function(queries, gallery, query_labels, gallery_labels)
    assert largest.elements <= 3000  # all pairs: 120,000; the embeddings themselves: 2,400


PAIR = torch.eye(3)[:2], torch.eye(3)[:2], labels(0, 1), labels(0, 1)
CLASSES = unit(0, 20, 40), labels(0, 1, 1), unit(1, 21), labels(0, 1)
UNKNOWN = unit(0, 1), unit(0, 1), labels(0, 5), labels(0, 1)


@pytest.mark.parametrize(
    ("function", "sides", "changed", "options", "found"),
    [
        (retrieval_metrics, PAIR, {1: torch.zeros(2, 4)}, {}, "query_embeddings (2, 3) and gallery_embeddings (2, 4)"),
        (retrieval_metrics, PAIR, {2: labels(0)}, {}, "query_labels (1,): expected (2,) to match (2, 3)"),
        (retrieval_metrics, PAIR, {0: torch.zeros(0, 3), 2: labels()}, {}, "query_embeddings (0, 3)"),
        (retrieval_metrics, PAIR, {0: torch.zeros(3)}, {}, "query_embeddings (3,)"),
        (retrieval_metrics, PAIR, {0: torch.eye(3)[:2] * math.nan}, {}, "query_embeddings: 6 values are not finite"),
        (retrieval_metrics, PAIR, {}, {"ranks": (0, 1)}, "ranks = (0, 1)"),
        (retrieval_metrics, PAIR, {2: labels(0, 9)}, {}, "1 of 2 queries have no item"),
        (open_set_metrics, UNKNOWN, {2: labels(0, 1)}, {}, "2 of 2 queries have"),
        (open_set_metrics, UNKNOWN, {2: labels(5, 6)}, {}, "0 of 2 queries have"),
        (open_set_metrics, UNKNOWN, {}, {"false_alarm_rates": (0.1, 1.0)}, "false_alarm_rates = (0.1, 1.0)"),
        (class_readings, CLASSES, {}, {"query": "mean"}, "'mean': expected one of class_mean, caption"),
        (class_retrieval_metrics, CLASSES, {}, {"k": 0}, "k = 0"),
        (class_retrieval_metrics, CLASSES, {1: labels(0, 1)}, {}, "image_classes (2,): expected (3,)"),
        (class_retrieval_metrics, CLASSES, {3: labels(0, 7)}, {}, "2 classes have no image or no caption"),
    ],
)
def test_wrong_input(function, sides, changed, options, found):
    with pytest.raises(ValueError, match=r"expected|differs|finite|queries|classes") as error:
        function(*(changed.get(i, side) for i, side in enumerate(sides)), **options)
    assert found in str(error.value)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_open_set_equals_brute_force(dtype):
    case = random_case(150, 40, 3, dtype)
    case[2][:60] = 9  # unknown
    rates = (0.0, 0.01, 0.1, 0.29, 0.5, 0.999)
    results = list(slow_search(case[0].double(), case[1].double(), *case[2:]))
    unknown = [best for ranks, best in results if not len(ranks)]
    known = [(best, ranks[0] == 1) for ranks, best in results if len(ranks)]
    # From the definition: every threshold that could matter is tried.
    expected = {r: min(t for t in unknown if sum(u > t for u in unknown) / len(unknown) <= r) for r in rates}
    shares = {r: np.mean([right and best > threshold for best, right in known]) for r, threshold in expected.items()}
    found = open_set_metrics(case[0].requires_grad_(), *case[1:], false_alarm_rates=rates)
    assert found["threshold"] == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert found["detection_identification_rate"] == pytest.approx(shares)
    assert len(set(shares.values())) > 2
    given = open_set_metrics(*case, thresholds={0.1: 0.9})  # chosen on other data
    assert given["detection_identification_rate"] == pytest.approx({0.1: np.mean([r and b > 0.9 for b, r in known])})
    assert given["false_alarm_rate"] == pytest.approx({0.1: np.mean(np.array(unknown) > 0.9)})


def test_open_set_ties_count_against_the_query():
    # The unknown query is 15 degrees from the nearest item. Known ones: 5 degrees from the right item, a hit; 15
    # degrees from it, a tie with the threshold; 10 degrees from the right item and from the wrong one.
    found = open_set_metrics(unit(35, 25, -15, 10), unit(0, 20), labels(9, 1, 0, 1), labels(0, 1), (0.0,))
    assert found["detection_identification_rate"] == {0.0: 1 / 3}
    # Known and unknown queries of one direction and of many lengths: rounding must not tell them apart.
    direction = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    queries = direction * torch.linspace(0.1, 30, 200)[:, None]
    gallery, query_labels = torch.cat([direction, -direction]), torch.arange(200) % 2 * 9
    found = open_set_metrics(queries, gallery, query_labels, labels(0, 1), (0.1, 0.5))
    assert set(found["detection_identification_rate"].values()) == {0.0}


# Of the class level of CUB and Oxford Flowers.
COMBINATIONS = [dict(zip(CLASS_OPTIONS, values, strict=True)) for values in itertools.product(*CLASS_OPTIONS.values())]


def class_case(dtype: torch.dtype, integers: bool):
    """37 images and 58 captions of the classes 0, 3 and 6, around a centre each, of any length."""
    images, captions, image_classes, caption_classes = random_case(37, 58, 3, integers=integers)
    if not integers:
        centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        images, captions = images + centres[image_classes], captions + centres[caption_classes]
    return images.to(dtype), 3 * image_classes, captions.to(dtype), 3 * caption_classes


def slow_class_metrics(images, image_classes, captions, caption_classes, k, query, gallery, similarity):
    """The share of images whose nearest text is right, and of the first k images that are, averaged over the classes.

    Not a truncated AP, and not divided by the number of a class's images.
    """
    images, captions = images.double(), captions.double()
    classes = image_classes.unique()
    means = torch.stack([captions[caption_classes == c].mean(dim=0) for c in classes])
    sides = {"caption": (captions, caption_classes), "class_mean": (means, classes)}
    (texts, text_classes), (queries, query_classes) = sides[gallery], sides[query]
    search = partial(slow_search, similarity=linear_kernel if similarity == "dot" else cosine_similarity, tie=1e-10)
    right = [ranks[0] == 1 for ranks, _ in search(images, texts, image_classes, text_classes)]
    results = search(queries, images, query_classes, image_classes)
    precision = np.array([sum(ranks <= k) / min(k, len(images)) for ranks, _ in results])
    by_class = [precision[(query_classes == c).cpu().numpy()].mean() for c in classes]
    return {"image_to_text_rank_1": np.mean(right), f"text_to_image_ap_{k}": np.mean(by_class)}


@pytest.mark.parametrize(
    ("dtype", "integers", "chunk"),  # integers: 27 vectors in all, so ties and one of length zero
    [(torch.float32, False, 10**6), (torch.float64, False, 1), (torch.float64, False, 100), (torch.float64, True, 259)],
)
@pytest.mark.parametrize("k", [1, 7, 50])  # of 37 images
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(o.values()))
def test_class_metrics_equal_brute_force(options, k, dtype, integers, chunk, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    case = class_case(dtype, integers)
    found = class_readings(*case, k=k, **options)
    if options == COMBINATIONS[0]:
        assert found == class_retrieval_metrics(*case, k=k)
    assert found == pytest.approx(slow_class_metrics(*case, k=k, **options), rel=1e-12)
    assert list(found) == ["image_to_text_rank_1", f"text_to_image_ap_{k}"]


def test_the_order_of_a_classs_captions_breaks_no_tie():
    # Two classes of the same 600 captions, long ones that nearly cancel, in another order: their means are one.
    generator = torch.Generator().manual_seed(0)
    long = 1000 * torch.randn(300, 64, generator=generator)
    captions = torch.cat([long, -long]) + torch.randn(600, 64, generator=generator)
    sides = torch.randn(20, 64, generator=generator), torch.arange(20) % 2, captions.repeat(2, 1)
    sides[2][600:] = captions[torch.randperm(600, generator=generator)]
    found = class_readings(*sides, torch.arange(1200) // 600, gallery="class_mean")
    assert found["image_to_text_rank_1"] == 0.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_small_difference_of_inner_products_is_no_tie(scale):
    # 1 and 1.0001 times one direction: far more apart than rounding, whatever the scale.
    images = scale * torch.tensor([[1.0, 0], [1.0001, 0], [0, 1], [0, 1.0001]])
    sides = images, labels(1, 0, 0, 1), scale * torch.eye(2), labels(0, 1)
    assert class_readings(*sides, k=1, similarity="dot")["text_to_image_ap_1"] == 1.0
    assert class_retrieval_metrics(*sides, k=1)["text_to_image_ap_1"] == 0.0  # by cosine they do tie
