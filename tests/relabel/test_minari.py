from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from procreward.errors import ConfigError, DatasetError, UnknownNameError
from procreward.relabel._minari_storage import data_file, leaves_of, read_table
from procreward.relabel._minari_writer import relabelled_id
from procreward.relabel.formats import open_source, open_writer
from procreward.relabel.minari import MinariSource, MinariWriter
from scripts.sample_data.episodes import SampleEpisode, draw_episodes
from scripts.sample_data.minari import write_minari
from tests.relabel.drawn import digest, labels_of, seen_rewards

LENGTHS = (4, 7, 2)
KINDS = ("hdf5", "arrow", "parquet")
VIEW = "pictures/agentview"
NEW = "lift/drawn-relabelled-v0"

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def episodes() -> list[SampleEpisode]:
    return draw_episodes(LENGTHS)


@pytest.fixture
def make(episodes: list[SampleEpisode], tmp_path: Path) -> Make:
    def write(kind: str = "hdf5", jpeg: bool = True) -> Path:
        path = tmp_path / f"{kind}-{jpeg}" / "lift" / "drawn-v0"
        write_minari(episodes, path, kind=kind, jpeg=jpeg, dataset_id="lift/drawn-v0")  # type: ignore[arg-type]  # one of three texts
        return path

    return write


def rewrite(path: Path, staged: Path, labels: Any = None, **options: Any) -> Path:
    source, writer = MinariSource(path), MinariWriter(options)
    staged.mkdir()
    given = [labels_of(one) for one in source.episodes] if labels is None else labels
    writer.write(source, given, staged, {"scorer": "nano", "k": 8})
    writer.validate(source, staged)
    return staged


def arrays(dataset: Path, kind: str, number: int) -> dict[str, list[Any]]:
    """The numbers of an episode as Minari returns them."""
    data = dataset / "data"
    flat = ("rewards", "terminations", "truncations")
    if kind == "hdf5":
        with h5py.File(data / "main_data.hdf5", "r") as file:
            episode = file[f"episode_{number}"]
            found = {key: episode[key][()].tolist() for key in flat}
            return found | {key: value[()].tolist() for key, value in episode["infos"].items()}
    table = read_table(data_file(data, number), kind)
    found = {key: table[key].to_pylist()[:-1] for key in flat}
    infos = pa.concat_arrays(table["infos"].chunks)
    return found | {one.name: infos.field(one.name).to_pylist() for one in infos.type}


@pytest.mark.parametrize("kind", KINDS)
def test_episodes(make: Make, kind: str) -> None:
    path = make(kind)
    source = open_source(path)
    assert isinstance(source, MinariSource)
    assert (source.format, source.root, source.dataset_id) == ("minari", path, "lift/drawn-v0")
    assert source.views == (VIEW, "pictures/robot0_eye_in_hand")
    found = [
        (one.index, one.name, one.length, one.frames, one.instruction, one.terminated, one.fps)
        for one in source.episodes
    ]
    assert found == [
        (0, "episode_000000", 4, 5, "pick up the cube", True, None),
        (1, "episode_000001", 7, 8, "stack the cubes", False, None),
        (2, "episode_000002", 2, 3, "pick up the cube", True, None),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jpeg", [True, False])
def test_pictures(make: Make, episodes: list[SampleEpisode], kind: str, jpeg: bool) -> None:
    source = MinariSource(make(kind, jpeg))
    runs = [source.frames(one, source.views) for one in source.episodes]  # all open at once
    for drawn, run in zip(episodes, runs, strict=True):
        frames = list(run)
        for view in source.views:
            found = np.stack([one[view] for one in frames])
            whole = drawn.frames[view.removeprefix("pictures/")]
            assert (found.dtype, found.shape) == (np.uint8, whole.shape)
            apart = np.abs(found.astype(int) - whole).mean()
            assert (0 < apart < 3) if jpeg else apart == 0
    with pytest.raises(UnknownNameError, match="Unknown view 'agentview'"):
        next(source.frames(source.episodes[0], ["agentview"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_is_of_the_step_that_leads_to_the_next_picture(tmp_path: Path, kind: str) -> None:
    # The square goes a quarter of its way with each of 4 steps; the second one turns back.
    path = tmp_path / "drawn-v0"
    write_minari(draw_episodes((4, 4)), path, kind=kind, jpeg=False)  # type: ignore[arg-type]  # one of three texts
    found = seen_rewards(MinariSource(path), VIEW)
    assert found == [[0.25] * 4, [0.25, 0.25, -0.25, -0.25]]


def space(**changes: Any) -> dict[str, Any]:
    return {"type": "Box", "dtype": "uint8", "shape": [8, 8, 3]} | changes


def test_which_observations_are_pictures() -> None:
    text = {"type": "Text", "max_length": 9}
    described = {
        "type": "Dict",
        "subspaces": {
            "left": space(),
            "grey": space(shape=[8, 8, 1]),
            "flat": space(shape=[8, 8]),
            "depth": space(dtype="float32"),
            "stack": {"type": "Tuple", "subspaces": [space(), text]},
            "mission": text,
            "choice": {"type": "Discrete", "n": 3, "start": 0},
        },
    }
    leaves = list(leaves_of(described))
    assert [one.name for one in leaves if one.is_picture] == ["left", "stack/0"]
    assert [one.name for one in leaves if one.is_instruction] == ["mission"]
    assert [one.name for one in leaves_of(space())] == ["observation"]


def write_plain(path: Path, observations: dict[str, Any], described: Any, **more: Any) -> None:
    """One episode of two steps in HDF5."""
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        for key, values in observations.items():
            episode[f"observations{key}"] = values
        episode["rewards"] = np.zeros(2)
        episode["terminations"] = episode["truncations"] = np.zeros(2, np.bool_)
        for key, values in more.pop("infos", {}).items():
            episode[f"infos/{key}"] = values
        for key, value in more.pop("attrs", {}).items():
            episode.attrs[key] = value
    metadata = {
        "dataset_id": path.name,
        "total_episodes": 1,
        "total_steps": 2,
        "data_format": "hdf5",
        "observation_space": json.dumps(described),
    }
    (path / "data" / "metadata.json").write_text(json.dumps(metadata | more))


def test_an_observation_that_is_a_picture(tmp_path: Path) -> None:
    pictures = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    write_plain(tmp_path / "plain-v0", {"": pictures}, space())
    source = MinariSource(tmp_path / "plain-v0")
    assert source.views == ("observation",)
    frames = [one["observation"] for one in source.frames(source.episodes[0], source.views)]
    assert np.array_equal(frames, pictures)
    both = {"type": "Tuple", "subspaces": [space(), space()]}
    observations = {"/_index_0": pictures[::-1], "/_index_1": pictures}
    write_plain(tmp_path / "tuple-v0", observations, both)
    source = MinariSource(tmp_path / "tuple-v0")
    assert source.views == ("0", "1")
    frames = [one["1"] for one in source.frames(source.episodes[0], ["1"])]
    assert np.array_equal(frames, pictures)


@pytest.mark.parametrize(
    ("place", "instruction"),
    [
        ({"attrs": {"lang": " open it "}}, "open it"),
        ({"attrs": {"options/instruction": "open it"}}, "open it"),
        ({"infos": {"language_instruction": ["open it"] * 3}}, "open it"),
        ({"infos": {"prompt": "open it"}}, "open it"),
        ({"instruction": "open it"}, "open it"),
        ({"attrs": {"lang": "close it"}, "instruction": "open it"}, "close it"),
        ({"description": "open it"}, ""),
    ],
)
def test_instruction(tmp_path: Path, place: dict[str, Any], instruction: str) -> None:
    write_plain(tmp_path / "a-v0", {"": np.zeros((3, 8, 8, 3), np.uint8)}, space(), **place)
    assert MinariSource(tmp_path / "a-v0").episodes[0].instruction == instruction


def test_instruction_in_the_observation(tmp_path: Path) -> None:
    text = {"type": "Text", "max_length": 9}
    both = {"type": "Dict", "subspaces": {"camera": space(), "mission": text}}
    observations = {"/camera": np.zeros((3, 8, 8, 3), np.uint8), "/mission": ["open it"] * 3}
    write_plain(tmp_path / "a-v0", observations, both)
    assert MinariSource(tmp_path / "a-v0").episodes[0].instruction == "open it"


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten(make: Make, tmp_path: Path, kind: str) -> None:
    path = make(kind)
    before = digest(path)
    staged = rewrite(path, tmp_path / "staged")
    assert digest(path) == before
    assert list(staged.glob("*/*")) == [staged / NEW]
    metadata = json.loads((staged / NEW / "data" / "metadata.json").read_text())
    old = json.loads((path / "data" / "metadata.json").read_text())
    assert metadata.pop("dataset_size") >= old["dataset_size"]
    assert {key: value for key, value in metadata.items() if old.get(key) != value} == {
        "dataset_id": NEW,
        "procreward": {"scorer": "nano", "k": 8},
        "procreward_episodes": [0, 1, 2],
    }
    found = arrays(staged / NEW, kind, 0)
    assert found["rewards"] == [0.1, 0.2, 0.1 * 3, 0.4]
    assert found["rewards_env"] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert np.isnan(found["procreward_progress"][0])
    assert found["procreward_progress"][1:] == [1 / 16, 2 / 16, 3 / 16, 4 / 16]
    assert np.isnan(found["procreward_success_prob"]).all()
    assert found["procreward_complete"] == [False, False, False, True, True]
    assert found["success"] == [False, False, False, False, True]
    assert found["terminations"] == [False, False, False, True]
    assert found["truncations"] == [False] * 4
    again = MinariSource(staged / NEW)
    assert again.views == MinariSource(path).views
    assert [one.terminated for one in again.episodes] == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_with_ends(make: Make, tmp_path: Path, kind: str) -> None:
    staged = rewrite(make(kind), tmp_path / "staged", dones="complete", dataset_id="other-v3")
    # Complete from picture 3 on, so the second one is done at its end.
    found = arrays(staged / "other-v3", kind, 1)
    assert found["terminations"] == [False] * 6 + [True]
    assert found["truncations"] == [False] * 7
    labels = [
        labels_of(one, complete=np.zeros(one.frames, np.bool_), terminated=False)
        for one in MinariSource(staged / "other-v3").episodes
    ]
    again = rewrite(staged / "other-v3", tmp_path / "again", labels, dones="complete")
    found = arrays(again / "other-relabelled-v3", kind, 1)
    assert found["terminations"] == [False] * 7
    assert found["truncations"] == [False] * 6 + [True]


@pytest.mark.parametrize("kind", KINDS)
def test_rewritten_twice_keeps_what_the_environment_paid(
    make: Make, tmp_path: Path, kind: str
) -> None:
    once = rewrite(make(kind), tmp_path / "once") / NEW
    labels = [
        labels_of(one, reward=np.full(one.length, 9.0)) for one in MinariSource(once).episodes
    ]
    twice = rewrite(once, tmp_path / "twice", labels) / "lift/drawn-relabelled-v1"
    found = arrays(twice, kind, 0)
    assert found["rewards"] == [9.0] * 4
    assert found["rewards_env"] == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_without_labels_are_left_out(make: Make, tmp_path: Path, kind: str) -> None:
    path = make(kind)
    source = MinariSource(path)
    labels = [labels_of(source.episodes[number]) for number in (1, 2)]
    target = rewrite(path, tmp_path / "staged", labels) / NEW
    left = MinariSource(target)
    assert [(one.index, one.length) for one in left.episodes] == [(0, 7), (1, 2)]
    assert [one.instruction for one in left.episodes] == ["stack the cubes", "pick up the cube"]
    metadata = json.loads((target / "data" / "metadata.json").read_text())
    stated = [metadata[key] for key in ("total_episodes", "total_steps", "procreward_episodes")]
    assert stated == [2, 9, [1, 2]]
    if kind == "hdf5":
        with h5py.File(target / "data" / "main_data.hdf5", "r") as file:
            ids = {name: group.attrs["id"] for name, group in file.items()}
    else:
        stored = sorted(target.glob("data/*/metadata.json"))
        ids = {f"episode_{one.parent.name}": json.loads(one.read_text())["id"] for one in stored}
    assert ids == {"episode_0": 0, "episode_1": 1}
    with pytest.raises(DatasetError, match="No episode"):
        rewrite(path, tmp_path / "none", [])


@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes(make: Make, tmp_path: Path, kind: str) -> None:
    path = make(kind)
    some = [labels_of(one) for one in MinariSource(path).episodes[1:]]
    first = [digest(rewrite(path, tmp_path / "a")), digest(rewrite(path, tmp_path / "b", some))]
    # HDF5 keeps times in whole seconds, where it keeps them.
    time.sleep(1.1)
    second = [digest(rewrite(path, tmp_path / "c")), digest(rewrite(path, tmp_path / "d", some))]
    assert second == first


@pytest.mark.parametrize("kind", KINDS)
def test_infos_are_made_where_there_are_none(make: Make, tmp_path: Path, kind: str) -> None:
    path = make(kind)
    for number in range(3):
        if kind == "hdf5":
            with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
                del file[f"episode_{number}/infos"]
            continue
        file = data_file(path / "data", number)
        table = read_table(file, kind).drop_columns(["infos"])
        if kind == "parquet":
            pq.write_table(table, file)
        else:
            content = pa.BufferOutputStream()
            with pa.ipc.new_file(content, table.schema) as writer:
                writer.write_table(table)
            del table
            file.write_bytes(content.getvalue())
    found = arrays(rewrite(path, tmp_path / "staged") / NEW, kind, 0)
    assert found["rewards_env"] == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_numbers_that_are_nan_and_folders_that_are_read_only(make: Make, tmp_path: Path) -> None:
    path = make()
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        file["episode_0/rewards"][1] = np.nan
    for folder in (path, path / "data"):
        folder.chmod(0o555)
    staged = rewrite(path, tmp_path / "staged") / NEW
    assert np.isnan(arrays(staged, "hdf5", 0)["rewards_env"]).tolist()[:3] == [False, False, True]
    assert [stat.filemode(one.stat().st_mode) for one in (staged, staged / "data")] == [
        "drwxr-xr-x"
    ] * 2


def test_ids() -> None:
    known = {
        "lift-v0": "lift-relabelled-v0",
        "robosuite/panda/lift-v2": "robosuite/panda/lift-relabelled-v2",
        "lift-relabelled-v4": "lift-relabelled-v5",
    }
    assert {old: relabelled_id(old) for old in known} == known
    for bad in ("../lift-v0", "/lift-v0", "a b-v0", ""):
        with pytest.raises(DatasetError, match="`dataset_id` must be like"):
            relabelled_id(bad)


def test_options() -> None:
    assert isinstance(open_writer("minari", {"dataset_id": "a/b-v1"}), MinariWriter)
    for bad in ("../b-v1", "b", "b-v1/", 3):
        with pytest.raises(ConfigError, match="`dataset_id` must be like 'namespace/name-v0'"):
            MinariWriter({"dataset_id": bad})
    with pytest.raises(ConfigError, match="`dones` must be one of"):
        MinariWriter({"dones": "success"})
    with pytest.raises(UnknownNameError, match="Did you mean 'dataset_id'"):
        MinariWriter({"dataset": "a-v1"})


def put(key: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = values

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (put("episode_1/rewards", np.full(7, np.nan)), "rewards"),
        (put("episode_1/rewards", np.zeros(7, np.float32)), "rewards"),
        (put("episode_1/infos/rewards_env", np.zeros(7)), "infos/rewards_env"),
        (put("episode_1/infos/procreward_progress", np.zeros(7)), "infos/procreward_progress"),
        (put("episode_1/terminations", np.ones(7, np.bool_)), "terminations"),
    ],
)
def test_validation_finds(
    make: Make, tmp_path: Path, spoil: Callable[[h5py.File], None], said: str
) -> None:
    path = make()
    staged = rewrite(path, tmp_path / "staged")
    with h5py.File(staged / NEW / "data" / "main_data.hdf5", "r+") as file:
        spoil(file)
    with pytest.raises(DatasetError, match=f"episode 1: {said} not written"):
        MinariWriter({}).validate(MinariSource(path), staged)


def test_labels_of_other_episodes_are_refused(make: Make, tmp_path: Path) -> None:
    path = make()
    longer = labels_of(MinariSource(path).episodes[0], reward=np.zeros(5))
    with pytest.raises(DatasetError, match="'episode_000000' must be of 4 actions, got 5"):
        rewrite(path, tmp_path / "staged", [longer])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (put("episode_1/rewards", np.zeros(6)), "episode_1, t.* must have 6 rows, got 7"),
        (put("episode_1/terminations", np.zeros(6)), "terminations must have 7 rows, got 6"),
        (put(f"episode_1/observations/{VIEW}", np.zeros(4)), "agentview must have 8 rows, got 4"),
        (lambda file: file.move("episode_1", "one"), "must have 'episode_1'"),
        (lambda file: file.pop(f"episode_2/observations/{VIEW}"), "agentview is missing"),
    ],
)
def test_inconsistent_files(make: Make, spoil: Callable[[h5py.File], Any], said: str) -> None:
    path = make()
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        spoil(file)
    with pytest.raises(DatasetError, match=said):
        MinariSource(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_id": None}, "must state `dataset_id`"),
        ({"observation_space": None}, "must state `observation_space`"),
        ({"observation_space": "{"}, "must describe its `observation_space`"),
        ({"data_format": "zarr"}, "got `data_format` 'zarr'"),
        ({"total_episodes": 0}, "must have episodes"),
        ({"total_episodes": 4}, "must have 'episode_3'"),
        (
            {"observation_space": json.dumps(space(dtype="float64"))},
            "must have pictures in its observations .* got observation",
        ),
    ],
)
def test_inconsistent_metadata(make: Make, change: dict[str, Any], said: str) -> None:
    path = make() / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=said):
        MinariSource(path.parent.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_file(make: Make, kind: str) -> None:
    path = make(kind)
    data = path / "data"
    file = data / "main_data.hdf5" if kind == "hdf5" else data_file(data, 1)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"(main_data|part-0).* must be a whole \w+ file"):
        MinariSource(path)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_missing_rows(make: Make, kind: str) -> None:
    path = make(kind)
    file = data_file(path / "data", 1)
    file.rename(file.with_name("_kept"))
    with pytest.raises(DatasetError, match="must hold one file of rows, got 0"):
        MinariSource(path)
    file.with_name("_kept").rename(file)
    about = file.with_name("metadata.json")
    about.write_text(json.dumps({"id": 1, "total_steps": 8}))
    with pytest.raises(DatasetError, match="in 9 rows, one more than steps, got 8 rows"):
        MinariSource(path)


def test_damaged_pictures(make: Make) -> None:
    path = make()
    source = MinariSource(path)
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        files = file[f"episode_1/observations/{VIEW}"]
        files[3] = files[3][:40]
    frames = source.frames(source.episodes[1], [VIEW])
    for _ in range(3):
        assert next(frames)[VIEW].shape == (64, 64, 3)
    with pytest.raises(DatasetError, match=f"episode_1, {VIEW} must be a picture"):
        next(frames)
    other = MinariSource(path)
    assert other.fingerprint(other.episodes[1]) != source.fingerprint(source.episodes[0])
