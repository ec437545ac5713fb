from __future__ import annotations

import numpy as np
import pytest
import torch

from procreward.engine import Clip
from procreward.engine.reading.prefixes import (
    Content,
    Prefix,
    PrefixStore,
    describe_content,
    owned_by,
)
from procreward.engine.reading.prompt import Chat

FRAMES = np.zeros((3, 8, 8, 3), np.uint8)


def chat(kinds: list[int]) -> Chat:
    length = len(kinds)
    return Chat(
        ids=np.arange(length),
        positions=np.tile(np.arange(length), (3, 1)),
        kinds=np.asarray(kinds),
        next_position=length,
    )


def clip(*steps: int, stream: str = "a", video: bool = False) -> Clip:
    return Clip(
        frames=FRAMES[: len(steps)],
        keys=tuple((stream, "main", step) for step in steps),
        video=video,
        frame_indices=tuple(range(len(steps))) if video else None,
        fps=1.0 if video else None,
    )


def content(*steps: int, stream: str | None = "a") -> Content:
    """Two words, two tokens for each picture, one word."""
    found = describe_content(
        chat([0, 0, *[1, 1] * len(steps), 0]), [clip(*steps)], [[2] * len(steps)], stream
    )
    assert found is not None
    return found


def prefix(tokens: np.ndarray, layers: int = 1) -> Prefix:
    part = torch.zeros(1, len(tokens), 4)
    return Prefix(tokens=tokens, keys=[part] * layers, values=[part] * layers)


def test_content_tells_pictures_apart_by_their_names() -> None:
    one, other = content(0, 1), content(0, 2)
    assert one.tokens[:2].tolist() == [0, 1]
    assert (one.tokens[2:6] < 0).all()
    assert one.shared_with(content(0, 1).tokens) == 7
    assert one.shared_with(other.tokens) == 4
    assert len(set(one.tokens.tolist())) == 7
    assert (one.head, one.first_end) == (2, 4)


def test_pictures_of_others_belong_to_the_head() -> None:
    demo, own = clip(0, stream="demo:x"), clip(5)
    found = describe_content(chat([0, 1, 1, 0, 1, 1, 0]), [demo, own], [[2], [2]], "a/main")
    assert found is not None
    assert (found.head, found.first_end) == (4, 6)


def test_the_groups_of_a_video_are_named_by_both_frames() -> None:
    def video(*steps: int) -> Content:
        found = describe_content(chat([2, 2, 2, 2]), [clip(*steps, video=True)], [[2, 2]], "a")
        assert found is not None
        return found

    assert video(0, 1, 2).shared_with(video(0, 1, 3).tokens) == 2
    assert video(0, 1, 2).shared_with(video(0, 2, 3).tokens) == 0


def test_pictures_without_names_cannot_be_compared() -> None:
    nameless = Clip(frames=FRAMES[:1])
    assert describe_content(chat([1, 1]), [nameless], [[2]], "a") is None


def test_words_alone_are_all_head() -> None:
    found = describe_content(chat([0, 0, 0]), [], [], None)
    assert found is not None
    assert (found.head, found.first_end) == (3, 3)


@pytest.mark.parametrize(
    ("name", "stream", "owned"),
    [("a", "a", True), ("a", "a/main", True), ("a/main", "a", True), ("ab", "a", False)],
)
def test_owned_by(name: str, stream: str, owned: bool) -> None:
    assert owned_by(name, stream) is owned


def test_a_stream_is_kept_while_its_windows_begin_alike() -> None:
    store = PrefixStore(10_000)
    assert store.wants("a", content(0, 0, 1))
    store.keep_stream("a", prefix(content(0, 0, 1).tokens))
    assert store.of_stream("a", content(0, 1, 2))[1] == 4
    assert store.wants("a", content(0, 1, 2))
    assert not store.wants("a", content(1, 2, 3))
    store.keep_stream("a", None)
    assert not store.wants("a", content(1, 2, 3))
    assert store.of_stream("a", content(1, 2, 3)) == (None, 0)
    assert store.nbytes == 0


def test_memory_is_bounded_and_shared_heads_outlive_streams() -> None:
    tokens = np.arange(10)
    size = prefix(tokens).nbytes
    store = PrefixStore(8 * size)
    head = Content(tokens=tokens, head=10, first_end=10)
    store.keep_shared(prefix(tokens))
    for number in range(20):
        store.keep_stream(f"s{number}", prefix(tokens + number))
        assert store.nbytes <= 8 * size
    assert store.shared(head) is not None
    assert store.of_stream("s19", content(0))[0] is not None
    assert store.of_stream("s0", content(0))[0] is None


def test_streams_that_nobody_releases_do_not_add_up() -> None:
    store = PrefixStore(10_000)
    store.keep_stream("first", prefix(np.arange(5)))
    for number in range(4096):
        store.keep_stream(f"s{number}", None)
    assert store.nbytes == 0
    assert store.wants("first", content(0))
    assert not store.wants("s0", content(0))


def test_a_head_that_is_kept_twice_counts_once() -> None:
    store = PrefixStore(10_000)
    for _ in range(2):
        store.keep_shared(prefix(np.arange(5)))
    assert store.nbytes == prefix(np.arange(5)).nbytes


def test_what_is_too_large_is_not_kept() -> None:
    store = PrefixStore(100)
    assert [store.takes(size) for size in (1, 50, 51)] == [True, True, False]
    store.keep_shared(prefix(np.arange(50)))
    store.keep_stream("a", prefix(np.arange(50)))
    assert store.nbytes == 0


def test_release_forgets_a_stream_and_its_parts() -> None:
    store = PrefixStore(10_000)
    for name in ("a/left", "a/right", "ab"):
        store.keep_stream(name, prefix(np.arange(5)))
    store.release(["a"])
    assert store.nbytes == prefix(np.arange(5)).nbytes
    assert store.of_stream("ab", content(0))[0] is not None
