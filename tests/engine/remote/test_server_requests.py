from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine.remote.server_requests import NoAnswer, ServerAnswer, parse_answer
from procreward.engine.remote.server_settings import ServerSettings
from procreward.scorers.procvlm_text import STOP

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("choices", "message", "content", "finish_reason", "stop_reason", "matched_stop")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
CHOICE = st.fixed_dictionaries(
    {"message": st.fixed_dictionaries({"content": JSON}) | JSON},
    optional={"finish_reason": JSON, "stop_reason": JSON, "matched_stop": JSON},
)


class TestParsing:
    @given(raw=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_anything_is_an_answer_or_none(self, raw: bytes) -> None:
        self.check(raw)

    @given(choice=CHOICE)
    @settings(max_examples=300, deadline=None)
    def test_any_choice_is_an_answer_or_none(self, choice: dict[str, Any]) -> None:
        self.check(json.dumps({"choices": [choice]}).encode())

    def check(self, raw: bytes) -> None:
        where = ServerSettings(base_url="http://x/v1", model="m")
        try:
            answer: ServerAnswer | NoAnswer | None = parse_answer(raw, (STOP,), where)
        except NoAnswer as failure:
            answer = failure
        if isinstance(answer, NoAnswer):
            assert answer.kind == "malformed"
            assert "http://x/v1" in str(answer)
        elif answer is not None:
            content = json.loads(raw)["choices"][0]["message"].get("content") or ""
            assert answer.text in (content, content + STOP)

    @pytest.mark.parametrize(
        ("choice", "answer"),
        [
            ({"stop_reason": STOP}, ("84%" + STOP, True)),
            ({"matched_stop": STOP}, ("84%" + STOP, True)),
            ({"stop_reason": None}, ("84%", True)),
            ({"matched_stop": 151645}, ("84%", True)),
            ({"stop_reason": "other"}, ("84%", True)),
            ({}, None),
            ({"finish_reason": "length"}, ("84%", False)),
            ({"finish_reason": "abort", "stop_reason": None}, ("84%", False)),
        ],
    )
    def test_what_stopped_it(self, choice: dict[str, Any], answer: tuple[str, bool] | None) -> None:
        choice = {"finish_reason": "stop", **choice, "message": {"content": "84%"}}
        where = ServerSettings(base_url="http://x/v1", model="m")
        got = parse_answer(json.dumps({"choices": [choice]}).encode(), (STOP,), where)
        expected = None if answer is None else ServerAnswer(text=answer[0], finished=answer[1])
        assert got == expected
