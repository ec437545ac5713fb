"""Models behind an OpenAI-compatible server: SGLang, vLLM or a provider's API.

Start a server, for example one of these::

    vllm serve ce-amtic/ProcVLM-2B --port 8000
    python -m sglang.launch_server --model-path ce-amtic/ProcVLM-2B --port 8000

and name it in the scorer's options::

    engine: served
    server: {base_url: "http://127.0.0.1:8000/v1", model: ce-amtic/ProcVLM-2B}

The server's own chat template and preprocessing apply. What they do not do is done here: words with
control tokens are refused, and frames above the scorer's ``max_pixels`` are reduced before they are
sent. A video clip is sent as separate pictures, for the API has no field for frame times. Some
servers take sampling settings from the checkpoint even for greedy answers; where a checkpoint has a
repetition penalty (Qwen2.5-VL), set ``extra_body: {repetition_penalty: 1.0}``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from procreward.checks import check_int
from procreward.engine import (
    Clip,
    EndTokens,
    Generation,
    LabelNLL,
    NumberReading,
    Prompt,
    Stop,
)
from procreward.engine.remote.outside import VideoNotice, check_words, clips_of
from procreward.engine.remote.picture_urls import PictureURLs
from procreward.engine.remote.server_settings import ServerSettings
from procreward.errors import ConfigError, ServerError

if TYPE_CHECKING:
    from procreward.engine.remote.server_requests import NoAnswer, Requester

__all__ = ["ServedEngine", "ServerSettings"]

logger = logging.getLogger(__name__)

_MOST_STOPS = 4  # more are refused by OpenAI's own API
_NO_LIKELIHOODS = (
    "An OpenAI-compatible server gives no likelihoods of words that it is given, so `engine: "
    "served` can only generate. Use `engine: fast`, `strict` or `reference` (the model in this "
    "process){more}."
)


class ServedEngine:
    """Answers prompts through a server; see :class:`procreward.engine.Engine`.

    One failed request does not lose the others of a call: its answer has an
    :attr:`~procreward.engine.Generation.error` (``"timeout"``, ``"unreachable"``, ``"malformed"``
    or ``"http_500"`` and the like). Answers carry no token ids, since servers give none.

    Args:
        settings: Where the server is and how to ask.
        max_pixels: Area in pixels above which a frame is reduced before it is sent, or None.

    Raises:
        ConfigError: If the environment variable of the key is not set.
        MissingDependencyError: If the client library is not installed.
    """

    def __init__(self, settings: ServerSettings, *, max_pixels: int | None = None) -> None:
        from procreward.engine.remote.server_requests import Requester

        self._settings = settings
        self._requester: Requester = Requester(settings, _api_key(settings))
        self._pictures = PictureURLs(
            settings.image_format, jpeg_quality=settings.jpeg_quality, max_pixels=max_pixels
        )
        self._videos = VideoNotice(settings.base_url)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily, several at a time.

        A request takes at most ``timeout_s`` for each of ``1 + max_retries`` attempts and the
        pauses between them.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: What ends an answer; strings are also sent to the server, patterns cut here.

        Returns:
            One answer per prompt, in order; with an ``error`` where there is none.

        Raises:
            ConfigError: If a prompt leaves the user's turn open.
            InstructionError: If a text contains control tokens.
            ServerError: If every request failed.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        if not prompts:
            return []
        bodies = self._bodies(prompts, max_new_tokens)
        workers = min(self._settings.concurrency, len(bodies))
        pool, given_up = ThreadPoolExecutor(workers, "procreward-served"), threading.Event()
        try:
            outcomes = list(pool.map(lambda body: self._ask(body, stop, given_up), bodies))
        except BaseException:
            # An interrupt: attempts under way end by themselves, and nobody waits for them.
            given_up.set()
            raise
        finally:
            pool.shutdown(wait=not given_up.is_set(), cancel_futures=True)
        failures = [outcome for outcome in outcomes if not isinstance(outcome, Generation)]
        if failures:
            message = f"{len(failures)} of {len(outcomes)} requests failed. {failures[0]}"
            if len(failures) == len(outcomes):
                raise ServerError(message, failures[0].kind)
            logger.warning("%s", message)
        return [
            outcome
            if isinstance(outcome, Generation)
            else Generation(text="", tokens=(), finished=False, error=outcome.kind)
            for outcome in outcomes
        ]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Refuse: a server gives no likelihoods of given words.

        Raises:
            ConfigError: Always.
        """
        _refuse(" or `engine: vllm`")

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Refuse: a server gives no likelihoods of given words.

        Raises:
            ConfigError: Always.
        """
        _refuse(", or let the model write the number (the scorer's `readout: greedy`)")

    def release(self, streams: Iterable[str]) -> None:
        """Forget the encoded frames of streams that have ended; see the protocol."""
        self._pictures.release(streams)

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers; it never holds the key."""
        settings = self._settings
        return {
            "engine": "served",
            "base_url": settings.base_url,
            "model": settings.model,
            "image_format": settings.image_format,
            "extra_body": dict(settings.extra_body),
        }

    def close(self) -> None:
        """Close the connections; the engine cannot be used afterwards."""
        self._requester.close()

    def _bodies(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[dict[str, Any]]:
        clips = [clips_of(prompt) for prompt in prompts]
        self._videos.look(clip for group in clips for clip in group)
        urls = iter(self._pictures.urls(clip for group in clips for clip in group))
        return [
            {
                "model": self._settings.model,
                "messages": _messages(prompt, [next(urls) for _ in group]),
                "temperature": 0.0,
                "max_tokens": max_new_tokens,
                **(_CONTINUE if prompt.assistant_prefix else {}),
            }
            for prompt, group in zip(prompts, clips, strict=True)
        ]

    def _ask(
        self, body: dict[str, Any], stop: Stop, given_up: threading.Event
    ) -> Generation | NoAnswer:
        from procreward.engine.remote.server_requests import NoAnswer

        words = [word for word in stop if isinstance(word, str)][:_MOST_STOPS]
        try:
            answer = self._requester.ask(body, words, given_up)
        except NoAnswer as failure:
            return failure
        return _generation(answer.text, answer.finished, stop)


_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


def _messages(prompt: Prompt, urls: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Write a prompt as chat messages, its clips as pictures."""
    if prompt.open_turn:
        raise ConfigError(
            "A chat server closes the user's turn, so a prompt cannot leave it open (TOPReward "
            "needs that). Use `engine: fast`, `strict` or `reference`."
        )
    check_words(prompt)
    content: list[dict[str, Any]] = []
    groups = iter(urls)
    for part in prompt.parts:
        if isinstance(part, Clip):
            content += [{"type": "image_url", "image_url": {"url": url}} for url in next(groups)]
        elif content and content[-1]["type"] == "text":
            content[-1]["text"] += part
        else:
            content.append({"type": "text", "text": part})
    messages: list[dict[str, Any]] = []
    if prompt.system is not None:
        messages.append({"role": "system", "content": prompt.system})
    messages.append({"role": "user", "content": content})
    if prompt.assistant_prefix:
        messages.append({"role": "assistant", "content": prompt.assistant_prefix})
    return messages


def _generation(text: str, finished: bool, stop: Stop) -> Generation:
    from procreward.engine.reading.inputs import cut_at_stop

    stopped = any(
        word in text if isinstance(word, str) else word.search(text) is not None for word in stop
    )
    return Generation(text=cut_at_stop(text, stop), tokens=(), finished=finished or stopped)


def _refuse(more: str) -> NoReturn:
    raise ConfigError(_NO_LIKELIHOODS.format(more=more))


def _api_key(settings: ServerSettings) -> str:
    if settings.api_key_env is None:
        return "none"  # the client wants one even where the server does not
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"The environment variable {settings.api_key_env!r} (`server.api_key_env`) must hold "
            f"the key for {settings.base_url}, and is not set. Set it before starting, or remove "
            "`api_key_env` for a server that wants no key."
        )
    return key
