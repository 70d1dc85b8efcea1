"""Retrieval metrics against brute force, hand-computed rankings and the mistakes of public person-search code."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from timam import metrics
from timam.metrics import (
    CLASS_OPTIONS,
    bootstrap_interval,
    class_retrieval_metrics,
    open_set_metrics,
    query_metrics,
    retrieval_metrics,
    summarize,
    two_way_metrics,
)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def unit(*degrees: float) -> torch.Tensor:
    """Vectors in the plane at these angles: the cosine similarity of two is the cosine of their angle."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def ranked(relevant: str) -> dict[str, float]:
    """One query at 0 degrees and a gallery in the given order: "x" is relevant, "." is not."""
    gallery = unit(*(5.0 * (i + 1) for i in range(len(relevant))))
    return retrieval_metrics(unit(0), gallery, labels(1), torch.tensor([int(c == "x") for c in relevant]))


def slow_metrics(queries, gallery, query_labels, gallery_labels, tie: float = 0.0) -> dict[str, list[float]]:
    """Each query's rank, AP and INP in Python floats: relevant items last among those as similar."""
    result = {"rank": [], "average_precision": [], "inverse_penalty": []}
    for query, query_label in zip(queries.tolist(), query_labels.tolist(), strict=True):
        items = []
        for item, label in zip(gallery.tolist(), gallery_labels.tolist(), strict=True):
            product = math.fsum(a * b for a, b in zip(query, item, strict=True))
            lengths = math.hypot(*query) * math.hypot(*item)
            items.append((product / lengths if lengths else 0.0, label == query_label))
        ranks = []
        for own, _ in sorted((x for x in items if x[1]), reverse=True):
            above = sum(not relevant and similarity >= own - tie for similarity, relevant in items)
            ranks.append(len(ranks) + 1 + above)
        precisions = [(i + 1) / rank for i, rank in enumerate(ranks)]
        result["rank"].append(ranks[0] if ranks else math.nan)
        result["average_precision"].append(math.fsum(precisions) / len(ranks) if ranks else math.nan)
        result["inverse_penalty"].append(len(ranks) / ranks[-1] if ranks else math.nan)
    return result


def random_case(queries: int, gallery: int, identities: int, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, 6, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(gallery, 6, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(identities, (queries,), generator=generator),
        torch.randint(identities, (gallery,), generator=generator),
    )


# -- brute force -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("queries", "gallery", "identities"),
    [(20, 31, 5), (31, 20, 5), (1, 17, 2), (17, 1, 2), (25, 40, 30), (12, 12, 1)],
)
@pytest.mark.parametrize("counted", [0, 128])  # by a sort, and by counting, where no query has more positives
def test_equals_brute_force(queries, gallery, identities, dtype, counted, monkeypatch):
    monkeypatch.setattr(metrics, "_MOST_COMPARED", counted)
    case = random_case(queries, gallery, identities, dtype)  # 30 identities: some queries without a positive
    found = query_metrics(*case)
    for key, expected in slow_metrics(case[0].double(), case[1].double(), *case[2:]).items():
        np.testing.assert_allclose(found[key], expected, rtol=TOLERANCE[dtype])
        assert found[key].dtype == np.float64


@pytest.mark.parametrize("counted", [0, 128])
def test_equals_brute_force_with_ties(counted, monkeypatch):
    monkeypatch.setattr(metrics, "_MOST_COMPARED", counted)
    # Coordinates of -1, 0 and 1 in three dimensions: many equal similarities, and vectors of zero length.
    generator = torch.Generator().manual_seed(1)
    queries, gallery = (torch.randint(-1, 2, (n, 3), generator=generator).double() for n in (30, 40))
    sides = torch.randint(4, (30,), generator=generator), torch.randint(4, (40,), generator=generator)
    expected = slow_metrics(queries, gallery, *sides, tie=1e-12)
    assert expected["rank"] != slow_metrics(queries, gallery, *sides, tie=-1e-12)["rank"]  # ties do matter here
    found = query_metrics(queries, gallery, *sides)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-12)


# -- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relevant", "rank", "average_precision", "inverse_penalty"),
    [
        ("x....", 1, 1.0, 1.0),
        (".x...", 2, 1 / 2, 1 / 2),
        ("...x", 4, 1 / 4, 1 / 4),
        ("x..x", 1, (1 + 2 / 4) / 2, 2 / 4),  # 0.75
        ("...x...x", 4, (1 / 4 + 2 / 8) / 2, 2 / 8),  # 0.25
        (".x.x", 2, (1 / 2 + 2 / 4) / 2, 2 / 4),  # 0.5; by the trapezoid rule it would be 0.333
        ("x.xx", 1, (1 + 2 / 3 + 3 / 4) / 3, 3 / 4),  # 0.806
        ("xx.x", 1, (1 + 1 + 3 / 4) / 3, 3 / 4),  # 0.917; off by one in the hits it would be 0.667
        ("xxxx", 1, 1.0, 1.0),  # an all-relevant gallery; off by one: 0.758 for 12
    ],
)  # fmt: skip
def test_single_query_by_hand(relevant, rank, average_precision, inverse_penalty):
    found = ranked(relevant)
    assert found["mAP"] == pytest.approx(average_precision, rel=1e-12)
    assert found["mINP"] == pytest.approx(inverse_penalty, rel=1e-12)
    assert [found["rank_1"], found["rank_5"], found["rank_10"]] == [rank <= 1, rank <= 5, rank <= 10]


def test_two_directions_by_hand():
    # Gallery at 0, 10, 20, 30 degrees of identities 0, 1, 0, 2. Queries, with the gallery in the order of their angles:
    #    2 deg, identity 0: 0 10 20 30 -> x . x .   rank 1, AP (1 + 2/3) / 2, INP 2/3
    #    8 deg, identity 0: 10 0 20 30 -> . x x .   rank 2, AP (1/2 + 2/3) / 2, INP 2/3
    #   28 deg, identity 1: 30 20 10 0 -> . . x .   rank 3, AP 1/3, INP 1/3
    #   14 deg, identity 2: 10 20 0 30 -> . . . x   rank 4, AP 1/4, INP 1/4
    sides = unit(2, 8, 28, 14), unit(0, 10, 20, 30), labels(0, 0, 1, 2), labels(0, 1, 0, 2)
    found = retrieval_metrics(*sides, ranks=(1, 2, 3, 4))
    assert [found[f"rank_{k}"] for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert found["mAP"] == pytest.approx((5 / 6 + 7 / 12 + 1 / 3 + 1 / 4) / 4, rel=1e-12)  # 0.5
    assert found["mINP"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 / 4) / 4, rel=1e-12)
    # The other way: 0 deg (0) -> 2(0) 8(0) 14 28: 1; 10 deg (1) -> 8 14 2 28(1): rank 4; 20 deg (0) -> 14 28 8(0) 2(0):
    # rank 3, AP (1/3 + 2/4) / 2; 30 deg (2) -> 28 14(2) 8 2: rank 2.
    back = retrieval_metrics(sides[1], sides[0], sides[3], sides[2], ranks=(1, 2, 3, 4))
    assert [back[f"rank_{k}"] for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert back["mAP"] == pytest.approx((1 + 1 / 4 + 5 / 12 + 1 / 2) / 4, rel=1e-12)


def test_rank_is_divided_by_the_queries_not_by_the_gallery():
    # 2 queries, 8 gallery items, one query right at once: 0.5, not 1/8; the other way 8 queries cannot exceed 1.
    gallery = unit(0, 20, 40, 60, 80, 100, 120, 140)
    gallery_labels = labels(0, 1, 2, 3, 4, 5, 6, 7)
    assert retrieval_metrics(unit(1, 21), gallery, labels(0, 7), gallery_labels)["rank_1"] == 0.5
    texts = unit(*(a + d for a in (0, 90) for d in (-1, 0, 1, 2)))
    found = retrieval_metrics(texts, unit(0, 90), labels(0, 0, 0, 0, 1, 1, 1, 1), labels(0, 1))
    assert set(found.values()) == {1.0}


def test_duplicated_gallery_is_seen_in_the_results():
    # Rank 4 of unique pictures. With every picture listed twice, as in galleries of one row a caption, rank 7 (of the
    # first copy): rank 5 is missed, so a duplicated gallery cannot pass for the real one.
    single = unit(5, 10, 15, 20, 25)
    identities = labels(1, 2, 3, 0, 4)
    assert retrieval_metrics(unit(0), single, labels(0), identities)["rank_5"] == 1.0
    doubled = query_metrics(unit(0), single.repeat_interleave(2, 0), labels(0), identities.repeat_interleave(2))
    assert doubled["rank"].tolist() == [7.0]


# -- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 7, 64, 256, 512, 1000])
@pytest.mark.parametrize("gallery", [6, 37])
def test_collapsed_embeddings_give_the_worst_ranks(dim, gallery, dtype):
    # Equal vectors: matrix products round them differently from column to column, which must not decide the order.
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(dim)).to(dtype)
    identities = torch.arange(gallery).div(2, rounding_mode="floor") if gallery % 2 == 0 else torch.arange(gallery)
    positives = 2 if gallery % 2 == 0 else 1
    found = query_metrics(vector.repeat(gallery, 1), vector.repeat(gallery, 1), identities, identities)
    assert set(found["rank"]) == {gallery - positives + 1}
    # Positives stand last: AP = mean of i / (G - P + i).
    expected = np.mean([i / (gallery - positives + i) for i in range(1, positives + 1)])
    np.testing.assert_allclose(found["average_precision"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["inverse_penalty"], positives / gallery, rtol=1e-12)


def test_a_tie_counts_against_the_query():
    # The gallery at 10 and -10 degrees is as similar to a query at 0.
    assert query_metrics(unit(0), unit(10, -10, 50), labels(1), labels(1, 0, 0))["rank"].tolist() == [2.0]


@pytest.mark.parametrize(("dtype", "degrees"), [(torch.float32, 1e-2), (torch.float64, 1e-9)])
def test_a_small_difference_is_no_tie(dtype, degrees):
    # cos 10 deg - cos 10.01 deg = 3e-5, far above float32's rounding; 3e-12 for a billionth of a degree in float64.
    sides = unit(0).to(dtype), unit(10, -10 - degrees).to(dtype), labels(1), labels(1, 0)
    assert query_metrics(*sides)["rank"].tolist() == [1.0]


# -- properties ------------------------------------------------------------------------------------------------------


def test_length_and_order_are_irrelevant():
    queries, gallery, query_labels, gallery_labels = random_case(20, 30, 6)
    generator = torch.Generator().manual_seed(2)
    q, g = torch.randperm(20, generator=generator), torch.randperm(30, generator=generator)
    scaled = [x * torch.rand(len(x), 1, generator=generator, dtype=x.dtype).mul(8).exp() for x in (queries, gallery)]
    changed = query_metrics(scaled[0][q], scaled[1][g], query_labels[q], gallery_labels[g])
    for key, values in query_metrics(queries, gallery, query_labels, gallery_labels).items():
        np.testing.assert_allclose(changed[key], values[q], rtol=1e-12)


def test_rank_k_rises_with_k_beyond_the_gallery():
    found = retrieval_metrics(*random_case(40, 60, 8), ranks=range(1, 70))
    ranks = [found[f"rank_{k}"] for k in range(1, 70)]
    assert ranks == sorted(ranks)
    assert 0 <= ranks[0] < ranks[-1] == 1.0


@pytest.mark.parametrize(
    "sizes",
    [
        *({"_CHUNK": c} for c in (1, 29, 31, 100, 7 * 31, 10**6)),  # 1, 1, 1, 3, 7 and 20 queries, and what remains
        *({"_BLOCK": b, "_MOST_COMPARED": c} for b in (1, 7, 31, 100) for c in (0, 128)),  # columns, a row, rows
    ],
    ids=str,
)
def test_chunked_equals_full(sizes, monkeypatch):
    case = random_case(20, 31, 6)
    full = query_metrics(*case)
    for name, size in sizes.items():
        monkeypatch.setattr(metrics, name, size)
    for key, values in query_metrics(*case).items():
        np.testing.assert_array_equal(values, full[key])


@pytest.mark.parametrize("chunk", [10**6, 100])  # one product for both directions, and one for each
def test_two_ways_at_once_are_each_direction(chunk, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(5)
    images, texts = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (20, 31))
    image_labels, text_labels = torch.arange(20) % 6, torch.arange(31) % 6
    found = two_way_metrics(images, texts, image_labels, text_labels, ranks=(1, 3))
    assert found == {
        "text_to_image": retrieval_metrics(texts, images, text_labels, image_labels, ranks=(1, 3)),
        "image_to_text": retrieval_metrics(images, texts, image_labels, text_labels, ranks=(1, 3)),
    }
    text_labels[:4] = 9
    with pytest.raises(ValueError, match="4 of 31 queries have no item"):
        two_way_metrics(images, texts, image_labels, text_labels)


def test_labels_of_any_integers_and_embeddings_with_a_gradient():
    queries, gallery, *sides = random_case(20, 31, 6)
    expected = query_metrics(queries, gallery, *sides)
    large = [(10**12 * (side.long() - 3)) for side in sides]
    small = [side.to(torch.int16) for side in sides]
    for changed in (large, small, [large[0], large[1].to(torch.float64)]):
        for key, values in query_metrics(queries.requires_grad_(), gallery, *changed).items():
            np.testing.assert_array_equal(values, expected[key])


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("function", [query_metrics, open_set_metrics, class_retrieval_metrics])
@pytest.mark.parametrize("options", [0, 1], ids=["default", "other"])
def test_no_operation_gives_a_tensor_of_all_pairs(function, options, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 3000)
    sides = random_case(400, 300, 9)
    if function is class_retrieval_metrics:
        function = partial(function, **{name: values[options] for name, values in CLASS_OPTIONS.items()})
        sides = sides[0], sides[2], sides[1], sides[3]
    else:
        sides[2][:5] = 99  # unknown queries
    with LargestTensor() as largest:
        function(*sides)
    assert largest.elements <= 3000  # all pairs: 120,000; the embeddings themselves: 2,400


# -- queries without a positive, wrong input -------------------------------------------------------------------------

WITHOUT = unit(0, 20, 40), unit(1, 18, 41), labels(0, 9, 2), labels(0, 1, 2)


def test_query_without_a_positive_is_an_error_unless_dropped():
    with pytest.raises(ValueError, match="1 of 3 queries"):
        retrieval_metrics(*WITHOUT)
    kept = [0, 2]
    expected = retrieval_metrics(WITHOUT[0][kept], WITHOUT[1], WITHOUT[2][kept], WITHOUT[3])
    assert retrieval_metrics(*WITHOUT, drop_without_positive=True) == expected
    for values in query_metrics(*WITHOUT).values():
        assert np.isnan(values).tolist() == [False, True, False]


TWO = torch.eye(3)[:2], torch.eye(3)[:2], labels(0, 1), labels(0, 1)


@pytest.mark.parametrize(
    ("changed", "options", "found"),
    [
        ({1: torch.zeros(2, 4)}, {}, ["(2, 3)", "(2, 4)"]),
        ({2: labels(0)}, {}, ["query_labels (1,)", "(2, 3)"]),
        ({3: labels(0, 1, 2)}, {}, ["gallery_labels (3,)", "(2, 3)"]),
        ({0: torch.zeros(0, 3), 2: labels()}, {}, ["query_embeddings (0, 3)"]),
        ({1: torch.zeros(0, 3), 3: labels()}, {}, ["gallery_embeddings (0, 3)"]),
        ({0: torch.zeros(3)}, {}, ["query_embeddings (3,)"]),
        ({0: torch.eye(3)[:2] * math.nan}, {}, ["query_embeddings: 6 values are not finite"]),
        ({1: torch.tensor([[0, math.inf, 0], [1, 0, -math.inf]])}, {}, ["gallery_embeddings: 2 values"]),
        ({}, {"ranks": (0, 1)}, ["ranks = (0, 1)"]),
        ({3: labels(2, 3)}, {"drop_without_positive": True}, ["2 of 2 queries"]),
    ],
)
def test_wrong_input(changed, options, found):
    with pytest.raises(ValueError, match=r"expected|differs|finite|queries") as error:
        retrieval_metrics(*(changed.get(i, side) for i, side in enumerate(TWO)), **options)
    assert [text for text in found if text not in str(error.value)] == []


def test_summarize_is_the_mean_over_queries():
    per_query = {
        "rank": np.array([1.0, 2.0, 7.0, 1.0]),
        "average_precision": np.array([1.0, 0.5, 0.0, 0.0]),
        "inverse_penalty": np.array([1.0, 0.25, 0.25, 0.0]),
    }
    expected = {"rank_1": 0.5, "rank_5": 0.75, "rank_10": 1.0, "mAP": 0.375, "mINP": 0.375}
    assert expected.items() <= summarize(per_query).items()


# -- a second opinion ------------------------------------------------------------------------------------------------


def as_torchmetrics_takes_them(queries, gallery, query_labels, gallery_labels):
    """Similarity, relevance and query of every pair, flat: 1 + cosine, as it counts no item of 0 or less as found."""
    similarity = 1 + torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T
    index = torch.arange(len(queries))[:, None].expand_as(similarity)
    return similarity.flatten(), (query_labels[:, None] == gallery_labels).flatten(), index.flatten()


def test_agrees_with_torchmetrics():
    case = random_case(40, 60, 8)
    found = retrieval_metrics(*case, ranks=(1, 5, 10, 100))
    similarity, relevant, index = as_torchmetrics_takes_them(*case)
    for k in (1, 5, 10, 100):
        hits = RetrievalHitRate(top_k=k)(similarity, relevant, indexes=index)
        assert found[f"rank_{k}"] == pytest.approx(float(hits), rel=1e-6), k
    assert found["mAP"] == pytest.approx(float(RetrievalMAP()(similarity, relevant, indexes=index)), rel=1e-6)


# -- open set: a query whose identity may be absent ------------------------------------------------------------------


def slow_open_set(queries, gallery, query_labels, gallery_labels, rates, tie=0.0):
    """From the definitions: every threshold that could matter is tried."""
    unknown, known = [], []  # largest cosine; (largest cosine, whether it is a relevant item's)
    for query, label in zip(queries.tolist(), query_labels.tolist(), strict=True):
        cosines = [math.fsum(a * b for a, b in zip(query, g, strict=True)) / math.hypot(*query) / math.hypot(*g)
                   for g in gallery.tolist()]  # fmt: skip
        own = [c for c, other in zip(cosines, gallery_labels.tolist(), strict=True) if other == label]
        others = [c for c, other in zip(cosines, gallery_labels.tolist(), strict=True) if other != label]
        if own:
            known.append((max(cosines), max(own) > max(others, default=-2) + tie))
        else:
            unknown.append(max(cosines))
    result = {"detection_identification_rate": {}, "threshold": {}}
    for rate in rates:
        fitting = [t for t in unknown if sum(u > t for u in unknown) / len(unknown) <= rate]
        result["threshold"][rate] = min(fitting)
        hits = [right and best > min(fitting) + tie for best, right in known]
        result["detection_identification_rate"][rate] = sum(hits) / len(hits)
    return result


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seed", range(4))
def test_open_set_equals_brute_force(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    identities = torch.arange(150) % 50, torch.randint(30, (40,), generator=generator)  # at least 20 are unknown
    places = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    noise = (torch.randn(len(i), 4, generator=generator, dtype=torch.float64) for i in identities)
    case = *((places[i] + 0.4 * n).to(dtype) for i, n in zip(identities, noise, strict=True)), *identities
    rates = (0.0, 0.01, 0.1, 0.29, 0.5, 0.999)
    found = open_set_metrics(*case, false_alarm_rates=rates)
    expected = slow_open_set(case[0].double(), case[1].double(), *case[2:], rates)
    assert found["detection_identification_rate"] == pytest.approx(expected["detection_identification_rate"])
    assert found["threshold"] == pytest.approx(expected["threshold"], rel=TOLERANCE[dtype])
    assert len(set(expected["detection_identification_rate"].values())) > 2


def test_open_set_by_hand():
    # Gallery at 0 and 90 degrees of identities 0 and 1. Unknown queries are 10, 20, 30 and 40 degrees from the nearest
    # item. Known ones: 5 and 15 off the right item, 25 off the right one, and 12 off the wrong one.
    queries, query_labels = unit(10, 70, 30, 50, 5, 75, 25, 12), labels(7, 7, 8, 9, 0, 1, 0, 1)
    sides = queries, unit(0, 90), query_labels, labels(0, 1)
    found = open_set_metrics(*sides, false_alarm_rates=(0.0, 0.25, 0.5))
    cosines = [math.cos(math.radians(a)) for a in (10, 20, 30)]
    assert list(found["threshold"].values()) == pytest.approx(cosines)  # 0, 1 and 2 of 4 unknown queries are above
    assert list(found["detection_identification_rate"].values()) == [1 / 4, 2 / 4, 3 / 4]
    given = {0.1: math.cos(math.radians(17)), 0.5: -1.0}  # chosen on other data
    assert open_set_metrics(*sides, thresholds=given) == {
        "detection_identification_rate": {0.1: 2 / 4, 0.5: 3 / 4},
        "threshold": given,
        "false_alarm_rate": {0.1: 1 / 4, 0.5: 1.0},
    }


def test_open_set_ties_count_against_the_query():
    # The unknown query is 15 degrees from the nearest item. Known ones: 5 degrees from the right item, a hit; 15
    # degrees from it, a tie with the threshold; 10 degrees from the right item and from the wrong one.
    found = open_set_metrics(unit(35, 25, -15, 10), unit(0, 20), labels(9, 1, 0, 1), labels(0, 1), (0.0,))
    assert found["detection_identification_rate"] == {0.0: 1 / 3}
    # Known and unknown queries of one direction and of many lengths: rounding must not tell them apart.
    direction = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    queries = direction * torch.linspace(0.1, 30, 200)[:, None]
    found = open_set_metrics(
        queries, torch.cat([direction, -direction]), torch.arange(200) % 2 * 9, labels(0, 1), (0.1, 0.5)
    )
    assert set(found["detection_identification_rate"].values()) == {0.0}


@pytest.mark.parametrize(
    ("query_labels", "rates", "found"),
    [
        (labels(0, 1), (0.1,), "2 of 2 queries have"),
        (labels(5, 6), (0.1,), "0 of 2 queries have"),
        (labels(0, 5), (1.0,), r"false_alarm_rates = \(1.0,\)"),
        (labels(0, 5), (0.1, math.nan), "false_alarm_rates"),
        (labels(0), (0.1,), r"query_labels \(1,\)"),
    ],
)
def test_wrong_open_set_input(query_labels, rates, found):
    with pytest.raises(ValueError, match=found):
        open_set_metrics(unit(0, 1), unit(0, 1), query_labels, labels(0, 1), rates)


# -- intervals -------------------------------------------------------------------------------------------------------


def clustered(generator: np.random.Generator, identities: int = 40, per_identity: int = 6):
    """Results whose mean is 0, with as much variance between identities as within: not independent."""
    sizes = generator.integers(1, 2 * per_identity, identities)
    identity = np.repeat(np.arange(identities), sizes)
    return generator.normal(size=identities)[identity] + generator.normal(size=len(identity)), identity


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_interval_covers_as_often_as_it_says(confidence):
    # 200 repetitions: three standard errors are 0.11 at 0.5 and 0.05 at 0.95; a percentile interval of 40 identities
    # is itself a few percent short. Resampling single queries would cover less than 0.8 in place of 0.95.
    generator = np.random.default_rng(0)
    hits = []
    for seed in range(200):
        low, high = bootstrap_interval(*clustered(generator), confidence, resamples=200, seed=seed)
        hits.append(low <= 0 <= high)
    slack = 3 * np.sqrt(confidence * (1 - confidence) / 200) + 0.04
    assert np.mean(hits) == pytest.approx(confidence, abs=slack)


def test_interval_is_of_the_mean_over_queries():
    # Identity 0 has one query of value 1, identity 1 three of value 0. Resamples: (0,0): 1, (0,1) and (1,0): 1/4,
    # (1,1): 0, so the middle half, from the quartiles, is [0.25 or less, 0.25 or more]; a mean of identities' means
    # would give 0.5.
    values, identity = np.array([1.0, 0, 0, 0]), np.array([7, 3, 3, 3])
    assert bootstrap_interval(values, identity, confidence=0.3) == pytest.approx((0.25, 0.25))
    assert bootstrap_interval(values, identity, confidence=0.95) == pytest.approx((0.0, 1.0))
    assert bootstrap_interval(np.ones(6), np.arange(6)) == (1.0, 1.0)


def test_interval_repeats_with_its_seed():
    values, identity = clustered(np.random.default_rng(2))
    found = bootstrap_interval(values, identity, seed=3)
    assert found == bootstrap_interval(values, identity, seed=3) != bootstrap_interval(values, identity, seed=4)


@pytest.mark.parametrize(
    ("values", "identities", "message"),
    [(np.ones(3), np.ones(2), r"\(3,\).*\(2,\)"), (np.ones(3), np.zeros(3), "one identity")],
)
def test_interval_of_wrong_input(values, identities, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, identities)


# -- classes: CUB and Oxford Flowers ---------------------------------------------------------------------------------

COMBINATIONS = [dict(zip(CLASS_OPTIONS, values, strict=True)) for values in itertools.product(*CLASS_OPTIONS.values())]


def class_case(dtype=torch.float64, seed: int = 4, integers: bool = False):
    """37 images and 58 captions of the classes 3, 5 and 8, of unequal numbers, in shuffled order, of any length."""
    generator = torch.Generator().manual_seed(seed)
    image_classes = torch.tensor([3] * 4 + [5] * 21 + [8] * 12)[torch.randperm(37, generator=generator)]
    caption_classes = torch.tensor([3] * 31 + [5] * 9 + [8] * 18)[torch.randperm(58, generator=generator)]
    centres = 0.7 * torch.randn(9, 4, generator=generator, dtype=torch.float64)

    def drawn(classes):
        if integers:
            return torch.randint(-1, 2, (len(classes), 2), generator=generator).to(dtype)
        noise = torch.randn(len(classes), 4, generator=generator, dtype=torch.float64)
        lengths = torch.rand(len(classes), 1, generator=generator, dtype=torch.float64).mul(2).exp()
        return ((centres[classes] + noise) * lengths).to(dtype)

    return drawn(image_classes), image_classes, drawn(caption_classes), caption_classes


def slow_class_metrics(images, image_classes, captions, caption_classes, k, query, gallery, similarity, tie=1e-10):
    """From the definitions, in Python floats. Whatever is as similar as a relevant item stands before it."""
    images, captions = images.double().tolist(), captions.double().tolist()
    image_classes, caption_classes = image_classes.tolist(), caption_classes.tolist()
    classes = sorted(set(image_classes))

    def score(a, b):
        product = math.fsum(x * y for x, y in zip(a, b, strict=True))
        lengths = math.hypot(*a) * math.hypot(*b) if similarity == "cosine" else 1.0
        return product / lengths if lengths else 0.0

    def ordered(item, item_class, others, their_classes):
        """Whether each of the others is relevant, in the order of the ranking."""
        left = [(score(item, o), c == item_class) for o, c in zip(others, their_classes, strict=True)]
        result = []
        while left:
            best = max(s for s, _ in left)
            first = min((x for x in left if x[0] >= best - tie), key=lambda x: (x[1], -x[0]))
            left.remove(first)
            result.append(first[1])
        return result

    means = []
    for c in classes:
        own = [e for e, d in zip(captions, caption_classes, strict=True) if d == c]
        means.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)])
    texts, text_classes = (means, classes) if gallery == "class_mean" else (captions, caption_classes)
    right = [ordered(i, c, texts, text_classes)[0] for i, c in zip(images, image_classes, strict=True)]
    of_class = []
    for c, mean in zip(classes, means, strict=True):
        own = [e for e, d in zip(captions, caption_classes, strict=True) if d == c]
        queries = [mean] if query == "class_mean" else own
        precisions = [sum(ordered(q, c, images, image_classes)[:k]) / min(k, len(images)) for q in queries]
        of_class.append(sum(precisions) / len(precisions))
    return {"image_to_text_rank_1": sum(right) / len(right), f"text_to_image_ap_{k}": sum(of_class) / len(of_class)}


@pytest.mark.parametrize(("dtype", "integers"), [(torch.float32, False), (torch.float64, False), (torch.float64, True)])
@pytest.mark.parametrize("k", [1, 7, 50])  # of 37 images
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(o.values()))
def test_class_metrics_equal_brute_force(options, k, dtype, integers):
    case = class_case(dtype, integers=integers)  # integers: nine vectors in all, so ties and vectors of zero length
    found = class_retrieval_metrics(*case, k=k, **options)
    assert found == pytest.approx(slow_class_metrics(*case, k=k, **options), rel=1e-12)
    assert list(found) == ["image_to_text_rank_1", f"text_to_image_ap_{k}"]


def test_class_metrics_by_hand():
    # Images at 0, 10, 20, 60, 90 of classes 0, 0, 1, 1, 1. Captions of class 0 at -10 and 24, of class 1 at 70 and 80;
    # all of length 1, so that the means are at 7 and 75 degrees.
    images, image_classes = unit(0, 10, 20, 60, 90), labels(0, 0, 1, 1, 1)
    captions, caption_classes = unit(-10, 24, 70, 80), labels(0, 0, 1, 1)
    sides = images, image_classes, captions, caption_classes

    def values(k, **options):
        return tuple(class_retrieval_metrics(*sides, k=k, **options).values())

    # Image to text, nearest caption: 0 -> -10 (0), 10 -> 24 (0), 20 -> 24 (0, wrong), 60 -> 70, 90 -> 80: 4 of 5
    # images (over the classes it would be (1 + 2/3) / 2).
    # Text to image by the means: 7 -> 10 0 20 ..: first three x x . = 2/3; 75 -> 60 90 20: 3/3.
    assert values(3) == pytest.approx((4 / 5, (2 / 3 + 1) / 2), rel=1e-12)
    # By single captions: -10 -> 0 10 20: 2/3; 24 -> 20 10 0: 2/3; 70 -> 60 90 20: 1; 80 -> 90 60 20: 1; at k = 1:
    # 1, 0 | 1, 1, of the means 1 | 1.
    assert values(3, query="caption")[1] == pytest.approx((2 / 3 + 1) / 2, rel=1e-12)
    assert (values(1)[1], values(1, query="caption")[1]) == (1.0, (1 / 2 + 1) / 2)
    # Nearest mean of 7 and 75: 20 -> 7 (wrong), the others right.
    assert values(1, gallery="class_mean")[0] == 4 / 5


@pytest.mark.parametrize(
    ("relevant", "k", "expected"),
    [
        ("x..xx", 3, 1 / 3),  # truncated AP over the class's images: (1/1) / 3 as well, but over those found: 1
        (".xx..", 3, 2 / 3),  # truncated AP: (1/2 + 2/3) / 2 = 0.583
        ("..x..", 3, 1 / 3),  # truncated AP: 1/3; of a single relevant image, recall@3: 1
        ("xx...", 4, 2 / 4),  # every relevant image is found first: AP 1, precision 1/2
        ("xx...", 50, 2 / 5),  # as many as there are images: not 2/50
    ],
)
def test_ap_at_k_is_precision_and_no_truncated_ap(relevant, k, expected):
    gallery = unit(*(5.0 * (i + 1) for i in range(len(relevant))))
    classes = torch.tensor([int(c == "x") for c in relevant])
    # The other class's caption, opposite: its ranking is the reverse.
    found = class_retrieval_metrics(gallery, classes, unit(0, 180), labels(1, 0), k=k)[f"text_to_image_ap_{k}"]
    other = relevant[::-1][:k].count(".") / min(k, len(relevant))
    assert found == pytest.approx((expected + other) / 2, rel=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equal_vectors_of_two_classes_tie_against_the_query(dtype, scale, similarity):
    # Every image is the same vector and every caption too, of any scale: nothing is told apart. Classes of 3 and 5
    # images: those of the other class stand first.
    vector = scale * torch.randn(512, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    sides = vector.repeat(8, 1), labels(*[0] * 3, *[1] * 5), vector.repeat(1200, 1), torch.arange(1200) % 7 // 6
    for query, gallery in itertools.product(CLASS_OPTIONS["query"], CLASS_OPTIONS["gallery"]):
        found = class_retrieval_metrics(*sides, k=6, query=query, gallery=gallery, similarity=similarity)
        assert tuple(found.values()) == pytest.approx((0.0, (1 / 6 + 3 / 6) / 2), rel=1e-12)


def test_the_order_of_a_classs_captions_breaks_no_tie():
    # Two classes of the same 600 captions, long ones that nearly cancel, in another order: their means are one.
    generator = torch.Generator().manual_seed(0)
    long = 1000 * torch.randn(300, 64, generator=generator)
    captions = torch.cat([long, -long]) + torch.randn(600, 64, generator=generator)
    sides = torch.randn(20, 64, generator=generator), torch.arange(20) % 2, captions.repeat(2, 1)
    sides[2][600:] = captions[torch.randperm(600, generator=generator)]
    found = class_retrieval_metrics(*sides, torch.arange(1200) // 600, gallery="class_mean")
    assert found["image_to_text_rank_1"] == 0.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_small_difference_of_inner_products_is_no_tie(scale):
    # 1 and 1.0001 times one direction: far more apart than rounding, whatever the scale.
    images = scale * torch.tensor([[1.0, 0], [1.0001, 0], [0, 1], [0, 1.0001]])
    sides = images, labels(1, 0, 0, 1), scale * torch.eye(2), labels(0, 1)
    assert class_retrieval_metrics(*sides, k=1, similarity="dot")["text_to_image_ap_1"] == 1.0
    assert class_retrieval_metrics(*sides, k=1)["text_to_image_ap_1"] == 0.0  # by cosine they do tie


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("chunk", [1, 58, 100, 7 * 37, 10**6])
def test_class_metrics_do_not_depend_on_the_chunks(options, chunk, monkeypatch):
    case = class_case()
    full = class_retrieval_metrics(*case, k=7, **options)
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    assert class_retrieval_metrics(*case, k=7, **options) == full


CLASS_SIDES = unit(0, 20, 40), labels(0, 1, 1), unit(1, 21), labels(0, 1)


@pytest.mark.parametrize(
    ("changed", "options", "found"),
    [
        ({}, {"query": "mean"}, "query = 'mean': expected one of class_mean, caption"),
        ({}, {"gallery": "image"}, "gallery = 'image': expected one of caption, class_mean"),
        ({}, {"similarity": "l2"}, "similarity = 'l2': expected one of cosine, dot"),
        ({}, {"k": 0}, "k = 0"),
        ({0: torch.zeros(3, 2, 1)}, {}, "image_embeddings (3, 2, 1)"),
        ({1: labels(0, 1)}, {}, "image_classes (2,)"),
        ({2: torch.zeros(2, 5)}, {}, "caption_embeddings (2, 5): D differs"),
        ({3: labels(0, 1, 1)}, {}, "caption_classes (3,)"),
        ({0: unit(), 1: labels()}, {}, "image_embeddings (0, 2)"),
        ({2: unit(0, math.nan)}, {}, "caption_embeddings: 2 values are not finite"),
        ({0: unit(0, 1, math.inf)}, {}, "image_embeddings: 2 values are not finite"),
        ({3: labels(0, 7)}, {}, "1 of 2 classes have no image; the first is 7"),
        ({1: labels(0, 1, 4)}, {}, "1 of 3 classes have no caption; the first is 4"),
    ],
)
def test_wrong_class_input(changed, options, found):
    sides = [changed.get(i, side) for i, side in enumerate(CLASS_SIDES)]
    with pytest.raises(ValueError, match=r"expected|differs|finite|classes have no") as error:
        class_retrieval_metrics(*sides, **options)
    assert found in str(error.value)
