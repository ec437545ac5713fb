"""How the GPU jobs are run: one model, several numbers of environments, ours and the baselines."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from procreward.bench.answers import INSTRUCTION, AnswerScript, answer_corpus
from procreward.bench.baselines import Batched, OneByOne
from procreward.bench.clock import Ceilings, Clock
from procreward.bench.flops import vision_flops
from procreward.bench.frames import Episode, moving_frames, sliding
from procreward.bench.imposed import Answer, ImposedEngine, ImposedModel, Work
from procreward.bench.measure import Figures, Say, compare
from procreward.bench.sizes import SIZES
from procreward.bench.twins import (
    loaded_twin,
    make_tokenizer,
    qwen3_config,
    random_model,
    train_tokenizer,
)
from procreward.engine import Engine
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel
from procreward.engine.reference import ReferenceEngine
from procreward.errors import ModelError
from procreward.scorers.completion_judge import LABELS, CompletionJudge, judge_prompt
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.types import Query, Score, Scorer

__all__ = ["DeviceBench", "DeviceSettings", "say_figures"]

_SCENES = 8
"""Different scenes; further environments show the same under other names."""
_WARM_UPS = 3
_FREE_TOKENS = 16
_JUDGE_STEP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """How much is measured.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        size: ``"full"`` or ``"tiny"``.
        environments: How many ask at once.
        quick: Whether as little as possible is measured.
        procvlm_pixels: Side of ProcVLM's pictures.
        judge_pixels: Side of the judge's frames.
        judge_frames: Frames in the judge's window.
        cache_gib: Memory for what our engine keeps.
        batched_judge: Most environments whose labels are scored in one batch by the baseline.
    """

    device: str = "cuda"
    size: str = "full"
    environments: tuple[int, ...] = (1, 4, 16, 64)
    quick: bool = False
    procvlm_pixels: int = 256
    judge_pixels: int = 224
    judge_frames: int = 64
    cache_gib: float = 16.0
    batched_judge: int = 16

    def moments(self, environments: int) -> int:
        """Return how many moments are timed."""
        if self.quick:
            return 2
        return 20 if environments <= 4 else 10 if environments <= 16 else 5

    @property
    def dtype(self) -> torch.dtype:
        """Precision: bfloat16, and float32 for tiny models on a CPU, where it is faster."""
        tiny_cpu = self.device == "cpu" and self.size == "tiny"
        return torch.float32 if tiny_cpu else torch.bfloat16


def say_figures(figures: Figures, say: Say) -> None:
    """Say every figure in a line of its own.

    Args:
        figures: The figures.
        say: Takes one line.
    """
    for key, value in figures.items():
        say(f"  {key:56} {value:12.6g}")


@dataclass(slots=True, eq=False)
class _Case:
    """One job for one number of environments.

    Attributes:
        name: Prefix of its figures.
        engine: Our engine.
        scorer: The scorer on it.
        moments: The questions of each moment, without end.
        impose: Called with the engine and a moment's questions before they are asked.
        pictures: Pictures, or groups of frames, per frame that the engine counts.
        patches: Patches of one.
    """

    name: str
    engine: ImposedEngine
    scorer: Scorer
    moments: Iterable[list[Query]]
    impose: Callable[[ImposedEngine, list[Query]], None]
    pictures: float
    patches: int


class DeviceBench:
    """Runs the jobs of one model after the other."""

    def __init__(self, settings: DeviceSettings, ceilings: Ceilings, say: Say) -> None:
        self._settings = settings
        self._ceilings = ceilings
        self._say = say
        self._device = torch.device(settings.device)
        self._clock = Clock(self._device)

    def procvlm(self, names: Sequence[str]) -> Figures:
        """ProcVLM's modes; both are set against the documented path of reasoning."""
        size, _, rows = SIZES[self._settings.size]
        loaded = self._build(size, rows, answer_corpus())
        figures: Figures = {}
        theirs: dict[int, tuple[float | None, float | None]] = {}
        for name in names:
            mode = name.removeprefix("procvlm_")
            options = ProcVLMOptions(mode=mode, max_new_tokens=256)  # type: ignore[arg-type]  # checked there
            for count in self._settings.environments:
                figures |= self._procvlm(f"{name}_env{count}", loaded, options, count, theirs)
        figures |= self._free(loaded)
        self._drop()
        return figures

    def _procvlm(
        self,
        name: str,
        loaded: LoadedModel,
        options: ProcVLMOptions,
        count: int,
        theirs: dict[int, tuple[float | None, float | None]],
    ) -> Figures:
        engine = self._engine(loaded)
        scripts = _Scripts(loaded, count)
        model = ImposedModel(loaded.model, loaded.end_ids[0])
        imposed = replace(loaded, model=model)
        side = self._settings.procvlm_pixels
        case = _Case(
            name=name,
            engine=engine,
            scorer=ProcVLM(engine, options),
            moments=self._sliding(count, ("front",), side, window=8, every=1),
            impose=lambda engine, queries: engine.impose(scripts.next(queries, mode=options.mode)),
            pictures=1.0,
            patches=(side // 16) ** 2,
        )
        figures, queries, scores = self._time(case)
        del case, engine  # the baselines are to have all memory
        published = ProcVLMOptions(max_new_tokens=256)
        reference = ReferenceEngine(imposed)
        if count not in theirs:
            few = queries[: 1 if self._settings.quick else 2]

            def ask(scorer: Scorer, asked: Sequence[Query]) -> list[Score]:
                model.impose(scripts.last(asked))
                return scorer.score([replace(query, stream="") for query in asked])

            one, documented = self._ask(ask, ProcVLM(OneByOne(reference), published), few)
            many, _ = self._ask(ask, ProcVLM(Batched(imposed), published), queries)
            theirs[count] = (one, many)
            if options.mode == "reasoning" and documented:
                same = [compare(*pair)[0] for pair in zip(scores, documented, strict=False)]
                figures["same_text"] = statistics.fmean(same)
        if options.mode == "direct":
            strict = self._engine(loaded, exact=True)
            strict.impose(scripts.imposed)
            right = ProcVLM(strict, options).score(queries)
            gaps = [compare(*pair)[1] for pair in zip(scores, right, strict=True)]
            figures["max_abs_diff_to_strict"] = max(gaps)
        return self._finish(name, figures, *theirs[count])

    def judge(self) -> Figures:
        """The judge over two views."""
        _, size, rows = SIZES[self._settings.size]
        words = [judge_prompt(INSTRUCTION), *LABELS, "user\n", "assistant\n", "0.1 seconds"]
        loaded = self._build(size, rows, words)
        figures: Figures = {}
        for count in self._settings.environments:
            figures |= self._judge(f"judge_two_views_env{count}", loaded, count)
        self._drop()
        return figures

    def _judge(self, name: str, loaded: LoadedModel, count: int) -> Figures:
        settings = self._settings
        engine = self._engine(loaded)
        moments = self._sliding(
            count,
            ("left", "right"),
            settings.judge_pixels,
            window=settings.judge_frames,
            every=_JUDGE_STEP,
        )
        case = _Case(
            name=name,
            engine=engine,
            scorer=CompletionJudge(engine),
            moments=moments,
            impose=lambda engine, queries: None,
            pictures=0.5,
            patches=(settings.judge_pixels // 16) ** 2,
        )
        figures, queries, scores = self._time(case)
        del case, engine  # the baselines are to have all memory

        def ask(scorer: Scorer, asked: Sequence[Query]) -> list[Score]:
            return scorer.score([replace(query, stream="") for query in asked])

        few = queries[: 1 if settings.quick else 2]
        one, right = self._ask(ask, CompletionJudge(OneByOne(ReferenceEngine(loaded))), few)
        many = None
        if count <= settings.batched_judge:
            many, more = self._ask(ask, CompletionJudge(Batched(loaded)), queries)
            right = more or right
        pairs = [compare(*pair) for pair in zip(scores, right, strict=False)]
        if pairs:
            figures["same_text"] = statistics.fmean(same for same, _ in pairs)
            figures["max_abs_diff"] = max(gap for _, gap in pairs)
        return self._finish(name, figures, one, many)

    def _build(self, size: Any, rows: int | None, corpus: Sequence[str]) -> LoadedModel:
        """Build a model with random weights on the device."""
        settings = self._settings
        tokenizer = make_tokenizer(train_tokenizer(list(corpus) * 4, 1500))
        config = qwen3_config(tokenizer, size, vocabulary=rows)
        model = random_model(config, seed=0, device=settings.device, dtype=settings.dtype)
        weights = sum(weight.numel() for weight in model.parameters())
        self._say(f"Built a Qwen3-VL of {weights / 1e9:.3f} billion weights, {settings.dtype}.")
        return loaded_twin(model, tokenizer)

    def _engine(self, loaded: LoadedModel, *, exact: bool = False) -> ImposedEngine:
        self._drop()
        work = Work(self._ceilings.flops, self._ceilings.bandwidth)
        return ImposedEngine(
            loaded, work, cache_bytes=int(self._settings.cache_gib * 1024**3), exact=exact
        )

    def _drop(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _sliding(
        self, count: int, views: Sequence[str], side: int, *, window: int, every: int
    ) -> Iterable[list[Query]]:
        moments = _WARM_UPS + self._settings.moments(count)
        length = window + every * moments
        scenes = [
            {
                view: moving_frames(length, (side, side), seed=2 * index + place)
                for place, view in enumerate(views)
            }
            for index in range(min(count, _SCENES))
        ]
        clips = [
            [
                Episode(
                    name=f"env{index}",
                    frames=scenes[index % len(scenes)],
                    instruction=INSTRUCTION,
                    fps=20.0,
                )
            ]
            for index in range(count)
        ]
        return sliding(clips, window=window, every=every)

    def _time(self, case: _Case) -> tuple[Figures, list[Query], list[Score]]:
        """Time our engine; returns the figures and the last moment."""
        moments = list(case.moments)
        for queries in moments[:_WARM_UPS]:
            case.impose(case.engine, queries)
            case.scorer.score(queries)
        engine, work = case.engine, case.engine.work
        self._clock.synchronise()
        engine.watch.take()
        before, flops, least, passes = (
            engine.stats,
            work.prefill_flops,
            work.decode_seconds,
            work.decode_passes,
        )
        self._clock.reset_peak()
        seconds, tokens = [], []
        scores: list[Score] = []
        timed = self._settings.moments(len(moments[0]))
        for queries in islice(moments, _WARM_UPS, _WARM_UPS + timed):
            case.impose(case.engine, queries)

            def ask(queries: list[Query] = queries) -> None:
                scores[:] = case.scorer.score(queries)

            seconds.append(self._clock.seconds(ask))
            tokens += [score.details.get("tokens", 0.0) for score in scores]
        after, parts = engine.stats, engine.watch.take()
        latency = statistics.median(seconds)
        encoded = after.frames_encoded - before.frames_encoded
        config = engine.loaded.model.config
        seeing = vision_flops(config, 1, case.patches) * encoded * case.pictures
        reading = parts.get("vision", 0.0) + parts.get("prefill", 0.0)
        decoding = parts.get("decode", 0.0)
        figures = {
            "latency_ms": 1000 * latency,
            "ms_per_query": 1000 * latency / len(queries),
            "queries_per_s": len(queries) / latency,
            "peak_gib": self._clock.peak_gib(),
            "answer_tokens": statistics.fmean(tokens),
            "passes_per_moment": (after.passes - before.passes) / timed,
            "vision_ms_per_moment": 1000 * parts.get("vision", 0.0) / timed,
            "prefill_ms_per_moment": 1000 * parts.get("prefill", 0.0) / timed,
            "decode_ms_per_moment": 1000 * decoding / timed,
            "vision_prefill_of_matmul_limit": (seeing + work.prefill_flops - flops)
            / self._ceilings.flops
            / reading,
        }
        if work.decode_passes > passes:
            figures["decode_ms_per_pass"] = 1000 * decoding / (work.decode_passes - passes)
            figures["decode_of_limit"] = (work.decode_seconds - least) / decoding
        offered = after.drafts_offered - before.drafts_offered
        if offered:
            accepted = after.drafts_accepted - before.drafts_accepted
            figures["draft_acceptance"] = accepted / offered
        return figures, queries, scores

    def _ask(
        self,
        ask: Callable[[Scorer, Sequence[Query]], list[Score]],
        scorer: Scorer,
        queries: Sequence[Query],
    ) -> tuple[float | None, list[Score]]:
        """Time a baseline once; what libraries set up at first was set up by our own run.

        Returns:
            Seconds per query, or None if memory does not suffice, and the answers.
        """
        self._drop()
        scores: list[Score] = []
        try:
            seconds = self._clock.seconds(lambda: scores.extend(ask(scorer, queries)))
        except ModelError as error:
            self._say(f"The baseline was not measured: {error}")
            return None, []
        return seconds / len(queries), scores

    def _finish(
        self, name: str, figures: Figures, one: float | None, many: float | None
    ) -> Figures:
        """Add the ratios, put the name in front and say all."""
        for path, ratio, seconds in (
            ("documented", "ratio", one),
            ("batched", "vs_batched", many),
        ):
            if seconds is not None:
                figures[f"{path}_ms_per_query"] = 1000 * seconds
                figures[ratio] = 1000 * seconds / figures["ms_per_query"]
        named = {f"{name}_{key}": value for key, value in figures.items()}
        say_figures(named, self._say)
        return named

    def _free(self, loaded: LoadedModel) -> Figures:
        """How often free answers of random weights agree: near ties, the hardest case there is."""
        queries = next(
            iter(
                self._sliding(_SCENES, ("front",), self._settings.procvlm_pixels, window=8, every=1)
            )
        )
        options = ProcVLMOptions(max_new_tokens=_FREE_TOKENS)
        engines: dict[str, Engine] = {
            "fast": FastEngine(loaded),
            "strict": FastEngine(loaded, exact=True),
        }
        right = ProcVLM(OneByOne(ReferenceEngine(loaded)), options).score(queries)
        figures = {}
        for name, engine in engines.items():
            ours = ProcVLM(engine, options).score(queries)
            same = [one.text == other.text for one, other in zip(ours, right, strict=True)]
            figures[f"procvlm_free_same_text_{name}"] = statistics.fmean(same)
        say_figures(figures, self._say)
        return figures


class _Scripts:
    """The answers of all environments, moment by moment."""

    def __init__(self, loaded: LoadedModel, count: int) -> None:
        self._tokenizer = loaded.tokenizer
        self._answers = [AnswerScript(seed) for seed in range(count)]
        self._last: dict[str, list[int]] = {}
        self.imposed: dict[str, Answer] = {}

    def next(self, queries: Sequence[Query], *, mode: str) -> dict[str, Answer]:
        """Return the next answers by the prompts' streams: words, or numbers in mode ``direct``."""
        for query, script in zip(queries, self._answers, strict=True):
            text, percent = script.next()
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            self._last[query.stream] = ids
            self.imposed[f"{query.stream}/front"] = percent if mode == "direct" else ids
        return self.imposed

    def last(self, queries: Sequence[Query]) -> list[list[int]]:
        """Return the latest answers, in the order of the questions."""
        return [self._last[query.stream] for query in queries]
