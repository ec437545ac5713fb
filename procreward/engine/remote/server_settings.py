"""Where an OpenAI-compatible server is and how it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from procreward.checks import check, check_choice, check_int, check_names, is_number
from procreward.config import JSON, field_names
from procreward.errors import ConfigError

if TYPE_CHECKING:
    from procreward.engine.remote.picture_urls import ImageFormat

__all__ = ["ServerSettings", "backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of :class:`~procreward.engine.remote.served.ServedEngine`.

    They are the scorer option ``server``.

    Attributes:
        base_url: Where the API begins, such as ``"http://127.0.0.1:8000/v1"``.
        model: Name of the model at that server.
        api_key_env: Name of the environment variable that holds the key, or None for a server that
            wants none. The key itself is never part of a configuration.
        timeout_s: Longest wait for one attempt, in seconds.
        max_retries: Further attempts after a timeout, a lost connection or status 408, 409, 429 or
            5xx.
        backoff_s: Pause before the first further attempt in seconds; it doubles each time, up to 8
            seconds. A server's own ``Retry-After`` counts instead, up to ``timeout_s``.
        concurrency: Most requests under way at once.
        image_format: ``"png"``, without loss, or ``"jpeg"``.
        jpeg_quality: 1 to 100; counts for ``"jpeg"`` only.
        extra_body: Further fields of each request, such as ``{"repetition_penalty": 1.0}``. A field
            given as None is left out: ``{"max_tokens": None, "max_completion_tokens": 400,
            "temperature": None}`` suits servers that refuse the usual names.

    Raises:
        ConfigError: If a value cannot be right.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 60.0
    max_retries: int = 2
    backoff_s: float = 0.5
    concurrency: int = 8
    image_format: ImageFormat = "png"
    jpeg_quality: int = 95
    extra_body: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            _is_http_url(self.base_url),
            "server.base_url",
            "the http(s) address of an API",
            self.base_url,
            "For example `http://127.0.0.1:8000/v1`.",
        )
        check(_is_text(self.model), "server.model", "the model's name at the server", self.model)
        ok = self.api_key_env is None or _is_text(self.api_key_env)
        check(ok, "server.api_key_env", "the name of an environment variable", self.api_key_env)
        ok = is_number(self.timeout_s) and self.timeout_s > 0
        check(ok, "server.timeout_s", "a number of seconds above 0", self.timeout_s)
        ok = is_number(self.backoff_s) and self.backoff_s >= 0
        check(ok, "server.backoff_s", "a number of seconds of at least 0", self.backoff_s)
        check_int("server.max_retries", self.max_retries, least=0)
        check(self.max_retries <= 10, "server.max_retries", "at most 10", self.max_retries)
        check_int("server.concurrency", self.concurrency, least=1)
        check_choice("server.image_format", self.image_format, ("png", "jpeg"))
        check_int("server.jpeg_quality", self.jpeg_quality, least=1)
        check(self.jpeg_quality <= 100, "server.jpeg_quality", "at most 100", self.jpeg_quality)
        ok = isinstance(self.extra_body, Mapping)
        check(ok, "server.extra_body", "a mapping of request fields", self.extra_body)

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any] | None, *, model: str | None = None
    ) -> ServerSettings:
        """Build the settings from a configuration's mapping.

        Args:
            options: Names and values; ``base_url`` is needed.
            model: The model's name when the mapping has none.

        Returns:
            The settings.

        Raises:
            UnknownNameError: If a name is not a setting.
            ConfigError: If a value is missing or cannot be right.
        """
        values = dict(options or {})
        check_names("server setting", values, field_names(cls))
        values.setdefault("model", model)
        if "base_url" not in values or values["model"] is None:
            missing = "base_url" if "base_url" not in values else "model"
            raise ConfigError(
                f"`server.{missing}` must be given, got {sorted(values)}. For example "
                "`server: {base_url: 'http://127.0.0.1:8000/v1', model: ce-amtic/ProcVLM-2B}`."
            )
        return cls(**values)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_http_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def backoff(settings: ServerSettings, attempt: int, retry_after: str | None) -> float:
    """Return how long to wait before asking again.

    Args:
        settings: The settings.
        attempt: How many attempts have failed, at least 1.
        retry_after: What the server's ``Retry-After`` header says, or None. Only seconds count; a
            date is as good as none.

    Returns:
        Seconds, at least 0.
    """
    try:
        asked = float(retry_after) if retry_after is not None else math.nan
    except ValueError:
        asked = math.nan
    if math.isfinite(asked) and asked >= 0:
        return min(asked, settings.timeout_s)
    return min(settings.backoff_s * 2.0 ** (attempt - 1), 8.0)
