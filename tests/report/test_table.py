from __future__ import annotations

from procreward.report.table import format_table
from tests.report.helpers import episode, step_trace

EXPECTED = """\
policy  episode  steps  return  final progress  completion  env success  queries  invalid answers
------  -------  -----  ------  --------------  ----------  -----------  -------  ---------------
expert        0      4  +0.250           100 %      step 3       step 4        5                0
random       12      4  -0.062            none          no           no        2                2"""


def test_table_line_by_line() -> None:
    idle = episode(
        "random",
        12,
        episode_return=-0.0624,
        final_progress=None,
        queries=2,
        invalid_answers=2,
        trace=(step_trace(0), step_trace(1)),
    )
    assert format_table([episode(), idle]) == EXPECTED


def test_success_that_did_not_last_is_said() -> None:
    lost = episode(trace=(step_trace(0, success=True, complete=True), step_trace(1)))
    assert format_table([lost]).count("step 0, lost") == 2
