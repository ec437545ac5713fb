"""What the models said about an episode, and how it is written down.

* :class:`Reading` - the answers about one picture.
* :class:`EpisodeReadings` - those of an episode, or why it has none.
* :func:`write_readings` / :func:`read_readings` - JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from procreward.errors import DatasetError
from procreward.runner import Answer, Failure
from procreward.types import Score

__all__ = ["EpisodeReadings", "Reading", "read_readings", "write_readings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The answers about one picture of an episode.

    Attributes:
        frame: The picture that is judged, from 0.
        window: Pictures that the scorer was shown, oldest first; neighbours may be equal.
        judge_window: Pictures that the judge was shown, empty without a judge.
        score: The scorer's answer, or None if it raised.
        judge_score: The judge's answer, or None if it raised or there is none.
        failed: Why the scorer raised (the exception's name), else empty.
        judge_failed: Likewise of the judge.
    """

    frame: int
    window: tuple[int, ...]
    judge_window: tuple[int, ...] = ()
    score: Score | None = None
    judge_score: Score | None = None
    failed: str = ""
    judge_failed: str = ""

    @classmethod
    def of(
        cls,
        frame: int,
        window: tuple[int, ...],
        answer: Answer,
        judge_window: tuple[int, ...] = (),
        judge_answer: Answer | None = None,
    ) -> Reading:
        """Build from the answers of a :class:`~procreward.runner.QueryRunner`."""
        return cls(
            frame=frame,
            window=window,
            judge_window=judge_window,
            score=answer if isinstance(answer, Score) else None,
            judge_score=judge_answer if isinstance(judge_answer, Score) else None,
            failed=answer.reason if isinstance(answer, Failure) else "",
            judge_failed=judge_answer.reason if isinstance(judge_answer, Failure) else "",
        )

    @property
    def answers(self) -> list[Answer]:
        """The answers, the scorer's first; as many as were asked."""
        found: list[Answer] = [_answer(self.score, self.failed)]
        return (
            [*found, _answer(self.judge_score, self.judge_failed)] if self.judge_window else found
        )

    @property
    def raised(self) -> bool:
        """Whether a model raised instead of answering."""
        return bool(self.failed or self.judge_failed)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why answers are none; empty if all are usable."""
        found = [self.failed or _reason(self.score)]
        if self.judge_window:
            found.append(self.judge_failed or _reason(self.judge_score))
        return tuple(reason for reason in found if reason)


def _answer(score: Score | None, failed: str) -> Answer:
    return Failure(reason=failed, message="") if score is None else score


def _reason(score: Score | None) -> str:
    return "" if score is None or score.valid else score.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeReadings:
    """What the models said about an episode.

    Attributes:
        index: The episode's place in the dataset.
        name: Its name.
        fingerprint: Of its pictures; see :meth:`procreward.relabel.episodes.Source.fingerprint`.
        instruction: The task in words, as it was asked.
        readings: In order of their pictures.
        error: Why the episode was skipped; it then has no readings.
    """

    index: int
    name: str
    fingerprint: str
    instruction: str
    readings: tuple[Reading, ...] = ()
    error: str = ""


_SCORE_FIELDS = tuple(one.name for one in fields(Score))


def _score_json(score: Score | None, failed: str) -> dict[str, Any]:
    if score is None:
        return {"failed": failed}
    # asdict() would copy every value, which takes longer than to write it.
    values = {name: getattr(score, name) for name in _SCORE_FIELDS}
    # Models say little more than a number most of the time.
    return {name: value for name, value in values.items() if value not in (None, "", {})}


def _lines(episodes: Iterable[EpisodeReadings]) -> Iterable[dict[str, Any]]:
    for episode in episodes:
        yield {
            "episode": episode.index,
            "name": episode.name,
            "fingerprint": episode.fingerprint,
            "instruction": episode.instruction,
            "readings": len(episode.readings),
            "error": episode.error,
        }
        for one in episode.readings:
            line: dict[str, Any] = {"frame": one.frame, "window": one.window}
            line["scorer"] = _score_json(one.score, one.failed)
            if one.judge_window:
                line["judge_window"] = one.judge_window
                line["judge"] = _score_json(one.judge_score, one.judge_failed)
            yield line


def write_readings(episodes: Iterable[EpisodeReadings], path: Path) -> None:
    """Write readings as JSON lines; the same readings give the same bytes.

    Half a surrogate pair, which a model's text or a file's name may hold, is escaped.

    Args:
        episodes: In the order of the file.
        path: A new file; it is not flushed to disk.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace") as handle:
        for line in _lines(episodes):
            handle.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def read_readings(path: Path) -> tuple[EpisodeReadings, ...]:
    """Read what :func:`write_readings` wrote.

    Raises:
        DatasetError: If the file is none, or lines are missing.
    """
    try:
        with path.open(encoding="utf-8") as handle:
            lines = [json.loads(line) for line in handle]
        found, place = [], 0
        while place < len(lines):
            head, count = lines[place], lines[place]["readings"]
            body = lines[place + 1 : place + 1 + count]
            if len(body) < count:
                raise ValueError(
                    f"{count} readings of {head['name']!r} announced, {len(body)} found"
                )
            found.append(_episode(head, body))
            place += 1 + count
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{str(path)!r} must hold readings, got something else ({error!r}). It was written by "
            "another version or changed since; delete it to have its episodes asked about again."
        ) from error
    return tuple(found)


def _episode(head: Mapping[str, Any], body: Iterable[Mapping[str, Any]]) -> EpisodeReadings:
    return EpisodeReadings(
        index=head["episode"],
        name=head["name"],
        fingerprint=head["fingerprint"],
        instruction=head["instruction"],
        readings=tuple(map(_reading, body)),
        error=head["error"],
    )


def _reading(line: Mapping[str, Any]) -> Reading:
    judge = line.get("judge", {})
    return Reading(
        frame=line["frame"],
        window=tuple(line["window"]),
        judge_window=tuple(line.get("judge_window", ())),
        score=None if "failed" in line["scorer"] else Score(**line["scorer"]),
        judge_score=None if not judge or "failed" in judge else Score(**judge),
        failed=line["scorer"].get("failed", ""),
        judge_failed=judge.get("failed", ""),
    )
