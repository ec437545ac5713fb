"""What ``benchmarks/learning.py`` prints and draws: tables in Markdown and a picture per task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

__all__ = ["curves", "tables"]

Record = Mapping[str, Any]

ORDER: Final = (
    "nano-delta",
    "nano-pbrs",
    "nano-raw",
    "truth-delta",
    "truth-pbrs",
    "sparse",
    "dense",
    "clock",
)
BASIS: Final = "truth-delta"

_COLOURS: Final = {
    "nano-delta": "#0B6EBD",
    "nano-pbrs": "#3B8E5A",
    "nano-raw": "#8A5FBF",
    "truth-delta": "#1C2026",
    "truth-pbrs": "#6FA98A",
    "sparse": "#D1690E",
    "dense": "#B33A5B",
    "clock": "#9A9A9A",
}

# Curves at zero lie on each other.
_STYLES: Final[dict[str, Any]] = {
    "sparse": (0, (4, 2)),
    "dense": (2, (1.5, 2.5)),
    "clock": (0, (1, 3)),
}


def variant(record: Record) -> str:
    """Return the reward with whatever else tells a run from its neighbours of other seeds."""
    parts = [record["reward"], *(f"{name}={value}" for name, value in record["settings"])]
    return " ".join(parts + ([] if record["latency"] == "blocking" else [record["latency"]]))


def grouped(records: Iterable[Record]) -> dict[tuple[str, str, int], list[Record]]:
    """Return the runs of each task, variant and k, by seed."""
    groups: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["seed"]):
        groups[record["task"], variant(record), record["every_k_steps"]].append(record)
    return dict(groups)


def finals(group: Sequence[Record]) -> str:
    """Return mean, least and greatest final success, and the number of seeds."""
    values = [record["final_success"] for record in group]
    span = f"{min(values):.2f} to {max(values):.2f}, " if len(values) > 1 else ""
    return f"{np.mean(values):.2f} ({span}n={len(values)})"


def row(cells: Iterable[object]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head: Sequence[object], body: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    return "\n".join([row(head), row("---" for _ in head), *map(row, body)])


def tables(records: Sequence[Record], every_k_steps: Mapping[str, int]) -> str:
    """Return everything that is printed.

    Args:
        records: The finished runs.
        every_k_steps: Task to the k that its rewards are compared at; also the order of tasks.
    """
    groups = grouped(records)
    tasks = [task for task in every_k_steps if any(key[0] == task for key in groups)]
    parts = [
        ("Final success by reward", _by_reward(groups, tasks, every_k_steps)),
        ("Final success by steps between queries", _by_k(groups, tasks)),
        ("What the model read in training, beside the truth", _readings(groups)),
        ("nano-delta's readings by true progress", _bins(groups, every_k_steps)),
        ("Blocking beside deferred", _latencies(records)),
    ]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in parts if text)


def _by_reward(
    groups: Mapping[tuple[str, str, int], Sequence[Record]],
    tasks: Sequence[str],
    every_k_steps: Mapping[str, int],
) -> str:
    names = {key[1] for key in groups if key[2] == every_k_steps[key[0]]}
    body = []
    for name in sorted(names, key=_rank):
        found = [groups.get((task, name, every_k_steps[task])) for task in tasks]
        body.append([name, *("" if group is None else finals(group) for group in found)])
    head = [f"{task}, k={every_k_steps[task]}" for task in tasks]
    return table(["reward", *head], body) + "\n\n" + _shares(groups, tasks, every_k_steps)


def _shares(
    groups: Mapping[tuple[str, str, int], Sequence[Record]],
    tasks: Sequence[str],
    every_k_steps: Mapping[str, int],
) -> str:
    """Return what share of the upper bound the learned reward reaches."""
    out = []
    for task in tasks:
        pair = [groups.get((task, name, every_k_steps[task])) for name in ("nano-delta", BASIS)]
        if pair[0] and pair[1]:
            ours, basis = (np.mean([r["final_success"] for r in group or ()]) for group in pair)
            share = f"{ours / basis:.2f}" if basis > 0 else "not defined"
            out.append(f"{task} {share}")
    return f"nano-delta / {BASIS}: " + ", ".join(out)


def _by_k(groups: Mapping[tuple[str, str, int], Sequence[Record]], tasks: Sequence[str]) -> str:
    body = []
    for task in tasks:
        for name in ORDER:
            ks = sorted(k for t, n, k in groups if (t, n) == (task, name))
            if len(ks) > 1:
                body += [[task, name, k, finals(groups[task, name, k])] for k in ks]
    return table(["task", "reward", "k", "final success"], body) if body else ""


def _readings(groups: Mapping[tuple[str, str, int], Sequence[Record]]) -> str:
    body = []
    for (task, name, k), group in sorted(groups.items(), key=lambda item: _place(item[0])):
        # Under deferral a step's info has the latest answer, which is about an earlier step.
        group = [one for one in group if "reading" in one and one["latency"] == "blocking"]
        read = [record["reading"] for record in group]
        if not read:
            continue
        means = {
            key: float(np.mean([one[key] for one in read]))
            for key in ("bias", "mae", "spearman", "false_high")
        }
        last = [record["training"][-1].get("fooled", 0.0) for record in group]
        queries = np.mean([record["queries"] for record in group])
        body.append(
            [
                task,
                name,
                k,
                f"{queries:.0f}",
                sum(record["failures"] for record in group),
                f"{100 * means['bias']:+.1f}",
                f"{100 * means['mae']:.1f}",
                f"{means['spearman']:.2f}",
                f"{means['false_high']:.3f}",
                f"{np.mean(last):.2f}",
            ]
        )
    head = ["task", "reward", "k", "queries", "failed", "bias", "MAE", "Spearman"]
    return table([*head, "> 20 too high", ">= 85 without success"], body) if body else ""


def _bins(
    groups: Mapping[tuple[str, str, int], Sequence[Record]], every_k_steps: Mapping[str, int]
) -> str:
    """Return where on the way the model reads too much: all seeds' queries together."""
    body = []
    for task, k in every_k_steps.items():
        found: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
        for record in groups.get((task, "nano-delta", k), ()):
            for one in record.get("reading", {}).get("bins", ()):
                found[one["truth_from"]].append(one)
        for start, ones in sorted(found.items()):
            weights = [one["n"] for one in ones]
            bias, high = (
                float(np.average([one[key] for one in ones], weights=weights))
                for key in ("bias", "false_high")
            )
            body.append([task, f"{start:.2f}", sum(weights), f"{100 * bias:+.1f}", f"{high:.3f}"])
    head = ["task", "truth from", "queries", "bias", "> 20 too high"]
    return table(head, body) if body else ""


def _latencies(records: Sequence[Record]) -> str:
    by_key = {record["key"]: record for record in records}
    body = []
    for record in records:
        twin = by_key.get(record["key"].removesuffix("/deferred"))
        if record["latency"] == "deferred" and twin is not None:
            same = record["policy_sha256"] == twin["policy_sha256"]
            body.append([twin["key"], "equal" if same else "different"])
    return table(["run", "parameters of the two policies"], body) if body else ""


def _rank(name: str) -> tuple[int, str]:
    reward = name.split(" ")[0]
    return (ORDER.index(reward) if reward in ORDER else len(ORDER), name)


def _place(key: tuple[str, str, int]) -> tuple[str, tuple[int, str], int]:
    return key[0], _rank(key[1]), key[2]


def curves(records: Sequence[Record], every_k_steps: Mapping[str, int], out: Path) -> list[Path]:
    """Draw true success against environment steps: thin per seed, thick the mean.

    Args:
        records: The finished runs.
        every_k_steps: Task to the k that is drawn.
        out: Folder for the pictures, ``learning-TASK.png``.

    Returns:
        The pictures.
    """
    groups = grouped(records)
    paths = []
    for task, k in every_k_steps.items():
        shown = {
            name: group for (t, name, every), group in groups.items() if (t, every) == (task, k)
        }
        if shown:
            out.mkdir(parents=True, exist_ok=True)
            paths.append(out / f"learning-{task}.png")
            _draw(task, shown, paths[-1])
    return paths


def _draw(task: str, groups: Mapping[str, Sequence[Record]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in sorted((name for name in groups if name in _COLOURS), key=_rank):
        colour = _COLOURS[name]
        group = groups[name]
        for record in group:
            axes.plot(
                [0, *record["steps"]],
                [0.0, *record["success"]],
                color=colour,
                linewidth=0.7,
                alpha=0.3,
            )
        points = min(len(record["steps"]) for record in group)
        mean = np.mean([record["success"][:points] for record in group], axis=0)
        steps = [0, *group[0]["steps"][:points]]
        label = f"{name} ({len(group)})"
        style = _STYLES.get(name, "-")
        axes.plot(steps, [0.0, *mean], color=colour, linewidth=2.2, linestyle=style, label=label)
    axes.set_title(f"{task}: true success of the policy (20 fixed episodes)", fontsize=10.5)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("success rate")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)
    axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, title="reward (seeds)")
    figure.savefig(path)
    # With a palette the picture is a third of the size, and looks the same.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
