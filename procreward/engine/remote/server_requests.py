"""One chat request to an OpenAI-compatible server: attempts, time limits, and what came back."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from procreward.engine.remote.server_settings import ServerSettings, backoff
from procreward.errors import MissingDependencyError

if TYPE_CHECKING:
    import openai

__all__ = ["NoAnswer", "Requester", "ServerAnswer", "parse_answer"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 16 * 1024**2
_SHOWN = 300
_UNFINISHED = ("length", "abort", "content_filter", "error")
_HINTS = {
    400: "A server may refuse a field of the request (then see `extra_body`) or too many pictures.",
    401: "Name the variable with the key in `server.api_key_env`.",
    403: "Name the variable with the key in `server.api_key_env`.",
    404: "Check `server.model`, and that `server.base_url` ends where the API begins (often /v1).",
    413: "Send fewer or smaller frames (`max_pixels`), or `image_format: jpeg`.",
    429: "Lower `server.concurrency` or ask less often.",
}
_HINT_PREFIX = (
    "The prompt begins the assistant's answer, which not every server allows; use the scorer's "
    "`mode: reasoning`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What a server answered.

    Attributes:
        text: The words; with the stop string that ended them, if one did and the server said so.
        finished: Whether the answer ended by itself rather than at a limit.
    """

    text: str
    finished: bool


class NoAnswer(Exception):
    """A request got no answer.

    Args:
        kind: A word for it, the same for all failures of the kind.
        message: What happened, where, and what may help.
        again: Whether another attempt may do better.
        retry_after: The server's ``Retry-After`` header.
    """

    def __init__(
        self, kind: str, message: str, *, again: bool = False, retry_after: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.again, self.retry_after = kind, again, retry_after


class Requester:
    """Puts requests to a server; may be used by several threads at once.

    Args:
        settings: Where the server is and how to ask.
        api_key: The key; any text for a server that wants none.

    Raises:
        MissingDependencyError: If the client library is not installed.
    """

    def __init__(self, settings: ServerSettings, api_key: str) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(
                "`engine: served` needs the openai client, which is not installed "
                f'({error}). Run `pip install "procreward[served]"`.'
            ) from error
        self._settings = settings
        self._openai = openai
        # Attempts are counted here: the client would wait for minutes if a server told it to.
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=api_key, timeout=settings.timeout_s, max_retries=0
        )
        self._says_what_stopped = True

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, body: dict[str, Any], stop: Sequence[str], given_up: threading.Event
    ) -> ServerAnswer:
        """Put one request, again if need be.

        Servers take the stop string off the answer. vLLM and SGLang say which one it was, and it is
        put back. Where a server does not say, an answer that ran into a stop string looks like one
        that broke off before it: then the request is put once more without stop strings, and no
        later one has any.

        Args:
            body: Fields of the request.
            stop: Strings at which the server is to stop.
            given_up: Set when nobody wants the answer any more: no further attempt is made then.

        Returns:
            The answer.

        Raises:
            NoAnswer: If there is none after all attempts.
        """
        if stop and self._says_what_stopped:
            answer = self._answer({**body, "stop": list(stop)}, stop, given_up)
            if answer is not None:
                return answer
            self._says_what_stopped = False
            logger.info(
                "%s does not say which stop string ended an answer; answers are cut here instead.",
                self._settings.base_url,
            )
        answer = self._answer(body, (), given_up)
        assert answer is not None  # without stop strings nothing is open
        return answer

    def _answer(
        self, body: dict[str, Any], stop: Sequence[str], given_up: threading.Event
    ) -> ServerAnswer | None:
        fields = {**body, **self._settings.extra_body}
        fields = {name: value for name, value in fields.items() if value is not None}
        attempt = 0
        while True:
            try:
                return parse_answer(self._post(fields), stop, self._settings)
            except NoAnswer as failure:
                attempt += 1
                if not failure.again or attempt > self._settings.max_retries:
                    raise
                pause = backoff(self._settings, attempt, failure.retry_after)
                logger.debug("%s Next attempt in %.1f s.", failure, pause)
                if given_up.wait(pause):
                    raise

    def _post(self, fields: dict[str, Any]) -> bytes:
        """Make one attempt; returns the body of the response."""
        openai, settings = self._openai, self._settings
        deadline = time.monotonic() + settings.timeout_s
        rest = {name: fields[name] for name in fields if name not in ("model", "messages")}
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=fields["model"], messages=fields["messages"], extra_body=rest
            ) as response:
                return _whole(response, deadline, settings)
        except openai.APITimeoutError as error:
            raise _timeout(settings) from error
        except openai.APIConnectionError as error:
            raise NoAnswer(
                "unreachable",
                f"No connection to {settings.base_url}: {error.__cause__ or error}. Is the server "
                "running, and is the address right?",
                again=True,
            ) from error
        except openai.APIStatusError as error:
            raise _refused(error, fields, settings) from error


def _whole(response: Any, deadline: float, settings: ServerSettings) -> bytes:
    """Read a response's body before the deadline.

    The client's own limit is per read: a server that sends a byte now and then would never meet it.
    """
    chunks: list[bytes] = []
    size = 0
    pieces = iter(response.iter_bytes())
    while True:
        try:
            piece = next(pieces, None)
        except Exception as error:  # those of whichever HTTP library the client uses
            if "Timeout" in type(error).__name__:
                raise _timeout(settings) from error
            raise NoAnswer(
                "unreachable",
                f"{settings.base_url} broke off its answer: {error}. Look at the server's log.",
                again=True,
            ) from error
        if piece is None:
            return b"".join(chunks)
        chunks.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise _malformed(settings, f"more than {_MOST_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _timeout(settings)


def parse_answer(raw: bytes, stop: Sequence[str], settings: ServerSettings) -> ServerAnswer | None:
    """Read the body of a response.

    Args:
        raw: What should be a chat completion in JSON.
        stop: The stop strings that were sent.
        settings: For messages.

    Returns:
        The answer; None if it cannot be told whether a stop string ended it.

    Raises:
        NoAnswer: If it is no chat completion, or one without words.
    """
    choice = _first_choice(raw, settings)
    text = choice["message"].get("content")
    reason = choice.get("finish_reason")
    if text is None and reason == "length":
        text = ""  # a server that sorts out thoughts has nothing else yet
    if not isinstance(text, str):
        raise _malformed(settings, f"no text, {_shown(json.dumps(choice).encode())}")
    if reason in _UNFINISHED or not stop or any(word in text for word in stop):
        return ServerAnswer(text=text, finished=reason not in _UNFINISHED)
    names = [name for name in ("stop_reason", "matched_stop") if name in choice]  # vLLM, SGLang
    if not names:
        return None
    ended_by = next((choice[name] for name in names if choice[name] in stop), "")
    return ServerAnswer(text=text + ended_by, finished=True)


def _first_choice(raw: bytes, settings: ServerSettings) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:  # the latter where it is nested without end
        raise _malformed(settings, _shown(raw)) from error
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or not isinstance(first.get("message"), dict):
        raise _malformed(settings, _shown(raw))
    return first


def _refused(
    error: openai.APIStatusError, fields: dict[str, Any], settings: ServerSettings
) -> NoAnswer:
    status = error.status_code
    hint = _HINTS.get(status, "Look at the server's log.")
    if 400 <= status < 500 and "continue_final_message" in fields:
        hint = f"{_HINT_PREFIX} {hint}"
    said = _shown(error.response.content or str(error).encode())
    return NoAnswer(
        f"http_{status}",
        f"{settings.base_url} answered with status {status}: {said}. {hint}",
        again=status in (408, 409, 429) or status >= 500,
        retry_after=error.response.headers.get("retry-after"),
    )


def _timeout(settings: ServerSettings) -> NoAnswer:
    return NoAnswer(
        "timeout",
        f"{settings.base_url} did not answer within `timeout_s` = {settings.timeout_s:g} seconds. "
        "Look at the server's log, raise `server.timeout_s` or lower `server.concurrency`.",
        again=True,
    )


def _malformed(settings: ServerSettings, got: str) -> NoAnswer:
    return NoAnswer(
        "malformed",
        f"{settings.base_url} must answer with a chat completion in JSON, got {got}. Check that "
        "`server.base_url` is that of an OpenAI-compatible API.",
    )


def _shown(raw: bytes) -> str:
    text = raw[: _SHOWN + 1].decode(errors="replace")
    return repr(text if len(raw) <= _SHOWN else text[:_SHOWN] + "...")
