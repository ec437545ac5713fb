from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine import Clip, FrameKey
from procreward.engine.loading import LoadedModel
from procreward.engine.vision.frame_store import FrameEncoder, FrameStore
from procreward.engine.vision.preprocess import preprocess_images, preprocess_video
from procreward.engine.vision.tower import Features, VisionTower
from procreward.errors import ConfigError, FrameError
from procreward.types import Frames
from tests.engine.vision_models import QWEN3_IMAGES, qwen3, qwen25

MODEL = qwen3()
MIB = 2**20
# One 32x64 frame: 2 tokens x 32 numbers x 4 levels x 4 bytes.
FRAME_BYTES = 1024
LONG = 40


def episode(stream: str, view: str, height: int = 32, width: int = 64) -> Frames:
    """All frames of one view of one episode."""
    rng = np.random.default_rng([*f"{stream}{view}".encode(), height])
    return rng.integers(0, 256, (LONG, height, width, 3), dtype=np.uint8)


def window(
    steps: list[int],
    *,
    stream: str = "env0",
    view: str = "front",
    video: bool = False,
    keyed: bool = True,
    height: int = 32,
) -> Clip:
    """The frames of some steps."""
    keys: tuple[FrameKey, ...] = tuple((stream, view, step) for step in steps)
    return Clip(
        frames=episode(stream, view, height)[steps],
        keys=keys if keyed else None,
        video=video,
        frame_indices=tuple(range(len(steps))),
        fps=10.0,
    )


def encoder(max_bytes: int = MIB, *, loaded: LoadedModel = MODEL) -> FrameEncoder:
    return FrameEncoder(loaded, exact=True, max_bytes=max_bytes)


def counts(used: FrameEncoder) -> tuple[int, int]:
    return used.stats.frames_encoded, used.stats.frames_reused


def plain(clip: Clip) -> Features:
    """What the tower makes of a clip by itself."""
    preprocess = preprocess_video if clip.video else preprocess_images
    return VisionTower(MODEL, exact=True).encode([preprocess(clip.frames, QWEN3_IMAGES)])[0]


def same(one: Features, other: Features) -> None:
    """The same up to how products of another size are rounded."""
    torch.testing.assert_close(one.levels, other.levels, rtol=1e-4, atol=1e-4)


def test_a_sliding_window_encodes_its_newest_frame_only() -> None:
    used = encoder()
    for start in range(5):
        clip = window(list(range(start, start + 8)))
        same(used.encode([clip])[0], plain(clip))
    assert counts(used) == (8 + 4, 4 * 7)
    assert used.stats.frames_kept == 12
    assert used.stats.bytes_kept == 12 * FRAME_BYTES


def test_features_found_again_are_the_same_to_the_bit() -> None:
    used = encoder()
    first = used.encode([window([0, 1, 2, 3])])[0]
    again = used.encode([window([2, 3, 4])])[0]
    assert torch.equal(again.levels[:, :4], first.levels[:, 4:])


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_what_is_announced_is_encoded_meanwhile_and_the_same_to_the_bit() -> None:
    used, other = encoder(), encoder()
    first, second = window([0, 1, 2, 3]), window([2, 3, 4, 5])
    used.announce([second, window([9], keyed=False)])
    used.encode([first])
    with used.ahead():
        pass
    assert used.stats.frames_kept == 6
    found = used.encode([second])[0]
    other.encode([first])
    assert torch.equal(found.levels, other.encode([second])[0].levels)
    assert counts(used) == counts(other) == (6, 2)


@pytest.mark.usefixtures("_one_thread")
def test_announcing_does_nothing_twice_and_hides_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = encoder()
    odd = replace(window([0, 1]), keys=(("env0", "front", 0),))
    used.announce([odd])
    with caplog.at_level(logging.DEBUG), used.ahead():
        pass
    assert "encoding ahead failed" in caplog.text
    with used.ahead():
        assert used.stats.frames_kept == 0
    with pytest.raises(ConfigError, match="keys"):
        used.encode([odd])


def test_with_several_threads_nothing_is_encoded_ahead() -> None:
    used, before = encoder(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        used.announce([window([0, 1])])
    finally:
        torch.set_num_threads(before)
    with used.ahead():
        pass
    assert used.stats.frames_kept == 0


def test_all_is_forgotten() -> None:
    used = encoder()
    used.encode([window([0, 1])])
    used.forget()
    assert used.stats.frames_kept == used.stats.bytes_kept == 0
    used.encode([window([0, 1])])
    assert counts(used) == (4, 0)


def test_padding_is_encoded_once() -> None:
    used = encoder()
    clip = window([0, 0, 0, 0, 1])
    same(used.encode([clip])[0], plain(clip))
    assert counts(used) == (2, 3)


def test_streams_views_and_sizes_are_told_apart() -> None:
    used = encoder()
    clips = [
        window([0, 1]),
        window([0, 1], stream="env1"),
        window([0, 1], view="wrist"),
        window([0, 1], height=64),
    ]
    for ours, clip in zip(used.encode(clips), clips, strict=True):
        same(ours, plain(clip))
    assert counts(used) == (8, 0)
    for ours, clip in zip(used.encode(clips[::-1]), clips[::-1], strict=True):
        same(ours, plain(clip))
    assert counts(used) == (8, 8)


def test_all_clips_of_a_call_share_what_they_have_in_common() -> None:
    used = encoder()
    clips = [window([0, 1, 2]), window([1, 2, 3])]
    joined = used.encode_joined(clips)
    same(joined, Features.cat([plain(clip) for clip in clips]))
    assert counts(used) == (4, 2)


def test_a_video_that_moves_by_whole_groups_is_found_again() -> None:
    used = encoder()
    for start in (0, 2, 6):
        clip = window(list(range(start, start + 8)), video=True)
        same(used.encode([clip])[0], plain(clip))
    # 4 groups, then 1 and 2 new ones.
    assert counts(used) == (8 + 2 + 4, 6 + 4)
    assert used.stats.frames_kept == 7


def test_a_video_that_moves_by_one_frame_has_other_groups() -> None:
    used = encoder()
    for start in (0, 1, 2):
        clip = window(list(range(start, start + 8)), video=True)
        same(used.encode([clip])[0], plain(clip))
    # The second finds nothing; the third all but one group of the first.
    assert counts(used) == (8 + 8 + 2, 6)


def test_an_odd_last_frame_of_a_video_repeats_itself() -> None:
    used = encoder()
    clip = window([0, 1, 2], video=True)
    ours = used.encode([clip])[0]
    same(ours, plain(clip))
    assert len(ours) == 2 * 2
    assert counts(used) == (3, 0)
    # The group (2, 3) is not the group (2, 2).
    longer = window([0, 1, 2, 3], video=True)
    same(used.encode([longer])[0], plain(longer))
    assert counts(used) == (3 + 2, 2)


def test_a_longer_video_may_be_of_another_size() -> None:
    # The budget of pixels is for the whole clip: 2 frames of 64x64 fit, 6 are made smaller.
    config = replace(MODEL.image_config, video_min_pixels=1, video_max_pixels=2 * 64 * 64)
    loaded: Any = SimpleNamespace(**{**vars(MODEL), "image_config": config})
    used = encoder(loaded=loaded)
    clips = [window(steps, video=True, height=64) for steps in ([0, 1], [0, 1, 2, 3, 4, 5])]
    for clip, tokens in zip(clips, (4, 3), strict=True):
        ours = used.encode([clip])[0]
        assert len(ours) == tokens
        tower = VisionTower(loaded, exact=True)
        same(ours, tower.encode([preprocess_video(clip.frames, config)])[0])
    assert counts(used) == (2 + 6, 0)


def test_frames_without_keys_are_not_kept() -> None:
    used = encoder()
    clip = window([0, 1, 1], keyed=False)
    for _ in range(2):
        same(used.encode([clip, clip])[1], plain(clip))
    assert counts(used) == (12, 0)
    assert used.stats.frames_kept == 0


def test_the_limit_holds_and_the_least_used_go_first() -> None:
    used = encoder(4 * FRAME_BYTES)
    used.encode([window([0, 1, 2, 3])])
    used.encode([window([0])])
    used.encode([window([4, 5])])
    assert used.stats.bytes_kept == 4 * FRAME_BYTES
    before = used.stats.frames_encoded
    used.encode([window([0, 3, 4, 5])])
    assert used.stats.frames_encoded == before
    used.encode([window([1])])
    assert used.stats.frames_encoded == before + 1


def test_a_call_larger_than_the_limit_is_answered_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = encoder(2 * FRAME_BYTES)
    clip = window([0, 1, 2, 3, 0, 1])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            same(used.encode([clip])[0], plain(clip))
    assert used.stats.bytes_kept == 2 * FRAME_BYTES
    assert [record.message for record in caplog.records] == [
        "The frames of one call need 0.0 MiB, but at most 0.0 MiB are kept: most of them will be "
        "encoded again. Allow the engine more memory for its cache."
    ]


def test_streams_that_have_ended_leave_nothing() -> None:
    used = encoder()
    used.encode([window([0, 1]), window([0, 1, 2], stream="env1", video=True)])
    used.release(["env1", "never seen"])
    assert used.stats.frames_kept == 2
    used.release(["env0"])
    assert (used.stats.frames_kept, used.stats.bytes_kept) == (0, 0)
    same(used.encode([window([0, 1])])[0], plain(window([0, 1])))
    assert used.stats.frames_encoded == 2 + 3 + 2


def test_a_dropped_entry_frees_its_memory() -> None:
    store = FrameStore(MIB)
    used = encoder()
    used.encode([window([0, 1, 2])])
    kept = used._store._entries.values()
    assert len({entry.untyped_storage().data_ptr() for entry in kept}) == 3
    assert {entry.untyped_storage().nbytes() for entry in kept} == {FRAME_BYTES}
    key = (((("a", "v", 0)),), (2, 4))
    store.put(key, torch.zeros(4, 2, 32))
    store.put(key, torch.zeros(4, 2, 32))
    assert (len(store), store.nbytes, key in store) == (1, 1024, True)


def test_bad_clips_change_nothing() -> None:
    used = encoder()
    good = window([0, 1])
    wrong = Clip(frames=np.zeros((1, 32, 64, 3), np.float32), keys=(("env0", "front", 9),))
    with pytest.raises(FrameError, match="must be"):
        used.encode([good, wrong])
    short = Clip(frames=good.frames, keys=(("env0", "front", 0),))
    with pytest.raises(ConfigError, match="`keys` must be one per frame"):
        used.encode([short])
    assert used.stats.frames_kept == 0
    assert counts(used) == (0, 0)
    assert used.encode([]) == []
    with pytest.raises(ConfigError, match="max_bytes"):
        encoder(-1)


def test_qwen25_is_kept_too() -> None:
    loaded = qwen25()
    used, fresh = encoder(loaded=loaded), encoder(0, loaded=loaded)
    for start in range(3):
        clip = window(list(range(start, start + 4)), height=56)
        ours, theirs = used.encode([clip])[0], fresh.encode([clip])[0]
        assert ours.levels.shape == (1, 4 * 2 * 2, 32)
        same(ours, theirs)
    assert counts(used) == (6, 6)
    assert counts(fresh) == (12, 0)


def test_threads_wait_for_each_other() -> None:
    used = encoder(8 * FRAME_BYTES)
    clips = [[window(list(range(start, start + 4)))] for start in range(12)]
    expected = [plain(clip[0]) for clip in clips]
    failures: list[BaseException] = []

    def work(order: list[int]) -> None:
        try:
            for index in order:
                same(used.encode(clips[index])[0], expected[index])
                used.release(["env0"])
        except BaseException as error:
            failures.append(error)

    orders = [list(range(12)), list(range(11, -1, -1)), [0, 6] * 6]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(counts(used)) == 3 * 12 * 4


CLIPS = st.builds(
    lambda start, length, stream, video, keyed, tall: window(
        [max(0, step) for step in range(start, start + length)],
        stream=stream,
        video=video,
        keyed=keyed,
        height=64 if tall else 32,
    ),
    st.integers(-3, 8),
    st.integers(1, 6),
    st.sampled_from(["env0", "env1"]),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
)
CALLS = st.lists(
    st.one_of(
        st.lists(CLIPS, min_size=1, max_size=3),
        st.sampled_from(["env0", "env1"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(calls=CALLS, frames_kept=st.sampled_from([0, 1, 5, 1000]))
def test_whatever_happens_features_are_those_of_an_encoder_that_keeps_nothing(
    calls: list[list[Clip] | str], frames_kept: int
) -> None:
    limit = frames_kept * FRAME_BYTES
    used, fresh = encoder(limit), encoder(0)
    for call in calls:
        if isinstance(call, str):
            used.release([call])
            assert not any(key[0][0][0] == call for key in used._store._entries)
            continue
        for ours, theirs in zip(used.encode(call), fresh.encode(call), strict=True):
            same(ours, theirs)
        assert used.stats.bytes_kept <= limit
        kept = used._store._entries.values()
        assert used.stats.bytes_kept == sum(entry.nbytes for entry in kept)
    assert sum(counts(used)) == sum(counts(fresh))
    assert counts(used)[0] <= counts(fresh)[0]
