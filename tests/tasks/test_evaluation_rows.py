"""Which rows are answered for a score, and what they go by."""

from collections import Counter

from weighbridge.tasks.data import Row
from weighbridge.tasks.evaluation_rows import named, sample


def rows(count: int, of_cluster: int = 0) -> list[Row]:
    return named(
        [
            Row(
                prompt=f"{number}?",
                completion="yes",
                cluster=f"document {number // of_cluster}" if of_cluster else "",
            )
            for number in range(count)
        ]
    )


def test_rows_go_by_their_own_ids_or_else_by_what_they_say() -> None:
    own = Row(prompt="a", completion="b", id="7")
    said, again, other = (Row(prompt="a", completion=text) for text in ("b", "b", "c"))
    ids = [row.id for row in named([own, said, again, other])]
    assert ids[0] == "7"
    assert ids[2] == f"{ids[1]}-2"
    assert len(set(ids)) == 4
    assert ids[1:] == [row.id for row in named([said, again, other])]


def test_a_sample_is_the_same_whatever_the_order_and_not_the_first_rows() -> None:
    every = rows(200)
    drawn = sample(every, 50)
    assert drawn == [row for row in every if row in drawn]
    assert {row.id for row in sample(every[::-1], 50)} == {row.id for row in drawn}
    # By chance a quarter of the first fifty.
    assert 3 < len([row for row in every[:50] if row in drawn]) < 25


def test_a_larger_sample_holds_the_smaller_one() -> None:
    every = rows(200)
    assert {row.id for row in sample(every, 20)} < {row.id for row in sample(every, 60)}


def test_every_cluster_gives_as_large_a_part_of_its_rows() -> None:
    drawn = Counter(row.cluster for row in sample(rows(200, of_cluster=20), 50))
    assert len(drawn) == 10
    assert all(4 <= count <= 6 for count in drawn.values())


def test_rows_of_large_and_small_clusters_are_drawn_alike() -> None:
    large = [row.model_copy(update={"cluster": "large"}) for row in rows(400)]
    every = [*large[:200], *(row.model_copy(update={"cluster": ""}) for row in large[200:])]
    drawn = Counter(row.cluster for row in sample(every, 100))
    assert 40 <= drawn["large"] <= 60


def test_there_is_no_sample_of_fewer_rows_than_the_limit() -> None:
    assert sample(rows(5), 5) == sample(rows(5), None) == rows(5)
