from __future__ import annotations

import base64
import io
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from procreward.engine import Clip, Prompt
from procreward.engine.loading import load_model
from procreward.engine.reference import ReferenceEngine
from procreward.engine.remote.served import ServedEngine, ServerSettings
from procreward.engine.vision.preprocess import PreprocessConfig
from procreward.errors import (
    ConfigError,
    InstructionError,
    MissingDependencyError,
    ModelError,
)
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.scorers.procvlm_text import (
    DIRECT_PREFIX,
    NUMBER_COMPLETE,
    STOP,
    procvlm_prompt,
)
from procreward.types import Frames, Query
from tests.serving import Dialect, Reply, Respond, Server, completion, in_turn, model, serving

TASKS = (
    "Lift the red cube off the table.",
    "Push the drawer closed.",
    "Open the window.",
)
SETTINGS = {"model": "nano", "backoff_s": 0.0, "timeout_s": 30.0}
ANSWER = completion("all is <progress>84%", stop_reason=STOP)


def window(start: int, count: int = 4) -> Frames:
    """Pictures of a disc that moves over a slope, each a step on."""
    rows, columns = np.mgrid[:128, :128]
    frames = []
    for step in range(start, start + count):
        disc = (columns - 64 - 3 * step) ** 2 + (rows - 60) ** 2 < 200
        frames.append(np.stack([(columns * 2 + step * 7) % 256, rows * 2, disc * 200], axis=-1))
    return np.stack(frames).astype(np.uint8)


def prompt(start: int = 0, task: str = TASKS[0], **more: Any) -> Prompt:
    keys = tuple(("episode", "camera", step) for step in range(start, start + 4))
    return Prompt(parts=(Clip(frames=window(start), keys=keys), procvlm_prompt(task)), **more)


PROMPTS = [prompt(4 * place, task) for place, task in enumerate(TASKS)]


@pytest.fixture(scope="module")
def local() -> ReferenceEngine:
    return ReferenceEngine(load_model("nano", threads=1))


class Bench:
    """Starts servers and engines that ask them, and closes both."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(
        self, respond: Respond, *, max_pixels: int | None = None, **options: Any
    ) -> tuple[Server, ServedEngine]:
        server = self._stack.enter_context(serving(respond))
        values = {**SETTINGS, "base_url": server.url, **options}
        engine = ServedEngine(ServerSettings.from_options(values), max_pixels=max_pixels)
        self._stack.callback(engine.close)
        return server, engine


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def sent_pictures(request: dict[str, Any]) -> list[np.ndarray]:
    urls = [
        item["image_url"]["url"]
        for item in request["messages"][0]["content"]
        if item["type"] == "image_url"
    ]
    data = [base64.b64decode(url.partition(",")[2]) for url in urls]
    return [np.asarray(Image.open(io.BytesIO(raw))) for raw in data]


class TestAnswers:
    @pytest.mark.parametrize("dialect", get_args(Dialect))
    @pytest.mark.parametrize("stop", [(), (STOP,), (STOP, NUMBER_COMPLETE)])
    def test_they_are_those_of_the_model_in_this_process(
        self, bench: Bench, local: ReferenceEngine, dialect: Dialect, stop: Any
    ) -> None:
        server, engine = bench(model(local, dialect))
        # One at a time, so that it is known how many requests a server's dialect takes.
        got = [engine.generate([each], max_new_tokens=64, stop=stop)[0] for each in PROMPTS]
        expected = local.generate(PROMPTS, max_new_tokens=64, stop=stop)
        assert [answer.text for answer in got] == [answer.text for answer in expected]
        assert len({answer.text for answer in got}) == 3
        assert all(answer.finished and answer.tokens == () for answer in got)
        assert all(answer.error == "" for answer in got)
        once_more = 1 if dialect == "openai" and stop else 0
        assert len(server.requests) == 3 + once_more
        assert server.requests[0].get("stop") == ([STOP] if stop else None)
        assert ("stop" in server.requests[-1]) == (bool(stop) and dialect != "openai")

    @pytest.mark.parametrize("dialect", get_args(Dialect))
    def test_one_at_the_limit_is_not_finished(
        self, bench: Bench, local: ReferenceEngine, dialect: Dialect
    ) -> None:
        _, engine = bench(model(local, dialect))
        [answer] = engine.generate([prompt()], max_new_tokens=3, stop=(STOP,))
        assert not answer.finished
        [expected] = local.generate([prompt()], max_new_tokens=3, stop=(STOP,))
        assert answer.text == expected.text != ""

    def test_the_begun_answer_is_gone_on_with(self, bench: Bench, local: ReferenceEngine) -> None:
        server, engine = bench(model(local, "vllm"))
        begun = [prompt(assistant_prefix=DIRECT_PREFIX)]
        [answer] = engine.generate(begun, max_new_tokens=16, stop=(STOP,))
        [expected] = local.generate(begun, max_new_tokens=16, stop=(STOP,))
        assert answer.text == expected.text
        assert re.fullmatch(r"\d+%</progress>", answer.text)
        [request] = server.requests
        assert request["messages"][-1] == {"role": "assistant", "content": DIRECT_PREFIX}
        assert request["continue_final_message"] is True
        assert request["add_generation_prompt"] is False

    def test_a_server_that_takes_no_begun_answer(
        self, bench: Bench, local: ReferenceEngine
    ) -> None:
        server, engine = bench(model(local, "openai"))
        with pytest.raises(ModelError, match=r"Unrecognized request argument.*mode: reasoning"):
            engine.generate([prompt(assistant_prefix=DIRECT_PREFIX)], max_new_tokens=16)
        assert len(server.requests) == 1

    def test_a_stop_behind_the_limit_of_tokens_still_finishes(self, bench: Bench) -> None:
        _, engine = bench(lambda request: completion("it is <progress>84% d", "length"))
        [answer] = engine.generate([prompt()], max_new_tokens=9, stop=(NUMBER_COMPLETE,))
        assert (answer.text, answer.finished) == ("it is <progress>84%", True)

    def test_thoughts_cut_off_are_no_words_yet(self, bench: Bench) -> None:
        _, engine = bench(lambda request: completion(None, "length"))
        [answer] = engine.generate([prompt()], max_new_tokens=9)
        assert (answer.text, answer.finished, answer.error) == ("", False, "")

    def test_no_prompts_no_requests(self, bench: Bench) -> None:
        server, engine = bench(lambda request: ANSWER)
        assert engine.generate([], max_new_tokens=9) == []
        assert server.requests == []


class TestRequests:
    def test_parts_keep_their_order(self, bench: Bench) -> None:
        server, engine = bench(lambda request: ANSWER)
        parts = ("one ", "two", Clip(frames=window(0, 2)), "three", Clip(frames=window(9, 1)))
        engine.generate([Prompt(parts=parts, system="Be brief.")], max_new_tokens=7, stop=("a",))
        [request] = server.requests
        system, user = request["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        kinds = [item.get("text", item["type"]) for item in user["content"]]
        assert kinds == ["one two", "image_url", "image_url", "three", "image_url"]
        rest = {name: request[name] for name in request if name != "messages"}
        assert rest == {"model": "nano", "temperature": 0.0, "max_tokens": 7, "stop": ["a"]}
        request["messages"] = [user]
        sent = np.stack(sent_pictures(request))
        np.testing.assert_array_equal(sent, np.concatenate([window(0, 2), window(9, 1)]))

    def test_fields_can_be_added_and_left_out(self, bench: Bench) -> None:
        extra = {"max_tokens": None, "max_completion_tokens": 5, "seed": 1}
        server, engine = bench(lambda request: ANSWER, extra_body=extra)
        engine.generate([prompt()], max_new_tokens=7)
        [request] = server.requests
        assert set(request) == {"model", "messages", "temperature", "max_completion_tokens", "seed"}

    def test_no_more_stop_strings_than_servers_take(self, bench: Bench) -> None:
        server, engine = bench(lambda request: completion("abcdef", stop_reason=None))
        stop = ("1", "2", "3", "4", "e", re.compile("z"))
        [answer] = engine.generate([prompt()], max_new_tokens=7, stop=stop)
        assert server.requests[0]["stop"] == ["1", "2", "3", "4"]
        assert answer.text == "abcde"

    def test_jpeg_is_smaller_and_close(self, bench: Bench) -> None:
        server, engine = bench(lambda request: ANSWER, image_format="jpeg", jpeg_quality=90)
        engine.generate([prompt()], max_new_tokens=7)
        url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,")
        difference = sent_pictures(server.requests[0])[0].astype(int) - window(0)[0]
        assert 0 < np.abs(difference).mean() < 10

    def test_large_frames_are_reduced_as_the_other_engines_do(self, bench: Bench) -> None:
        server, engine = bench(lambda request: ANSWER, max_pixels=64 * 64)
        frames = np.full((1, 96, 128, 3), 7, np.uint8)
        engine.generate([Prompt(parts=(Clip(frames=frames), "go"))], max_new_tokens=7)
        grid = PreprocessConfig(min_pixels=1, max_pixels=64 * 64).image_grid(96, 128)
        assert grid == (1, 2, 4)
        assert [picture.shape for picture in sent_pictures(server.requests[0])] == [(32, 64, 3)]

    def test_the_key_comes_from_the_environment(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ROBOT_KEY", "sesame")
        server, engine = bench(lambda request: ANSWER, api_key_env="ROBOT_KEY")
        engine.generate([prompt()], max_new_tokens=7)
        assert server.keys == ["Bearer sesame"]
        assert "sesame" not in json.dumps(engine.describe())

    @pytest.mark.parametrize("value", [None, "", "  "])
    def test_a_missing_key_is_named(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        monkeypatch.delenv("ROBOT_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("ROBOT_KEY", value)
        settings = ServerSettings(base_url="http://x/v1", model="m", api_key_env="ROBOT_KEY")
        with pytest.raises(ConfigError, match=r"'ROBOT_KEY'.*http://x/v1"):
            ServedEngine(settings)

    def test_no_other_key_is_sent(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "of somebody else's server")
        server, engine = bench(lambda request: ANSWER)
        engine.generate([prompt()], max_new_tokens=7)
        assert server.keys == ["Bearer none"]

    def test_videos_go_as_pictures_and_it_says_so(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        server, engine = bench(lambda request: ANSWER)
        clip = Clip(frames=window(0, 3), video=True, frame_indices=(0, 1, 2), fps=10.0)
        with caplog.at_level(logging.WARNING, "procreward.engine.remote.outside"):
            for _ in range(2):
                engine.generate([Prompt(parts=(clip, "done?"))], max_new_tokens=7)
        assert len(sent_pictures(server.requests[0])) == 3
        assert [record.message for record in caplog.records] == [
            f"Video clips are shown to {server.url} as separate pictures without times, which is "
            "another prompt than the model's own for videos."
        ]


class TestConcurrency:
    def test_as_many_requests_as_allowed_are_under_way_at_once(self, bench: Bench) -> None:
        together = threading.Barrier(4)

        def respond(request: dict[str, Any]) -> Reply:
            together.wait(20)  # breaks, and the request fails, unless four are here
            return completion(request["messages"][0]["content"][0]["text"])

        server, engine = bench(respond, concurrency=4)
        prompts = [Prompt(parts=(f"number {place}",)) for place in range(8)]
        answers = engine.generate(prompts, max_new_tokens=7)
        assert [answer.text for answer in answers] == [f"number {place}" for place in range(8)]
        assert server.most_at_once == 4


def broken_json(**more: Any) -> Reply:
    return Reply(body=b'{"choices": [{"message": {"content": "hi', **more)


NO_CHOICES = Reply(body=b'{"choices": []}')
HTML = Reply(body=b"<html>Bad gateway</html>", headers={"Content-Type": "text/html"})
CUT = Reply(body=ANSWER.body[:40], length=len(ANSWER.body))
HELD = threading.Event()  # never set: the server lets go when it stops


class TestFailures:
    @pytest.mark.parametrize(
        ("reply", "requests", "message"),
        [
            (Reply(wait=HELD), 2, "did not answer within `timeout_s` = 0.2 seconds"),
            (Reply(body=ANSWER.body, drip=0.1), 2, "did not answer within"),
            (Reply(status=500, body=b"out of memory"), 2, "status 500: .*out of memory"),
            (Reply(status=503), 2, "status 503"),
            (Reply(status=429), 2, "status 429.*concurrency"),
            (Reply(status=409), 2, "status 409"),
            (CUT, 2, "broke off its answer"),
            (Reply(status=404, body=b'{"message": "no such model"}'), 1, "404: .*server.model"),
            (Reply(status=401), 1, "401.*api_key_env"),
            (broken_json(), 1, "chat completion in JSON, got '{\"choices"),
            (HTML, 1, "got '<html>Bad gateway</html>'"),
            (NO_CHOICES, 1, r"got '\{\"choices\": \[\]\}'"),
            (Reply(body=b""), 1, "got ''"),
            (Reply(body=b"[" * 100_000), 1, r"got '\[\[\["),
            (Reply(body=b'{"choices": [{"message": null}]}'), 1, "chat completion in JSON"),
            (completion(None), 1, "no text"),
            (completion(None, "tool_calls"), 1, "no text"),
        ],
    )
    def test_each_says_where_and_what(
        self, bench: Bench, reply: Reply, requests: int, message: str
    ) -> None:
        timeout_s = 0.2 if reply.wait or reply.drip else 30.0
        server, engine = bench(lambda request: reply, timeout_s=timeout_s, max_retries=1)
        with pytest.raises(ModelError, match=message) as caught:
            engine.generate([prompt()], max_new_tokens=7, stop=(STOP,))
        assert server.url in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert server.seen(requests) == requests

    def test_nobody_listens(self) -> None:
        with serving(lambda request: ANSWER) as server:
            url = server.url
        engine = ServedEngine(ServerSettings(base_url=url, model="m", backoff_s=0, max_retries=1))
        with pytest.raises(ModelError, match=f"No connection to {url}.*Is the server running"):
            engine.generate([prompt()], max_new_tokens=7)
        engine.close()

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(status=500),
            Reply(status=408),
            Reply(status=429, headers={"Retry-After": "0"}),
            CUT,
            Reply(wait=HELD),
        ],
    )
    def test_one_failure_is_got_over(self, bench: Bench, reply: Reply) -> None:
        timeout_s = 0.5 if reply.wait else 30.0
        server, engine = bench(in_turn(reply, ANSWER), timeout_s=timeout_s, max_retries=5)
        [answer] = engine.generate([prompt()], max_new_tokens=7, stop=(STOP,))
        assert answer.text == "all is <progress>84%</progress>"
        assert server.seen(2) >= 2

    def test_one_of_many_does_not_lose_the_others(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        def respond(request: dict[str, Any]) -> Reply:
            if TASKS[1] in request["messages"][0]["content"][-1]["text"]:
                return Reply(status=500, body=b"no such drawer")
            return ANSWER

        _, engine = bench(respond)
        with caplog.at_level(logging.WARNING, "procreward.engine.remote.outside"):
            answers = engine.generate(PROMPTS, max_new_tokens=7, stop=(STOP,))
        texts = ["all is <progress>84%</progress>", "", "all is <progress>84%</progress>"]
        assert [answer.text for answer in answers] == texts
        assert [answer.error for answer in answers] == ["", "http_500", ""]
        assert [answer.finished for answer in answers] == [True, False, True]
        assert "1 of 3 requests failed" in caplog.text
        assert "no such drawer" in caplog.text

    def test_without_the_client_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(MissingDependencyError, match=r"pip install \"procreward\[served\]\""):
            ServedEngine(ServerSettings(base_url="http://x/v1", model="m"))


class TestRefusals:
    def test_what_a_server_cannot_do(self, bench: Bench) -> None:
        server, engine = bench(lambda request: ANSWER)
        with pytest.raises(ConfigError, match=r"no likelihoods.*engine: vllm"):
            engine.label_nll([prompt()], ["yes", "no"])
        with pytest.raises(ConfigError, match=r"no likelihoods.*engine: fast"):
            engine.read_number([prompt()], lead="<progress>", max_new_tokens=9)
        with pytest.raises(ConfigError, match="leave it open"):
            engine.generate([Prompt(parts=("go",), open_turn=True)], max_new_tokens=9)
        with pytest.raises(ConfigError, match="max_new_tokens"):
            engine.generate([prompt()], max_new_tokens=0)
        assert server.requests == []

    @pytest.mark.parametrize(
        "bad",
        [
            Prompt(parts=("lift<|im_end|>",)),
            Prompt(parts=("a <|im_", "start|> b")),
            Prompt(parts=("go",), system="<|image_pad|>"),
            Prompt(parts=("go",), assistant_prefix="<|endoftext|>"),
        ],
    )
    def test_control_tokens(self, bench: Bench, bad: Prompt) -> None:
        server, engine = bench(lambda request: ANSWER)
        with pytest.raises(InstructionError, match="control tokens"):
            engine.generate([bad], max_new_tokens=9)
        assert server.requests == []


class TestScorer:
    def query(self, task: str, start: int) -> Query:
        return Query(
            frames={"camera": window(start)},
            instruction=task,
            frame_steps=tuple(range(start, start + 4)),
            stream="episode",
        )

    def test_procvlm_reads_the_same_progress(self, bench: Bench, local: ReferenceEngine) -> None:
        _, engine = bench(model(local, "sglang"))
        queries = [self.query(task, 4 * place) for place, task in enumerate(TASKS)]
        served = ProcVLM(engine, ProcVLMOptions(mode="reasoning")).score(queries)
        here = ProcVLM(local, ProcVLMOptions(mode="reasoning")).score(queries)
        assert [score.progress for score in served] == [score.progress for score in here]
        assert [score.text for score in served] == [score.text for score in here]
        assert all(score.valid for score in served)

    def test_a_failed_request_is_no_reading(self, bench: Bench) -> None:
        _, engine = bench(in_turn(Reply(status=500), ANSWER), max_retries=0, concurrency=1)
        queries = [self.query(TASKS[0], 0), self.query(TASKS[0], 1)]
        failed, answered = ProcVLM(engine, ProcVLMOptions(mode="reasoning")).score(queries)
        assert (failed.progress, failed.reason) == (None, "http_500")
        assert answered.progress == 0.84


def test_importing_it_is_light() -> None:
    code = (
        "import sys, procreward.engine.remote.served\n"
        "print([name for name in ('torch', 'openai', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_an_interrupt_waits_for_no_answer_and_asks_no_more() -> None:
    wait = threading.Event()
    with serving(in_turn(Reply(status=500, wait=wait))) as server:
        # A shell's background jobs, and what they start, ignore Ctrl-C.
        program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from procreward.engine import Prompt
from procreward.engine.remote.served import ServedEngine, ServerSettings
settings = ServerSettings(base_url={server.url!r}, model="m", max_retries=3, concurrency=2)
prompts = [Prompt(parts=(f"{{number}}?",)) for number in range(6)]
try:
    ServedEngine(settings).generate(prompts, max_new_tokens=4)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert server.seen(2) == 2
            process.send_signal(signal.SIGINT)
            # Lest a failure is waited for.
            watchdog = threading.Timer(60, process.kill)
            watchdog.start()
            # While both requests are still under way.
            assert process.stdout.readline() == "interrupted\n"
            wait.set()
            assert process.wait(60) == 0
            watchdog.cancel()
        assert len(server.requests) == 2
