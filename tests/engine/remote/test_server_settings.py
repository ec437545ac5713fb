from __future__ import annotations

from typing import Any

import pytest

from procreward.engine.remote.server_settings import ServerSettings, backoff
from procreward.errors import ConfigError, UnknownNameError


class TestSettings:
    def test_from_a_mapping(self) -> None:
        options = {"base_url": "http://127.0.0.1:8000/v1", "concurrency": 2}
        settings = ServerSettings.from_options(options, model="a/b")
        assert (settings.model, settings.concurrency, settings.timeout_s) == ("a/b", 2, 60.0)
        named = ServerSettings.from_options({**options, "model": "c"}, model="a/b")
        assert named.model == "c"

    def test_unknown_and_missing_names(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'base_url'"):
            ServerSettings.from_options({"base-url": "http://x"}, model="m")
        with pytest.raises(ConfigError, match=r"server.base_url"):
            ServerSettings.from_options(None, model="m")
        with pytest.raises(ConfigError, match=r"server.model"):
            ServerSettings.from_options({"base_url": "http://x"})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("base_url", "127.0.0.1:8000"), ("base_url", "ftp://x"), ("base_url", None)),
            *(("base_url", "http://x:notaport"), ("base_url", "http://"), ("model", " ")),
            *(("api_key_env", ""), ("timeout_s", 0), ("timeout_s", float("nan"))),
            *(("max_retries", -1), ("max_retries", 11), ("concurrency", 0), ("backoff_s", -1)),
            *(("image_format", "gif"), ("jpeg_quality", 0), ("jpeg_quality", 101)),
            *(("extra_body", [1]), ("max_retries", True)),
        ],
    )
    def test_bad_values(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"server.{name}"):
            ServerSettings(**{"base_url": "http://x/v1", "model": "m", name: value})

    @pytest.mark.parametrize(
        ("attempt", "retry_after", "pause"),
        [
            *((1, None, 0.5), (2, None, 1.0), (9, None, 8.0)),
            *((1, "3", 3.0), (1, "0", 0.0), (1, "3600", 60.0)),
            *((1, "Wed, 21 Oct 2026 07:28:00 GMT", 0.5), (2, "-1", 1.0), (1, "nan", 0.5)),
        ],
    )
    def test_pauses(self, attempt: int, retry_after: str | None, pause: float) -> None:
        settings = ServerSettings(base_url="http://x/v1", model="m")
        assert backoff(settings, attempt, retry_after) == pause
