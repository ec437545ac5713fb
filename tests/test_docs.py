"""The pages lead where they say, name what there is, and print the figures that were measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from procreward.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "procreward/models/nano/MODEL_CARD.md",
    )
}


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            dead.append(target)
    assert dead == []


def test_every_page_is_reached() -> None:
    texts = [text for page, text in PAGES.items() if page != "CONTRIBUTING.md"]
    linked = {Path(target).name for text in texts for target in re.findall(r"\]\(([\w/.-]+)", text)}
    pages = {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert pages <= linked


def commands(program: str) -> list[str]:
    """Command lines of that program in the pages' shell blocks, continued lines joined."""
    found = []
    for text in PAGES.values():
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                # Behind `do`, a `&&` or a variable's assignment there is a command as well.
                for part in re.split(r"&& |; do ", line.split(" #")[0]):
                    words = shlex.split(part)
                    while words and re.match(r"^[A-Z_]+=", words[0]):
                        words.pop(0)
                    if words and Path(words[0]).name == program:
                        found.append(shlex.join(words[1:]))
    return sorted(set(found))


@pytest.mark.parametrize("command", commands("procreward"))
def test_options_of_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    nested = words[0] in ("check", "verify")
    with pytest.raises(SystemExit) as exit_info:
        main([*words[: 2 if nested else 1], "--help"])
    assert exit_info.value.code == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= known


def test_configs_scripts_and_targets_exist() -> None:
    for command in commands("procreward"):
        words = shlex.split(command)
        if words[0] == "train":
            assert (ROOT / f"configs/train/{words[words.index('--config') + 1]}.yaml").is_file()
    python = [shlex.split(command) for command in commands("python")]
    for words in python:
        if words[0] == "-m" and words[1].startswith("procreward."):
            assert (ROOT / f"{words[1].replace('.', '/')}.py").is_file()
        elif words[0] != "-m":
            assert (ROOT / words[0]).is_file()
    assert ["benchmarks/learning.py", "--jobs", "2"] in python
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(commands("make")) <= targets


def figures(name: str) -> dict[str, float]:
    values: dict[str, float] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return values


def printed(page: str, label: str) -> list[str]:
    """Numbers in the row whose first cell begins so, without goals."""
    row = re.search(rf"^\| {re.escape(label)}.*$", PAGES[page], re.MULTILINE)
    assert row is not None, f"{page} has no row {label!r}"
    cells = [cell.strip(" *x") for cell in row[0].strip("|").split("|")[1:]]
    return [cell for cell in cells if re.fullmatch(r"-?[\d.]+", cell)]


def rounded(values: list[float], like: list[str]) -> list[str]:
    """The values with as many digits as are printed."""
    assert len(values) == len(like)
    return [
        f"{value:.{len(text.partition('.')[2])}f}" for value, text in zip(values, like, strict=True)
    ]


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("Spearman, expert", "spearman_expert"),
        ("Spearman, retrying", "spearman_retry"),
        ("Spearman, failing", "spearman_failing"),
        ("mean absolute error", "mae_points"),
        ("AUC of final progress", "auc_success"),
        ("false peaks", "false_peak_share"),
        ("judge, balanced accuracy", "judge_balanced_accuracy"),
    ],
)
def test_figures_of_nano(label: str, key: str) -> None:
    measured = figures("nano_quality")
    tasks = ("lift", "stack", "can", "window_open", "drawer_close", "button_press")
    row = printed("docs/nano.md", label)
    assert row == rounded([measured[key], *(measured[f"{key}_{task}"] for task in tasks)], row)


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("robosuite Lift", [f"ratio_{n}" for n in (1, 8, 32)]),
        ("the same, the bare", [f"ratio_{n}_frames_included" for n in (1, 8, 32)]),
        ("Meta-World drawer-close", [f"metaworld_ratio_{n}" for n in (1, 8, 32)]),
        ("the same, `Vec", [f"metaworld_sb3_ratio_{n}" for n in (1, 8, 32)]),
        ("drawer-close again", [f"metaworld_ratio_{n}_frames_included" for n in (1, 8, 32)]),
        (
            "`nano` on a core",
            ["waiting_share_blocking", "waiting_share_deferred", "deferred_speedup"],
        ),
        (
            "one that takes 30 ms",
            [
                "waiting_share_blocking_sleeping",
                "waiting_share_deferred_sleeping",
                "deferred_speedup_sleeping",
            ],
        ),
    ],
)
def test_figures_of_many_environments(label: str, keys: list[str]) -> None:
    measured = figures("vector_overhead")
    row = printed("docs/overhead.md", label)
    assert row == rounded([measured[key] for key in keys], row)


def test_figures_of_one_environment() -> None:
    measured = figures("wrapper_overhead")
    for key, text in (
        ("lift_ratio", "**0.98** on"),
        ("lift_ratio_frames_included", "0.74 where"),
        ("trivial_ratio", "0.018 on"),
    ):
        assert text in PAGES["docs/overhead.md"]
        number = text.split()[0].strip("*")
        assert [number] == rounded([measured[key]], [number])


@pytest.mark.parametrize(
    ("label", "job"),
    [
        ("ProcVLM, reasoning", "procvlm_env1"),
        ("the same, 4", "procvlm_env4"),
        ("the same, 16", "procvlm_env16"),
        ("judge, two views", "judge_two_views"),
        ("ProgressLM, demonstration", "progresslm_visual"),
        ("TOPReward", "topreward"),
    ],
)
def test_figures_of_the_engine(label: str, job: str) -> None:
    measured = figures("engine_cpu")
    row = printed("docs/engine.md", label)
    assert row == rounded([measured[f"{job}_ratio"], measured[f"{job}_vs_batched"]], row)
    assert measured[f"{job}_same_text"] == 1.0
    assert measured[f"{job}_max_abs_diff"] < 7e-6


@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("decoded once", "decoded_once"),
        ("encoded once", "encoded_once"),
        ("the last answer", "answers_drafted"),
        ("queries of 16", "batched"),
    ],
)
def test_figures_of_relabelling(label: str, step: str) -> None:
    row = printed("docs/relabel.md", label)
    values = []
    for name in ("relabel_cpu", "relabel_cpu_time"):
        steps = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())[
            "steps_ms_per_query"
        ]
        values.append(steps["naive"] / steps[step])
    assert row == rounded(values, row)


def test_figures_of_relabelling_as_it_is() -> None:
    row = printed("docs/relabel.md", "as it is")
    names = ("relabel_cpu", "relabel_cpu_time")
    assert row == rounded([figures(name)["speedup_vs_naive"] for name in names], row)
