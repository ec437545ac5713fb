"""``LeRobotWriter``: a LeRobotDataset with our rewards in place of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from procreward.checks import check_choice, check_names
from procreward.errors import DatasetError
from procreward.relabel.episodes import EpisodeLabels, Source
from procreward.relabel.lerobot.copying import LINKS, Link, carry_files
from procreward.relabel.lerobot.files import write_json
from procreward.relabel.lerobot.meta import write_info, write_lists_v21, write_lists_v30
from procreward.relabel.lerobot.plan import ENV_REWARD, NOTE, REWARD, RewritePlan, make_plan
from procreward.relabel.lerobot.source import LeRobotSource
from procreward.relabel.lerobot.tables import rewrite_file
from procreward.relabel.lerobot.validation import validate_dataset

__all__ = ["LeRobotWriter"]

_ALIGNMENT = f"{REWARD}[t] is the reward of (s_t, a_t, s_{{t+1}})"


class LeRobotWriter:
    """Writes a LeRobotDataset v2.1 or v3.0, whichever the source is, with rewards in it.

    **Columns.** ``next.reward`` is replaced, and what was there is kept as ``next.reward_env`` (a
    dataset that was rewritten before keeps the first one). New are ``progress``, ``complete`` and,
    where the model gives one, ``success_prob``: one value a frame, of the picture of that frame.
    ``next.done``, ``next.success`` and all others stay as they are.

    **Alignment.** ``next.reward[t]`` belongs to ``(s_t, a_t, s_{t+1})``, as the name says. The
    last frame has no successor; its reward is that of a state that looks like its own. (RoboCasa's
    own ``next.reward[t]`` is the reward *of* ``s_t``, one step off; ``next.reward_env`` keeps it.)

    **Files.** All parquet files are written anew, v3.0's with a row group for each episode, and so
    are ``info.json``, the lists of episodes and all statistics: per episode
    (``episodes_stats.jsonl``, the ``stats/`` columns of ``meta/episodes``) and together
    (``stats.json``, where there is one, with the statistics that it has of the other features).
    Videos are hard-linked, so take no room, and are the very files of the source: replace them,
    never edit them in place. Where the file system cannot link, they are symbolic links to the
    source, and else copies; ``meta/procreward.json`` says which, and where the rewards come from.
    All else is copied. The same source, labels and provenance give the same bytes.

    **Left out episodes.** Episodes without labels are left out, and the others are numbered anew.
    ``meta/procreward.json`` lists their old numbers.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Take options.

        Args:
            options: ``videos``: ``"hardlink"`` (default), ``"symlink"`` or ``"copy"``, how videos
                come into the new dataset.

        Raises:
            UnknownNameError: If there is no such option.
            ConfigError: If it has another value.
        """
        check_names("option", options, ["videos"])
        check_choice("videos", options.get("videos", LINKS[0]), LINKS)
        self._link = cast(Link, options.get("videos", LINKS[0]))

    def write(
        self,
        source: Source,
        labels: Iterable[EpisodeLabels],
        staged: Path,
        provenance: Mapping[str, Any],
    ) -> None:
        """Write the dataset with rewards in it.

        Args:
            source: The dataset as it is, a :class:`~procreward.relabel.lerobot.LeRobotSource`.
            labels: Of every episode that is written, in order of their index.
            staged: An empty folder to write into.
            provenance: Where the rewards come from; JSON values.

        Raises:
            DatasetError: If the source is of another format or damaged, has a feature of the name
                of one of ours, or the labels are not of its episodes.
        """
        plan = make_plan(_checked(source), labels)
        if staged.resolve().is_relative_to(source.root.resolve()):
            raise DatasetError(f"`out` must lie outside the dataset, got {str(staged)!r}.")
        used = carry_files(plan, staged, self._link)
        _write_data(plan, staged)
        if plan.source.info.version == "v2.1":
            write_lists_v21(plan, staged)
        else:
            write_lists_v30(plan, staged)
        note = {
            "alignment": _ALIGNMENT,
            "env_reward": ENV_REWARD if ENV_REWARD in plan.features else None,
            "columns": list(plan.columns()),
            "source_episodes": [episode.files.index for episode in plan.episodes],
            "videos": used if plan.source.info.videos else None,
            "provenance": dict(provenance),
        }
        write_json(staged / NOTE, note)
        # Last, since it is what makes a folder a dataset.
        write_info(plan, staged)

    def validate(self, source: Source, staged: Path) -> None:
        """Reopen what was written and compare it with what it came from.

        Every episode's rows are read again: the new columns must be complete, of their types and
        in range, the others as they were; each video must be the source's.

        Raises:
            DatasetError: If anything is not as it must be.
        """
        validate_dataset(_checked(source), staged)


def _checked(source: Source) -> LeRobotSource:
    if not isinstance(source, LeRobotSource):
        raise DatasetError(f"`source` must be a LeRobotDataset, got the format {source.format!r}.")
    return source


def _write_data(plan: RewritePlan, staged: Path) -> None:
    info = plan.source.info
    files: dict[Path, list[Any]] = {}
    for episode in plan.episodes:
        files.setdefault(episode.files.data, []).append(episode)
    for path, episodes in files.items():
        target = path
        if info.version == "v2.1":  # a file per episode, named by its number
            number = episodes[0].index
            chunk = number // info.chunks_size()
            target = info.data_path(episode_chunk=chunk, episode_index=number)
        rewrite_file(plan, path, staged / target.relative_to(info.root), episodes)
