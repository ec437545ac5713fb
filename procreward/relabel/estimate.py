"""What a run will take, by asking a few of its queries."""

from __future__ import annotations

from dataclasses import replace

from procreward.relabel.plan import RelabelPlan
from procreward.relabel.scoring import AHEAD_BYTES, OpenGroup

__all__ = ["estimate"]

_EPISODES, _QUERIES = 2, 8


def estimate(plan: RelabelPlan) -> tuple[int, float] | None:
    """Load the models, ask about the first episodes that are left, and time it.

    Args:
        plan: The run; nothing of it is done.

    Returns:
        How many queries were timed, and seconds per query; None if nothing is left to ask, or
        nothing was answered.

    Raises:
        DatasetError: If one of these episodes cannot be read and is not to be skipped.
        ScorerError: If a model breaks its contract, or raises too often in a row.
        ModelError: If a model cannot be loaded.
    """
    if not plan.queries_left():
        return None
    job = plan.job(plan.unfinished[0])
    # As if nothing were known: what is left may be the last frame of each.
    episodes = tuple(replace(one, known=(), denser=()) for one in job.episodes[:_EPISODES])
    job = replace(job, episodes=episodes, batch_queries=_QUERIES)
    with OpenGroup(job, plan.source, ahead_bytes=AHEAD_BYTES) as group:
        count, seconds = group.time_queries()
    return (count, seconds / count) if count else None
