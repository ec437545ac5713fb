from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward.errors import ConfigError, FrameError, UnknownNameError, UnsupportedEnvError
from procreward.frames import FrameBuffer
from procreward.sources import (
    CameraSource,
    FrameSource,
    ObservationSource,
    RenderSource,
    resolve_sources,
)
from procreward.types import Frame

PICTURE = gym.spaces.Box(0, 255, (8, 6, 3), np.uint8)
STATE = gym.spaces.Box(-1.0, 1.0, (5,), np.float64)


class PlainEnv(gym.Env[Any, Any]):
    """An environment with any observation space; its pictures tell the step."""

    def __init__(self, space: gym.Space[Any], render_mode: str | None = None) -> None:
        self.observation_space = space
        self.action_space = gym.spaces.Discrete(2)
        self.render_mode = render_mode
        self.step_count = 0

    def _observation(self, space: gym.Space[Any]) -> Any:
        if isinstance(space, gym.spaces.Dict):
            return {key: self._observation(inner) for key, inner in space.items()}
        return np.full(space.shape or (), self.step_count + 1, space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_count = 0
        return self._observation(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_count += 1
        return self._observation(self.observation_space), 0.0, False, False, {}

    def render(self) -> Any:
        if self.render_mode != "rgb_array":
            return None
        return np.full((8, 6, 3), 100 + self.step_count, np.uint8)


class CameraEnv(PlainEnv):
    """With cameras, as procreward's own environments have them."""

    camera_names = ("agentview", "wristview")
    default_views = ("agentview",)

    def render_camera(self, name: str, width: int, height: int) -> Frame:
        value = 50 + 100 * self.camera_names.index(name) + self.step_count
        return np.full((height, width, 3), value, np.uint8)


def mixed_space() -> gym.spaces.Dict:
    return gym.spaces.Dict({"front_image": PICTURE, "state": STATE, "agentview": PICTURE})


def nested_space() -> gym.spaces.Dict:
    return gym.spaces.Dict(
        {"pixels": gym.spaces.Dict({"top": PICTURE, "side": PICTURE}), "state": STATE}
    )


# --- where frames come from ----------------------------------------------------------------------


def test_observation_key_gives_the_picture_of_the_step() -> None:
    env = PlainEnv(mixed_space())
    sources = resolve_sources(env, ["obs:front_image"])
    assert sources == {"front_image": ObservationSource("front_image")}
    obs, _ = env.reset()
    assert sources["front_image"].frame(env, obs) is obs["front_image"]
    obs = env.step(0)[0]
    assert sources["front_image"].frame(env, obs).max() == 2


@pytest.mark.parametrize("spec", ["obs", "obs:obs"])
def test_an_observation_that_is_a_picture_is_called_obs(spec: str) -> None:
    env = PlainEnv(PICTURE)
    sources = resolve_sources(env, [spec])
    assert sources == {"obs": ObservationSource("obs")}
    obs, _ = env.reset()
    assert sources["obs"].frame(env, obs) is obs


def test_nested_observation_keys_are_joined_by_a_slash() -> None:
    env = PlainEnv(nested_space())
    sources = resolve_sources(env, ["pixels/top", "obs:pixels/side"])
    assert list(sources) == ["pixels/top", "pixels/side"]
    obs, _ = env.reset()
    assert sources["pixels/side"].frame(env, obs) is obs["pixels"]["side"]


def test_a_key_with_a_slash_or_a_dot_of_its_own_is_found() -> None:
    env = PlainEnv(gym.spaces.Dict({"video.front": PICTURE, "images/top": PICTURE}))
    sources = resolve_sources(env, ["video.front", "images/top"])
    obs, _ = env.reset()
    assert sources["video.front"].frame(env, obs) is obs["video.front"]
    assert sources["images/top"].frame(env, obs) is obs["images/top"]


def test_render_gives_the_picture_of_the_step_through_wrappers() -> None:
    env = gym.wrappers.TimeLimit(PlainEnv(STATE, render_mode="rgb_array"), 5)
    sources = resolve_sources(env, ["render"])
    assert sources == {"render": RenderSource()}
    obs, _ = env.reset()
    obs = env.step(0)[0]
    assert sources["render"].frame(env, obs).max() == 101


def test_camera_is_rendered_at_the_size_asked_for_through_wrappers() -> None:
    env = gym.wrappers.TimeLimit(CameraEnv(STATE), 5)
    sources = resolve_sources(env, ["camera:wristview", "agentview"], frame_size=(32, 16))
    assert sources == {
        "wristview": CameraSource("wristview", 32, 16),
        "agentview": CameraSource("agentview", 32, 16),
    }
    obs, _ = env.reset()
    frame = sources["wristview"].frame(env, obs)
    assert (frame.shape, frame.max()) == ((16, 32, 3), 150)
    assert sources["agentview"].frame(env, obs).max() == 50


def test_camera_size_without_a_wish() -> None:
    assert resolve_sources(CameraEnv(STATE), ["agentview"]) == {
        "agentview": CameraSource("agentview", 128, 128)
    }


def test_a_bare_name_is_an_observation_key_before_it_is_a_camera() -> None:
    env = CameraEnv(mixed_space())
    assert resolve_sources(env, ["agentview"]) == {"agentview": ObservationSource("agentview")}
    assert resolve_sources(env, ["camera:agentview"]) == {
        "agentview": CameraSource("agentview", 128, 128)
    }


def test_a_picture_that_is_upside_down_is_turned() -> None:
    env = PlainEnv(nested_space())
    sources = resolve_sources(env, ["flip:pixels/top"])
    assert sources == {"pixels/top": ObservationSource("pixels/top", flip=True)}
    picture = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    frame = sources["pixels/top"].frame(env, {"pixels": {"top": picture}})
    assert frame[:, 0, 0].tolist() == [126, 108, 90, 72, 54, 36, 18, 0]
    assert frame[0].tolist() == picture[7].tolist()
    batch = sources["pixels/top"].frame(env, {"pixels": {"top": np.stack([picture, picture + 1])}})
    assert batch[1, :, 0, 0].tolist() == [127, 109, 91, 73, 55, 37, 19, 1]


def test_one_view_may_be_written_without_a_list() -> None:
    assert list(resolve_sources(PlainEnv(mixed_space()), "front_image")) == ["front_image"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (CameraEnv(STATE), {"agentview": CameraSource("agentview", 128, 128)}),
        (PlainEnv(PICTURE, "rgb_array"), {"obs": ObservationSource("obs")}),
        (PlainEnv(STATE, "rgb_array"), {"render": RenderSource()}),
    ],
)
def test_views_by_default(env: PlainEnv, expected: dict[str, FrameSource]) -> None:
    assert resolve_sources(env) == expected


def test_a_source_names_its_view() -> None:
    sources: list[FrameSource] = [ObservationSource("a"), RenderSource(), CameraSource("b")]
    assert [source.view for source in sources] == ["a", "render", "b"]
    assert all(isinstance(source, FrameSource) for source in sources)


@pytest.mark.parametrize("source", [ObservationSource("a"), RenderSource(), CameraSource("a", 3)])
def test_sources_can_be_copied_and_pickled(source: FrameSource) -> None:
    assert copy.deepcopy(source) == source
    assert pickle.loads(pickle.dumps(source)) == source


def test_frames_of_all_kinds_fill_a_buffer() -> None:
    env = CameraEnv(mixed_space(), render_mode="rgb_array")
    sources = resolve_sources(env, ["front_image", "camera:agentview", "render"], (6, 8))
    buffer = FrameBuffer(2)
    obs, _ = env.reset()
    buffer.push({view: source.frame(env, obs) for view, source in sources.items()}, 0)
    obs = env.step(0)[0]
    buffer.push({view: source.frame(env, obs) for view, source in sources.items()}, 1)
    clips, _ = buffer.window()
    values = {view: clip[:, 0, 0, 0].tolist() for view, clip in clips.items()}
    assert values == {"front_image": [1, 2], "agentview": [50, 51], "render": [100, 101]}


# --- what cannot be had --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "frontimage",
            r"Unknown view 'frontimage'\. Did you mean 'front_image'\? Known: agentview, "
            r"front_image, render, wristview\.",
        ),
        ("obs:front_imag", r"Unknown observation key .* Did you mean 'front_image'\?"),
        ("camera:agentvew", r"Unknown camera 'agentvew'\. Did you mean 'agentview'\?"),
        ("video:front", r"Unknown view 'video:front'\."),
        ("obs", r"Unknown view 'obs'\."),
    ],
)
def test_unknown_names_are_met_with_the_known_ones(spec: str, message: str) -> None:
    env = CameraEnv(mixed_space(), render_mode="rgb_array")
    with pytest.raises(UnknownNameError, match=message):
        resolve_sources(env, [spec])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (STATE, r"got float64 of shape \(5,\), which is no picture"),
        (gym.spaces.Box(0, 1, (8, 6, 3), np.float32), r"values in \[0, 1\], which is a float"),
        (gym.spaces.Box(0, 255, (3, 8, 6), np.uint8), "channels first"),
        (gym.spaces.Discrete(3), "which is no picture"),
        (gym.spaces.Text(5), "got Text"),
        (gym.spaces.Tuple((PICTURE, PICTURE)), "got Tuple"),
    ],
)
def test_observations_that_are_no_pictures_are_refused_at_once(
    space: gym.Space[Any], message: str
) -> None:
    env = PlainEnv(gym.spaces.Dict({"thing": space}))
    with pytest.raises(FrameError, match="`observation 'thing'` must be .*" + message):
        resolve_sources(env, ["thing"])


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (None, r'needs render_mode="rgb_array", got None;'),
        ("human", "got 'human';"),
        ("rgb_array_list", "got 'rgb_array_list' .*frames would be stolen"),
    ],
)
def test_render_needs_the_array_mode(mode: str | None, message: str) -> None:
    with pytest.raises(UnsupportedEnvError, match=message):
        resolve_sources(PlainEnv(STATE, render_mode=mode), ["render"])


def test_camera_needs_an_environment_with_cameras() -> None:
    with pytest.raises(
        UnsupportedEnvError, match="needs an environment with a method render_camera"
    ):
        resolve_sources(PlainEnv(STATE), ["camera:front"])


class NamedCamerasEnv(PlainEnv):
    """With cameras by name only, as robosuite's own environments have them."""

    camera_names = ("agentview",)
    render_camera = ("frontview",)


def test_a_camera_that_no_method_draws_is_none() -> None:
    env = gym.wrappers.TimeLimit(NamedCamerasEnv(gym.spaces.Dict({"picture": PICTURE})), 5)
    with pytest.raises(UnsupportedEnvError, match=r"a method render_camera\(name, width, height\)"):
        resolve_sources(env, ["camera:agentview"])
    with pytest.raises(UnsupportedEnvError, match=r"name `views` \(known: picture\)"):
        resolve_sources(env)
    # Behind a vector environment it shows at the first frame only.
    with pytest.raises(UnsupportedEnvError, match=r"whose `render_camera` is \('frontview',\)"):
        CameraSource("agentview").frame(env, None)


def test_no_view_by_default_names_what_could_be_shown() -> None:
    with pytest.raises(UnsupportedEnvError, match=r"known: agentview, front_image\)"):
        resolve_sources(PlainEnv(mixed_space()))


def test_views_are_named_once_and_at_least_one() -> None:
    env = CameraEnv(mixed_space())
    with pytest.raises(ConfigError, match="each view once, got 'agentview' twice"):
        resolve_sources(env, ["obs:agentview", "camera:agentview"])
    with pytest.raises(ConfigError, match="at least one view, got none"):
        resolve_sources(env, [])


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_frame_size_is_positive(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"`frame_size` must be \(width, height\) in pixels"):
        resolve_sources(CameraEnv(STATE), ["agentview"], size)


def test_observation_without_the_key() -> None:
    env = PlainEnv(mixed_space())
    with pytest.raises(UnknownNameError, match=r"Unknown observation key 'a/b'\. Known: c"):
        ObservationSource("a/b").frame(env, {"c": 1})
    with pytest.raises(UnknownNameError, match=r"Unknown observation key 'a'\. .*Known: obs"):
        ObservationSource("a").frame(env, np.zeros(3))


def test_render_that_returns_nothing() -> None:
    with pytest.raises(FrameError, match=r"got None; make the environment with render_mode"):
        RenderSource().frame(PlainEnv(STATE), None)
