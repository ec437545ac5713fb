"""The head of the page: where the numbers come from, and what they sum up to.

* :func:`provenance` - scorer, revision, prompt, settings.
* :func:`tiles` - the figures of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from procreward.report.runs import Run

__all__ = ["Fact", "provenance", "tiles"]

_SHORT_HASH = 10
_UNKNOWN, _MINUS, _GAMMA = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER GAMMA}"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something worth knowing, in words.

    Attributes:
        label: What it is.
        value: What it says.
        note: More about it, or empty.
    """

    label: str
    value: str
    note: str = ""


def provenance(run: Run) -> list[Fact]:
    """Say what answered, what it was asked and how rewards were made of it.

    Args:
        run: The run.
    """
    about = {"relabel": _of_relabelling, "train": _of_training, "demo": _of_demo}[run.kind](run)
    return [fact for fact in about if fact.value]


def _of_relabelling(run: Run) -> list[Fact]:
    account = run.account
    settings, source = account["settings"], account.get("source", {})
    reward, window = settings.get("reward", {}), settings.get("window", {})
    shown = [str(one.get("view")) for one in settings.get("shown", [])]
    facts = [
        Fact("Dataset", f"{source.get('name')} ({source.get('format')})"),
        *_model("Scorer", settings.get("scorer"), account.get("scorer")),
        *_model("Judge", settings.get("judge"), account.get("judge")),
        Fact("Asked", _asked("frame", settings.get("every_k_frames"), window)),
        Fact("Views", ", ".join(dict.fromkeys(shown))),
        *_reward(reward),
        Fact("Between queries", "held" if account.get("causal", True) else "interpolated"),
        Fact("Made with", f"procreward {account.get('procreward', '')}".strip()),
    ]
    return facts


def _of_training(run: Run) -> list[Fact]:
    config, reward = run.account, dict(run.account.get("reward") or {})
    scorer, window = reward.get("scorer"), {"window_frames": reward.get("window_frames")}
    return [
        Fact("Environment", run.title),
        Fact("Learner", f"{config.get('algorithm', '')}, {config.get('total_steps', '')} steps"),
        *_model("Scorer", scorer if isinstance(scorer, Mapping) else {"name": scorer}, None),
        Fact("Asked", _asked("step", reward.get("every_k_steps"), window)),
        *_reward(reward),
        Fact("Made with", f"procreward {version('procreward')}"),
    ]


def _of_demo(run: Run) -> list[Fact]:
    records = [entry.record for entry in run.entries]
    return [
        Fact("Environment", run.title),
        Fact("Scorer", ", ".join(dict.fromkeys(record.scorer for record in records))),
        Fact("Policies", ", ".join(dict.fromkeys(record.policy for record in records))),
        Fact("Seeds", ", ".join(str(seed) for seed in sorted({one.seed for one in records}))),
        Fact("Made with", f"procreward {version('procreward')}"),
    ]


def _model(label: str, asked: Any, answered: Any) -> list[Fact]:
    """What a model is, as it was asked for and as it describes itself."""
    if not isinstance(asked, Mapping):
        return []
    said = answered if isinstance(answered, Mapping) else {}
    name, model = asked.get("name"), said.get("model") or asked.get("model")
    parts = [str(part) for part in dict.fromkeys([model, name]) if part]
    if said.get("adapter"):
        parts.append(f"adapter {said['adapter']}")
    how = [said.get(key) for key in ("mode", "engine", "dtype", "device", "quantization")]
    facts = [
        Fact(label, " · ".join(parts)),
        _hash(f"{label} revision", said.get("revision") or asked.get("revision")),
        _hash(f"{label} weights", asked.get("model_sha256")),
        _hash(f"{label} prompt", said.get("prompt_sha256")),
        Fact(f"{label} run as", ", ".join(str(one) for one in how if one and one != "none")),
    ]
    return [fact for fact in facts if fact.value]


def _hash(label: str, value: Any) -> Fact:
    text = "" if value is None else str(value)
    long = len(text) > _SHORT_HASH + 2
    return Fact(label, f"{text[:_SHORT_HASH]}…" if long else text, text if long else "")


def _asked(unit: str, every: Any, window: Mapping[str, Any]) -> str:
    if every is None:
        return ""
    text = f"every {unit}" if every == 1 else f"every {every} {unit}s"
    frames, stride = window.get("window_frames"), window.get("frame_stride_steps")
    if frames:
        text += f", {frames} frame{'s' if frames != 1 else ''} each"
    return text + (f", {stride} apart" if frames and frames != 1 and stride else "")


def _reward(reward: Mapping[str, Any]) -> list[Fact]:
    kind, confirm = reward.get("shaping"), reward.get("confirm_queries")
    rule = f"{kind}, {_GAMMA} {_number(reward.get('gamma'))}, scale {_number(reward.get('scale'))}"
    extras = [name for name in ("ratchet", "offset") if reward.get(name)]
    if reward.get("smooth_alpha"):
        extras.append(f"smoothed {reward['smooth_alpha']}")
    threshold = reward.get("complete_threshold")
    vote = f"{confirm} of {reward.get('confirm_window')} votes"
    return [
        Fact("Reward", ", ".join([rule, *extras]) if kind else ""),
        Fact(
            "Complete at",
            f"{vote}, threshold {_number(threshold)}" if confirm and threshold is not None else "",
        ),
    ]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "default"


def tiles(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """Sum up the episodes that are shown.

    Args:
        run: The run.
        rows: Their lines in the table.
    """
    count, steps = len(rows), sum(int(one["length"]) for one in rows)
    done = sum(one["complete"] is not None for one in rows)
    queries, invalid = (sum(int(one[name]) for one in rows) for name in ("queries", "invalid"))
    stalls, drops = (sum(bool(one[name]) for one in rows) for name in ("stalls", "drops"))
    vocs = [one["voc"] for one in rows if one["voc"] is not None]
    found = [
        Fact("Episodes", f"{count:,}", f"{steps:,} steps"),
        Fact("Final progress", _percent(_mean(one["final"] for one in rows)), "mean"),
        Fact("Complete", _percent(done / count if count else None), f"{done} of {count}"),
        Fact("VOC", _signed(_mean(vocs)), f"mean of {len(vocs)}"),
        Fact(
            "Invalid answers",
            _percent(invalid / queries if queries else None, 1),
            f"{invalid:,} of {queries:,} queries",
        ),
        Fact("Flagged", f"{_flagged(rows)}", f"{stalls} with a stall, {drops} with a drop"),
    ]
    if any(one["success"] for one in rows):
        agree = sum((one["complete"] is not None) == one["success"] for one in rows)
        told = "the dataset's success" if run.kind == "relabel" else "true success"
        found.append(Fact("Agreement", _percent(agree / count), f"completion and {told}"))
    errors = [one["error"] for one in rows if one["error"] is not None]
    if errors:
        found.append(Fact("Error", _percent(_mean(errors), 1), "mean distance to the truth"))
    return found


def _flagged(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(one["stalls"] or one["drops"] or one["invalid"]) for one in rows)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _percent(value: float | None, digits: int = 0) -> str:
    return _UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def _signed(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0.0 else text.replace("-", _MINUS)
