"""What scorers with a model share: options, batches, and names for what an engine may keep.

:func:`procreward.scorers.engines.build_engine` makes an engine of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args

from procreward.checks import check, check_choice, check_int, check_names, is_number
from procreward.config import JSON, field_names
from procreward.errors import ConfigError

if TYPE_CHECKING:
    from procreward.engine import Engine, Prompt
    from procreward.types import Query, Score

__all__ = [
    "ENGINES",
    "EngineName",
    "EngineOptions",
    "ModelScorer",
    "clamped_details",
    "frame_keys",
    "options_from",
    "stream_name",
]

_Options = TypeVar("_Options")
_EngineOptions = TypeVar("_EngineOptions", bound="EngineOptions")

EngineName: TypeAlias = Literal["auto", "fast", "strict", "reference", "plain", "served", "vllm"]
"""What runs the model; see :class:`EngineOptions`."""

ENGINES: tuple[str, ...] = get_args(EngineName)
"""The names of :data:`EngineName`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options that every scorer with a model has.

    Attributes:
        engine: What runs the model. ``"fast"`` keeps what it computed for every frame and starts
            from the last answer; ``"strict"`` keeps frames and shared heads of prompts, but uses
            transformers' own operators and no earlier answer; ``"reference"`` is plain
            transformers; ``"plain"`` runs any other image-text-to-text model; ``"served"`` asks an
            OpenAI-compatible server; ``"vllm"`` runs vLLM in this process. ``"auto"`` is ``"fast"``
            for Qwen-VL models and ``"plain"`` for others.
        batch_size: Most queries answered in one batch; memory may make it fewer.
        cache_gib: Memory for what is kept between queries, in GiB.
        server: For ``engine="served"``: where it is and how to ask; see
            :class:`procreward.engine.remote.server_settings.ServerSettings`.
        vllm: For ``engine="vllm"``: how vLLM is set up, if not as it is by default; see
            :class:`procreward.engine.remote.vllm.VLLMSettings`.
    """

    engine: EngineName = "auto"
    batch_size: int = 64
    cache_gib: float = 2.0
    server: Mapping[str, JSON] | None = None
    vllm: Mapping[str, JSON] | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        check_int("batch_size", self.batch_size, least=1)
        ok = is_number(self.cache_gib) and self.cache_gib >= 0
        check(ok, "cache_gib", "at least 0", self.cache_gib)
        ok = self.server is None or isinstance(self.server, Mapping)
        check(ok, "server", "a mapping of server settings or None", self.server)
        if (self.engine == "served") != (self.server is not None):
            raise ConfigError(
                "`server` belongs to `engine: served` and to no other, got engine="
                f"{self.engine!r} and server={self.server!r}. Set both, or neither."
            )
        if self.vllm is not None and (self.engine != "vllm" or not isinstance(self.vllm, Mapping)):
            raise ConfigError(
                "`vllm` must be a mapping that belongs to `engine: vllm`, got engine="
                f"{self.engine!r} and vllm={self.vllm!r}."
            )


class ModelScorer(Generic[_EngineOptions]):
    """A scorer that asks an engine, batch by batch; subclasses say how (:meth:`_score_batch`).

    Args:
        engine: What runs the model.
        options: How to ask; None for the defaults.
        account: What ``describe`` says about the model.
    """

    options_type: type[_EngineOptions]
    """The class of the options."""

    def __init__(
        self,
        engine: Engine,
        options: _EngineOptions | None = None,
        *,
        account: Mapping[str, object] | None = None,
    ) -> None:
        self._engine = engine
        self._options = options or self.options_type()
        self._account = dict(account or {})

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query, at most ``batch_size`` at a time.

        Args:
            queries: The questions.

        Returns:
            One score each, in order.
        """
        size = self._options.batch_size
        return [
            score
            for start in range(0, len(queries), size)
            for score in self._score_batch(queries[start : start + size])
        ]

    def release(self, streams: Iterable[str]) -> None:
        """Let the engine forget episodes that have ended; what belongs to none stays.

        Args:
            streams: Their names, as in :attr:`procreward.types.Query.stream`.
        """
        self._engine.release(streams)

    def announce(self, queries: Sequence[Query]) -> None:
        """Say what is asked next, for an engine that can look at its frames meanwhile.

        Args:
            queries: The questions of the call after the next one.
        """
        announce = getattr(self._engine, "announce", None)
        if announce is not None:
            announce(self._prompts(queries))

    def forget(self) -> None:
        """Let the engine forget all that it kept or learnt, if it does such things."""
        forget = getattr(self._engine, "forget", None)
        if forget is not None:
            forget()

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        """What the engine is asked about some queries."""
        raise NotImplementedError

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        """Answer the queries of one batch."""
        raise NotImplementedError


def clamped_details(percent: float | None, *, clamped: bool) -> dict[str, float]:
    """Return what a score's details say of a number that was out of range.

    Args:
        percent: The number as the model wrote it, in percent.
        clamped: Whether it was out of range; if not there is nothing to say.
    """
    if not clamped or percent is None:
        return {}
    # Bounded, since a model may write four hundred digits and JSON knows no infinity.
    return {"clamped": 1.0, "percent_as_written": max(min(percent, 1e12), -1e12)}


def frame_keys(query: Query, view: str) -> tuple[tuple[str, str, int], ...] | None:
    """Name each frame of a view for an engine's cache, or return None for a query of no stream.

    Args:
        query: The query.
        view: One of its views.

    Returns:
        For :attr:`procreward.engine.Clip.keys`: ``(stream, view, step)`` of each frame.
    """
    if not query.stream:
        return None
    return tuple((query.stream, view, step) for step in query.frame_steps)


def stream_name(query: Query, view: str) -> str | None:
    """Name the series of questions that a query belongs to, or None for a query of no stream.

    Args:
        query: The query.
        view: Name of the view that the prompt shows.

    Returns:
        For :attr:`procreward.engine.Prompt.stream`; begins with ``query.stream``.
    """
    return f"{query.stream}/{view}" if query.stream else None


def options_from(kind: type[_Options], scorer: str, options: Mapping[str, Any]) -> _Options:
    """Build an options dataclass from a configuration's mapping.

    Args:
        kind: The dataclass.
        scorer: Name of the scorer, for the message.
        options: Names and values.

    Returns:
        The options.

    Raises:
        UnknownNameError: If a name is not an option.
    """
    check_names(f"{scorer} option", options, field_names(kind))
    return kind(**options)
