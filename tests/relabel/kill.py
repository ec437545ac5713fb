"""Runs of the relabeller that are killed at random moments: ``python -m tests.relabel.kill``.

LeRobot datasets are rewritten too.

A process that has imported everything forks the runs, so that a run costs nothing but its own work.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from procreward.optional import ARROW, need
from procreward.registry import register_scorer
from procreward.relabel import RelabelConfig, relabel
from procreward.relabel.readings import read_readings

# What changes files; the process ends just before one of them.
EVENTS = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")


def config_of(source: Path, out: Path, log: Path) -> RelabelConfig:
    preset = source.parent / "grey.yaml"
    preset.write_text(f"scorer: {{name: grey, options: {{log: {json.dumps(str(log))}}}}}\n")
    return RelabelConfig(
        source=source,
        out=out,
        scorer=str(preset),
        every_k_frames=2,
        window_frames=2,
        group_episodes=2,
        on_error="skip",
        rewrite=(source / "meta").is_dir(),
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Name to bytes of every file in a folder, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def published(out: Path) -> set[str]:
    """Instructions of the episodes whose group is published."""
    groups = out.glob("cache/*/every-*/group-*.jsonl")
    return {one.instruction for path in groups for one in read_readings(path) if not one.error}


def run(config: RelabelConfig, kill_at_event: int | None = None) -> int:
    """Run in a fork; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 9
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            if kill_at_event is not None:
                _die_before(config.out, kill_at_event)
            status = relabel(config, lambda text: None).exit_status
    finally:
        os._exit(status)


def _die_before(out: Path, number: int) -> None:
    """Kill this process before its n-th change of a file in the folder."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        place = arguments[1] if event == "os.link" else arguments[0] if arguments else ""
        if event in EVENTS and str(place).startswith(str(out)):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def asked(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []


def main(source: Path, work: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill runs until there were enough of them; every run that ends is compared."""
    need(ARROW)
    register_scorer("grey", "tests.relabel.scorers:Grey")
    draw = random.Random(seed)
    log = work / "log"
    config = config_of(source, work / "whole", log)
    started = time.perf_counter()
    assert os.waitpid(run(config), 0)[1] >> 8 == 1  # one episode is skipped
    takes = time.perf_counter() - started
    expected, whole = tree(config.out), asked(log)
    out, done, ended, most, writing = work / "killed", 0, 0, 0, 0
    config = config_of(source, out, log)
    while done < kills or ended == 0 or out.exists():
        log.unlink(missing_ok=True)
        before = published(out)
        most = max(most, len(before))
        by_event = draw.random() < 0.5
        killing = done < kills
        events = 260 if config.rewrite else 120
        child = run(config, draw.randint(1, events) if by_event and killing else None)
        if killing and not by_event:
            time.sleep(draw.uniform(0.0, takes))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        repeated = {line.partition("\t")[0] for line in asked(log)} & before
        assert not repeated, repeated
        if os.WIFSIGNALED(status):
            done += 1
            writing += (out / ".staged" / "dataset").exists() or (out / "dataset").exists()
            continue
        assert status >> 8 == 1, status
        found = tree(out)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        changed = [name for name in expected if found[name] != expected[name]]
        assert not changed, changed
        ended += 1
        os.rename(out, work / f"done-{ended}")
    return {
        "kills": done,
        "ended": ended,
        "queries": len(whole),
        "most_published": most,
        "killed_writing": writing,
    }


if __name__ == "__main__":
    figures = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps(figures) + "\n")
