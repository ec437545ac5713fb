"""A small OpenAI-compatible server on the loopback, with a real model behind it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
from PIL import Image

from procreward.engine import Clip, Engine, Prompt

Dialect = Literal["vllm", "sglang", "openai"]
"""How a server says what stopped an answer: ``stop_reason``, ``matched_stop``, or not at all."""


@dataclass(kw_only=True)
class Reply:
    """What goes back over the wire, byte for byte.

    `length` is what the header claims; `wait` is awaited before anything is sent and `drip` makes
    the body come one byte at a time, with `drip` seconds between two.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    length: int | None = None
    wait: threading.Event | None = None
    drip: float = 0.0


Respond = Callable[[dict[str, Any]], Reply]


def completion(text: str | None, finish_reason: str = "stop", **more: Any) -> Reply:
    """A chat completion as servers write it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    body = {"object": "chat.completion", "choices": [{**choice, "finish_reason": finish_reason}]}
    body["choices"][0].update(more)
    return Reply(body=json.dumps(body).encode())


def in_turn(*replies: Reply) -> Respond:
    """The given replies one after another, the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def respond(request: dict[str, Any]) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return respond


def prompt_of(request: dict[str, Any]) -> Prompt:
    """Build the prompt that a request describes."""
    parts: list[Clip | str] = []
    turns = {message["role"]: message["content"] for message in request["messages"]}
    for item in turns["user"]:
        if item["type"] == "text":
            parts.append(item["text"])
        else:
            data = base64.b64decode(item["image_url"]["url"].partition(",")[2])
            parts.append(Clip(frames=np.asarray(Image.open(io.BytesIO(data)))[None]))
    return Prompt(
        parts=tuple(parts),
        assistant_prefix=turns.get("assistant", ""),
        system=turns.get("system"),
    )


def model(engine: Engine, dialect: Dialect) -> Respond:
    """Answer with a real model, as a server of the dialect would."""
    lock = threading.Lock()

    def respond(request: dict[str, Any]) -> Reply:
        if request.get("continue_final_message") and dialect == "openai":
            error = {"error": {"message": "Unrecognized request argument: continue_final_message"}}
            return Reply(status=400, body=json.dumps(error).encode())
        assert request["temperature"] == 0.0
        stop: Sequence[str] = request.get("stop", ())
        with lock:
            [answer] = engine.generate(
                [prompt_of(request)], max_new_tokens=request["max_tokens"], stop=tuple(stop)
            )
        ended_by = next((word for word in stop if answer.text.endswith(word)), None)
        text = answer.text.removesuffix(ended_by or "")
        more = {"vllm": {"stop_reason": ended_by}, "sglang": {"matched_stop": ended_by or 151645}}
        reason = "stop" if answer.finished else "length"
        return completion(text, reason, **more.get(dialect, {}))

    return respond


class Server:
    """What a running server has seen."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @contextmanager
    def under_way(self, request: dict[str, Any], key: str | None) -> Iterator[None]:
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def seen(self, count: int) -> int:
        """How many requests have come, once there are `count`; a client may give up before that."""
        for _ in range(1000):
            if len(self.requests) >= count:
                break
            self._stopping.wait(0.02)
        return len(self.requests)

    def pause(self, event: threading.Event, seconds: float | None = None) -> None:
        """Wait for an event, but not longer than the server lives."""
        while not event.is_set() and not self._stopping.is_set() and seconds is None:
            event.wait(0.02)
        if seconds is not None:
            self._stopping.wait(seconds)


@contextmanager
def serving(respond: Respond) -> Iterator[Server]:
    """Serve on a free port of the loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self._send(Reply(status=404, body=b'{"error": {"message": "no such path"}}'))
                return
            request = json.loads(raw)
            with server.under_way(request, self.headers.get("Authorization")):
                reply = respond(request)
            try:
                self._send(reply)
            except OSError:
                self.close_connection = True  # the client has gone

        def _send(self, reply: Reply) -> None:
            if reply.wait is not None:
                server.pause(reply.wait)
            self.send_response(reply.status)
            length = len(reply.body) if reply.length is None else reply.length
            for name, value in {**reply.headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in reply.body if reply.drip else b"":
                self.wfile.write(bytes([byte]))
                server.pause(threading.Event(), reply.drip)
            if not reply.drip:
                self.wfile.write(reply.body)
            if length != len(reply.body):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients that give up are part of the tests

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server._stopping.set()
            http.shutdown()
            thread.join()
