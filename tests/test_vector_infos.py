from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from hypothesis import given
from hypothesis import strategies as st

from procreward._vector_infos import add_entries, merge_infos, select_infos, single_info
from tests.vectors import assert_same


def vector(infos: list[dict[str, Any] | None]) -> dict[str, Any]:
    """As Gymnasium puts infos together; None for a sub-environment that gave none."""
    envs: Any = VectorEnv()
    envs.num_envs = len(infos)
    out: dict[str, Any] = {}
    for index, info in enumerate(infos):
        out = envs._add_info(out, info or {}, index)
    return out


leaves = st.fixed_dictionaries(
    {},
    optional={
        "success": st.booleans(),
        "count": st.integers(0, 9),
        "distance": st.floats(0, 1),
        "task": st.text(max_size=3),
        "place": st.integers(0, 9).map(lambda n: np.full(2, n, np.float32)),
    },
)


def _nest(info: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    return {**info, "nested": inner} if inner else info


infos = st.lists(st.builds(_nest, leaves, leaves), min_size=3, max_size=3)
masks = st.lists(st.booleans(), min_size=3, max_size=3).map(np.array)


@given(infos, masks)
def test_selected_is_what_gymnasium_makes_of_those_alone(given: Any, mask: Any) -> None:
    alone = vector([info if kept else None for info, kept in zip(given, mask, strict=True)])
    assert_same(select_infos(vector(given), mask), alone)


@given(infos, infos, masks)
def test_merged_is_what_gymnasium_makes_of_both(one: Any, other: Any, mask: Any) -> None:
    both = [theirs if new else ours for ours, theirs, new in zip(one, other, mask, strict=True)]
    merged = merge_infos(select_infos(vector(one), ~mask), select_infos(vector(other), mask))
    assert_same(merged, vector(both))


@given(infos)
def test_single_is_what_was_given(given: Any) -> None:
    together = vector(given)
    for index, info in enumerate(given):
        assert_same(_plain(single_info(together, index)), _plain(info))


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else np.asarray(value).tolist()
        for key, value in info.items()
    }


def test_dictionaries_without_masks_inside() -> None:
    given = {"episode": {"r": np.array([1.0, 2.0])}, "_episode": np.array([True, False])}
    first = select_infos(given, np.array([True, False]))
    assert first["episode"]["r"].tolist() == [1.0, 0.0]
    assert select_infos(given, np.array([False, True])) == {}
    assert single_info(given, 0) == {"episode": {"r": 1.0}}


def test_what_is_no_array_over_sub_environments_stays() -> None:
    given = {"seed": 7, "names": ["a", "b", "c"]}
    mask = np.array([True, False])
    assert select_infos(given, mask) == given
    assert merge_infos(given, {"seed": 8})["seed"] == 8
    assert single_info({"seed": 7}, 1) == {"seed": 7}


def test_other_dtypes_are_not_truncated() -> None:
    one = vector([{"x": 1}, None])
    other = vector([None, {"x": 0.5}])
    assert merge_infos(one, other)["x"].tolist() == [1.0, 0.5]
    texts = merge_infos(vector([{"x": "a"}, None]), other)["x"]
    assert texts.tolist() == ["a", 0.5]


def test_entries() -> None:
    entry = {"progress": 0.5, "queried": True, "age_steps": 3}
    given = {"success": np.zeros(2, bool)}
    infos = add_entries(given, {1: entry}, 2)
    assert list(given) == ["success"]
    assert infos["_procreward"].tolist() == [False, True]
    ours = infos["procreward"]
    assert ours["progress"].tolist() == [0.0, 0.5]
    assert ours["_queried"].tolist() == [False, True]
    assert [ours[key].dtype for key in entry] == [np.float64, np.bool_, np.int64]
    assert add_entries(given, {}, 2) == given
