from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from procreward import registry
from procreward.config import ScorerConfig, load_preset
from procreward.errors import ConfigError, ScorerError, UnknownNameError
from procreward.registry import clear_scorers, get_scorer, register_scorer, resolve, scorer_names
from procreward.scorers.constant import Constant
from tests.helpers import Recorder


class Built(Recorder):
    """Counts how often it is built."""

    count = 0

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Built:
        cls.count += 1
        return cls()


class NoScorer:
    @classmethod
    def from_config(cls, config: ScorerConfig) -> NoScorer:
        return cls()


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(Built, "count", 0)


def test_preset_name() -> None:
    handle = resolve("constant")
    assert handle.spec == "constant"
    assert handle.config == ScorerConfig(name="constant", options={"progress": 0.5})
    assert handle.preset.window_frames == 1


def test_preset_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scorer: {name: constant}\nwindow_frames: 5\n")
    assert resolve(str(path)).preset.window_frames == 5


def test_scorer_name_stands_for_its_preset() -> None:
    assert resolve("procvlm").preset == load_preset("procvlm-2b")


@pytest.mark.parametrize("model", ["owner/model", "."])
def test_model_folder_or_hub_id_runs_as_procvlm(model: str) -> None:
    handle = resolve(model)
    assert (handle.spec, handle.config) == (model, ScorerConfig(name="procvlm", model=model))
    assert handle.preset.window_frames == 8
    # Messages name the model, not the preset that its windows come from.
    assert handle.preset.name == model


def test_mapping_with_a_name() -> None:
    spec = {"name": "constant", "options": {"progress": 0.25}}
    handle = resolve(spec)
    assert handle.spec == spec
    assert resolve(handle.spec) == handle
    assert resolve(ScorerConfig.from_dict(spec)) == handle
    assert resolve(handle) is handle


def test_mapping_with_a_preset_overrides_and_merges_options() -> None:
    spec = {"preset": "procvlm-2b", "device": "cpu", "options": {"mode": "direct"}}
    handle = resolve(spec)
    assert handle.config.model == "ce-amtic/ProcVLM-2B"
    assert handle.config.device == "cpu"
    assert handle.config.options == {
        "mode": "direct",
        "max_new_tokens": 256,
        "image_order": "images_first",
    }
    assert resolve(json.loads(json.dumps(handle.spec))) == handle


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("constnt", r"Unknown scorer 'constnt'. Did you mean 'constant'\?"),
        ({"name": "constnt"}, r"Unknown scorer 'constnt'"),
        ({"name": "constant", "optons": {}}, "Did you mean 'options'"),
        ({"preset": "constant", "optons": {}}, "Did you mean 'options'"),
        ({"preset": "constnt"}, "Did you mean 'constant'"),
    ],
)
def test_unknown_names(spec: Any, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        resolve(spec)


@pytest.mark.parametrize("base", [{"name": "constant"}, {"preset": "constant"}])
def test_options_that_are_no_mapping(base: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="`options` must be a mapping, got 3"):
        resolve({**base, "options": 3})


@pytest.mark.parametrize("spec", [3, None, Constant, object()])
def test_other_types(spec: Any) -> None:
    with pytest.raises(ConfigError, match="`scorer` must be a name, a mapping, a ScorerConfig or"):
        resolve(spec)


def test_registered_scorer_is_built_once_and_late() -> None:
    register_scorer("built", f"{__name__}:Built")
    assert "built" in scorer_names()
    one, other = resolve("built"), resolve({"name": "built"})
    assert Built.count == 0
    assert get_scorer(one) is get_scorer(other)
    assert Built.count == 1
    clear_scorers()
    get_scorer(one)
    assert Built.count == 2


def test_other_options_are_another_scorer() -> None:
    low = resolve({"name": "constant", "options": {"progress": 0.1}})
    high = resolve({"name": "constant", "options": {"progress": 0.9}})
    assert get_scorer(low) is not get_scorer(high)


def test_name_is_taken_once() -> None:
    register_scorer("built", f"{__name__}:Built")
    register_scorer("built", f"{__name__}:Built")
    with pytest.raises(ConfigError, match="`name` must be a free scorer name, got 'built'"):
        register_scorer("built", f"{__name__}:NoScorer")
    with pytest.raises(ConfigError, match="`name` must be a free scorer name, got 'constant'"):
        register_scorer("constant", f"{__name__}:Built")


@pytest.mark.parametrize("target", ["module", "module:", ":Class", ""])
def test_malformed_target(target: str) -> None:
    with pytest.raises(ConfigError, match=r"`target` must be 'package\.module:Class'"):
        register_scorer("mine", target)


def test_a_class_that_builds_no_scorer() -> None:
    register_scorer("none", f"{__name__}:NoScorer")
    with pytest.raises(ScorerError, match="must build an object with `score` and `describe`"):
        get_scorer(resolve("none"))


def test_live_scorer_is_kept_and_found_by_key() -> None:
    scorer = Recorder()
    handle = resolve(scorer)
    assert isinstance(handle.spec, str)
    assert handle.spec.startswith("live:")
    assert resolve(scorer) == handle
    assert get_scorer(resolve(handle.spec)) is scorer
    assert get_scorer(pickle.loads(pickle.dumps(handle))) is scorer
    assert resolve(Recorder()).key != handle.key


def test_the_name_of_a_forgotten_live_scorer_is_never_another_s() -> None:
    handle = resolve(Recorder())
    clear_scorers()
    resolve(Recorder())
    with pytest.raises(ScorerError, match="is not in this process"):
        get_scorer(handle)


def test_live_scorer_of_another_process() -> None:
    with pytest.raises(ScorerError, match=r"'live:9999:Gone' is not in this process.*register"):
        get_scorer(resolve("live:9999:Gone"))
