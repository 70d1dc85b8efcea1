"""Retrieval metrics against brute force, hand-computed rankings and the mistakes of public person-search code."""

import math

import numpy as np
import pytest
import torch

from timam import metrics
from timam.metrics import query_metrics, retrieval_metrics, summarize

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
def test_equals_brute_force(queries, gallery, identities, dtype):
    case = random_case(queries, gallery, identities, dtype)  # 30 identities: some queries without a positive
    found = query_metrics(*case)
    for key, expected in slow_metrics(case[0].double(), case[1].double(), *case[2:]).items():
        np.testing.assert_allclose(found[key], expected, rtol=TOLERANCE[dtype])
        assert found[key].dtype == np.float64


def test_equals_brute_force_with_ties():
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


def test_relevance_is_by_identity_not_by_position():
    # Each query's own position holds another identity; its two positives stand elsewhere.
    found = retrieval_metrics(unit(0, 90), unit(90, 0, 89, 1), labels(5, 6), labels(6, 5, 6, 5))
    assert found["rank_1"] == found["mAP"] == found["mINP"] == 1.0


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


def test_cosine_similarity_ignores_the_length_of_the_rows():
    queries, gallery, *sides = random_case(20, 30, 6)
    generator = torch.Generator().manual_seed(2)
    scaled = [x * torch.rand(len(x), 1, generator=generator, dtype=x.dtype).mul(8).exp() for x in (queries, gallery)]
    for key, values in query_metrics(queries, gallery, *sides).items():
        np.testing.assert_allclose(query_metrics(*scaled, *sides)[key], values, rtol=1e-12)


def test_rank_k_rises_with_k_and_all_values_are_fractions():
    found = retrieval_metrics(*random_case(40, 60, 8), ranks=range(1, 70))
    ranks = [found[f"rank_{k}"] for k in range(1, 70)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1] == 1.0
    assert all(0 <= value <= 1 for value in found.values())


def test_order_of_gallery_and_queries_is_irrelevant():
    queries, gallery, query_labels, gallery_labels = random_case(20, 30, 6)
    q, g = torch.randperm(20), torch.randperm(30)
    a = retrieval_metrics(queries, gallery, query_labels, gallery_labels)
    b = retrieval_metrics(queries[q], gallery[g], query_labels[q], gallery_labels[g])
    assert a == pytest.approx(b, rel=1e-12)


def test_a_gallery_smaller_than_k_is_no_error():
    found = retrieval_metrics(unit(0), unit(10, 5), labels(1), labels(1, 0), ranks=(1, 5, 1000))
    assert (found["rank_1"], found["rank_5"], found["rank_1000"]) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("chunk", [1, 29, 31, 100, 7 * 31, 10**6])
def test_chunked_equals_full(chunk, monkeypatch):
    case = random_case(20, 31, 6)  # chunks of 1, 1, 1, 3, 7 and 20 queries; 3 and 7 leave a smaller one at the end
    full = query_metrics(*case)
    monkeypatch.setattr(metrics, "_CHUNK", chunk)
    for key, values in query_metrics(*case).items():
        np.testing.assert_array_equal(values, full[key])


def test_similarities_never_stand_in_memory_at_once(monkeypatch):
    largest = []
    original = metrics._chunk_metrics

    def watched(similarity, *sides):
        largest.append(similarity.numel())
        return original(similarity, *sides)

    monkeypatch.setattr(metrics, "_chunk_metrics", watched)
    monkeypatch.setattr(metrics, "_CHUNK", 300)
    query_metrics(*random_case(200, 50, 6))
    assert max(largest) <= 300
    assert sum(largest) == 200 * 50


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


def test_no_operation_gives_a_tensor_of_all_pairs(monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 3000)
    case = random_case(400, 300, 6)
    with LargestTensor() as largest:
        query_metrics(*case)
    assert largest.elements <= 3000  # all pairs: 120,000; the embeddings themselves: 2,400


# -- queries without a positive, wrong input -------------------------------------------------------------------------

WITHOUT = unit(0, 20, 40), unit(1, 18, 41), labels(0, 9, 2), labels(0, 1, 2)


def test_query_without_a_positive_is_an_error():
    with pytest.raises(ValueError, match="1 of 3 queries"):
        retrieval_metrics(*WITHOUT)


def test_queries_without_a_positive_can_be_dropped():
    dropped = retrieval_metrics(*WITHOUT, drop_without_positive=True)
    kept = [0, 2]
    assert dropped == retrieval_metrics(WITHOUT[0][kept], WITHOUT[1], WITHOUT[2][kept], WITHOUT[3])
    assert dropped["rank_1"] == 1.0


def test_query_metrics_marks_queries_without_a_positive():
    for values in query_metrics(*WITHOUT).values():
        assert np.isnan(values).tolist() == [False, True, False]


def test_no_query_with_a_positive_is_an_error_even_when_dropped():
    with pytest.raises(ValueError, match="2 of 2"):
        retrieval_metrics(unit(0, 1), unit(0, 1), labels(0, 1), labels(2, 3), drop_without_positive=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_finite_are_an_error(value, side):
    sides = [unit(0, 20), unit(1, 21)]
    sides[side][1, 0] = value
    with pytest.raises(ValueError, match=("query", "gallery")[side] + ".*1 values are not finite"):
        retrieval_metrics(*sides, labels(0, 1), labels(0, 1))


@pytest.mark.parametrize(
    ("sides", "found"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4), labels(0, 1), labels(0, 1)), ["(2, 3)", "(2, 4)"]),
        ((torch.zeros(2, 3), torch.zeros(2, 3), labels(0), labels(0, 1)), ["query_labels (1,)", "(2, 3)"]),
        ((torch.zeros(2, 3), torch.zeros(2, 3), labels(0, 1), labels(0, 1, 2)), ["gallery_labels (3,)", "(2, 3)"]),
        ((torch.zeros(0, 3), torch.zeros(2, 3), labels(), labels(0, 1)), ["query_embeddings (0, 3)"]),
        ((torch.zeros(2, 3), torch.zeros(0, 3), labels(0, 1), labels()), ["gallery_embeddings (0, 3)"]),
        ((torch.zeros(3), torch.zeros(2, 3), labels(0, 1, 2), labels(0, 1)), ["query_embeddings (3,)"]),
    ],
)
def test_shapes_that_do_not_fit(sides, found):
    with pytest.raises(ValueError, match=r"expected|differs") as error:
        retrieval_metrics(*sides)
    assert [text for text in found if text not in str(error.value)] == []


def test_rank_below_one_is_an_error():
    with pytest.raises(ValueError, match="ranks"):
        retrieval_metrics(unit(0), unit(0), labels(0), labels(0), ranks=(0, 1))


def test_summarize_is_the_mean_over_queries():
    per_query = {
        "rank": np.array([1.0, 2.0, 7.0, 1.0]),
        "average_precision": np.array([1.0, 0.5, 0.0, 0.0]),
        "inverse_penalty": np.array([1.0, 0.25, 0.25, 0.0]),
    }
    expected = {"rank_1": 0.5, "rank_5": 0.75, "rank_10": 1.0, "mAP": 0.375, "mINP": 0.375}
    assert summarize(per_query) == expected
