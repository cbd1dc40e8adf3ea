"""The benchmark of one candidate: its engine tuned, loaded, asked, and its answers scored."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from weighbridge.core import machine
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import PeakMemory
from weighbridge.core.progress import track
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_for
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.serving.openai_client import Client, Payload, RequestRefused
from weighbridge.tasks.data import Row, Split, read_rows
from weighbridge.tasks.encoding import Encoded, encode, load_tokenizer
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.scoring import needs_logprobs, score_all
from weighbridge.tasks.weigh_args import WeighArgs

logger = logging.getLogger(__name__)

# Two rounds, because 0.6 seconds alone told one thread from two by chance on a busy machine, and
# now and then the worse was taken.
TUNING_SECONDS: Final = 0.6
TUNING_MAX_SECONDS: Final = 10.0
"""Enough to see that options are bad; a slow engine with good ones answers a few requests in it."""
NOISE: Final = 0.1
"""Part by which two runs of TUNING_SECONDS of the same thing may differ."""
FINAL_SECONDS: Final = 1.5
FINALISTS: Final = 3
FINAL_NOISE: Final = 0.03
"""The same for FINAL_SECONDS."""


@dataclass(frozen=True)
class _Answers:
    """What the engine said to one split's rows."""

    rows: list[Row]
    texts: list[str]
    problems: list[str | None]
    """Why there is no answer, by row; None where there is one."""
    logprobs: list[list[float]] | None


@dataclass(frozen=True)
class _Setting:
    """One setting of an engine's options, measured briefly."""

    args: EngineArgs
    tokens_per_second: float = 0.0
    """Geometric mean over the concurrencies."""
    ttft_p95: float = 0.0
    """At the highest concurrency."""
    problem: str | None = None
    """Why it could not be measured."""


def _near(settings: Sequence[_Setting], noise: float) -> list[_Setting]:
    """Return those whose speed cannot be told from the highest, fastest first."""
    fastest = sorted(settings, key=lambda setting: setting.tokens_per_second, reverse=True)
    slowest = fastest[0].tokens_per_second * (1 - noise)
    return [setting for setting in fastest if setting.tokens_per_second >= slowest]


@dataclass
class CandidateBenchmark:
    """The benchmark of one candidate, step by step."""

    candidate: Candidate
    data: Artifact
    metrics: EvaluateArgs
    args: WeighArgs
    build: str
    """Which build of the engine it is: for the record."""
    workspace: Workspace
    tuning: list[dict[str, int | float | str]] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return engine_for(self.candidate.engine)

    @property
    def streams(self) -> int:
        return max(self.args.concurrency)

    def measure(self) -> Measurement:
        """Tune, then take every figure under the best options.

        Raises:
            Unavailable: the engine does not start, or dies while it is measured.
        """
        payloads = self._payloads()
        tuned = self.tune(payloads)
        with (
            track(f"weighing {self.candidate.label}", 4, "steps") as done,
            self._serve(tuned) as running,
        ):
            with PeakMemory(running.process.pid) as peak:
                # Speed first: after the questions of quality, the engine knows these prompts.
                load = self.load(running, payloads)
                done(1)
                answers: dict[Split, _Answers] = {}
                for split in ("validation", "test"):
                    answers[split] = self.answers(running, split)
                    done(2 if split == "validation" else 3)
            scores = {split: self.score(split_answers) for split, split_answers in answers.items()}
            done(4)
        return Measurement(
            candidate=self.candidate.model_copy(update={"engine": tuned}),
            scores=scores["validation"],
            test_scores=scores["test"],
            predictions=self._keep(answers, scores),
            max_new_tokens=self.metrics.max_new_tokens,
            load=load,
            load_seconds=running.load_seconds,
            peak_memory=peak.bytes,
            tuning=self.tuning,
            machine={**machine.describe(), "build": self.build},
        )

    @contextmanager
    def _serve(self, args: EngineArgs) -> Iterator[Running]:
        """Serve under these options.

        Whatever fails within the block because the engine died is raised with the end of its log.
        """
        name = self.candidate.label.replace("/", "-")
        output = self.workspace.settings.home / "logs" / "weigh" / f"{name}.log"
        output.unlink(missing_ok=True)
        model = self.candidate.variant.artifact.path
        with serve(model, args, self.workspace.settings.cache, output) as running:
            try:
                yield running
            except Unavailable as exc:
                if not _died(running):
                    raise
                raise Unavailable(
                    f"measuring {self.candidate.label}",
                    f"the engine died. Its log ends:\n{running.process.tail()}\n",
                    f"whole log: {output}",
                ) from exc

    def _payloads(self) -> list[Payload]:
        """Return every prompt once, validation first.

        An engine would not have to read a prompt that it has seen before.
        """
        rows = self._rows("validation") + read_rows(self.data, "train")
        return [{**_body(row), "max_tokens": self.args.max_tokens} for row in rows]

    def _rows(self, split: Split) -> list[Row]:
        return read_rows(self.data, split)[: self.metrics.limit]

    def tune(self, payloads: Sequence[Payload]) -> EngineArgs:
        """Return the options that give the most tokens over all concurrencies, among those worth
        trying here.

        All are tried briefly; those whose speeds cannot be told apart are tried again for longer;
        among those still alike, the shortest time to the first token wins.
        """
        options: Sequence[EngineArgs] = self.engine.tunings(machine.cores())
        if not self.args.tune or len(options) < 2:
            return options[0] if options else self.candidate.engine
        settings = self._measure_briefly("tuning", options, payloads, TUNING_SECONDS)
        finalists = _near(settings, NOISE)[:FINALISTS]
        if len(finalists) > 1 and finalists[0].problem is None:
            options = [finalist.args for finalist in finalists]
            finalists = self._measure_briefly("finally tuning", options, payloads, FINAL_SECONDS)
            # The longer measurement stands for the brief one.
            settings = [
                next((final for final in finalists if final.args == setting.args), setting)
                for setting in settings
            ]
        winner = min(_near(finalists, FINAL_NOISE), key=lambda setting: setting.ttft_p95)
        if winner.problem is not None:
            raise Unavailable(f"tuning {self.candidate.label}", winner.problem)
        self.tuning += [self._note(setting) for setting in settings]
        logger.info(
            "%s: of %d settings the best is %s",
            self.candidate.label,
            len(settings),
            ", ".join(f"{name} {value}" for name, value in self._note(winner).items()),
        )
        return winner.args

    def _note(self, setting: _Setting) -> dict[str, int | float | str]:
        """Return what was tried, as the options that the recipe left open, and its figures."""
        note: dict[str, int | float | str] = {
            name: value if isinstance(value, int | float) else str(value)
            for name, value in setting.args.model_dump().items()
            if value != getattr(self.candidate.engine, name)
        }
        note |= {
            "tokens_per_second": round(setting.tokens_per_second, 1),
            "ttft_p95": round(setting.ttft_p95, 4),
        }
        return note | ({} if setting.problem is None else {"problem": setting.problem})

    def _measure_briefly(
        self, doing: str, options: Sequence[EngineArgs], payloads: Sequence[Payload], seconds: float
    ) -> list[_Setting]:
        settings = []
        with track(f"{doing} {self.candidate.label}", len(options), "settings") as done:
            for number, args in enumerate(options, start=1):
                settings.append(self._measure_setting(args, payloads, seconds))
                done(number)
        return settings

    def _measure_setting(
        self, args: EngineArgs, payloads: Sequence[Payload], seconds: float
    ) -> _Setting:
        """Measure one setting, at the lowest and at the highest concurrency."""
        levels = sorted({min(self.args.concurrency), self.streams})
        try:
            with self._serve(args) as running:
                figures = self._run_levels(
                    running, payloads, levels, 1, seconds, TUNING_MAX_SECONDS
                )
        except Unavailable as exc:
            return _Setting(args, problem=str(exc))
        rates = [level.tokens_per_second for level in figures]
        # A geometric mean: ratios count, not the larger figures of the higher concurrencies.
        return _Setting(args, math.prod(rates) ** (1 / len(rates)), figures[-1].ttft_p95)

    def load(self, running: Running, payloads: Sequence[Payload]) -> list[LoadFigures]:
        """Measure the speed at every concurrency."""
        args = self.args
        figures = self._run_levels(
            running, payloads, args.concurrency, args.requests, args.seconds, args.max_seconds
        )
        for level in figures:
            if level.errors == level.requests:
                raise Unavailable(
                    f"measuring {self.candidate.label}", "under load not one request was answered"
                )
        return figures

    def _run_levels(
        self,
        running: Running,
        payloads: Sequence[Payload],
        levels: Sequence[int],
        requests: int,
        seconds: float,
        max_seconds: float,
    ) -> list[LoadFigures]:
        """Run every level, each with prompts of its own as far as there are enough."""
        # Recipes import this module, and the generator an event loop.
        from weighbridge.serving.load import run_load

        figures = []
        share = len(payloads) // len(levels)
        for number, level in enumerate(levels):
            rotated = [*payloads[number * share :], *payloads[: number * share]]
            prompts = list(
                itertools.islice(itertools.cycle(rotated), max(len(rotated), 8 * level, requests))
            )
            figures.append(
                run_load(
                    running.url,
                    prompts,
                    level,
                    requests=requests,
                    seconds=seconds,
                    max_seconds=max_seconds,
                    timeout=self.args.request_timeout,
                )
            )
            if not running.process.alive():
                raise Unavailable(
                    f"measuring {self.candidate.label}", f"it died at concurrency {level}"
                )
        return figures

    def answers(self, running: Running, split: Split) -> _Answers:
        """Return greedy answers to a split's prompts and, where a metric asks, the references'
        log-probabilities.
        """
        rows = self._rows(split)
        client = Client(running.url, self.args.request_timeout)

        def ask(row: Row) -> tuple[str, str | None]:
            prompt = (
                row.prompt
                if isinstance(row.prompt, str)
                else [message.model_dump() for message in row.prompt]
            )
            try:
                return client.ask(prompt, max_tokens=self.metrics.max_new_tokens).text, None
            except RequestRefused as exc:
                return "", str(exc)

        replies = self._all(ask, rows)
        return _Answers(
            rows,
            [text for text, _ in replies],
            [problem for _, problem in replies],
            self._logprobs(running, rows),
        )

    def _logprobs(self, running: Running, rows: list[Row]) -> list[list[float]] | None:
        if not needs_logprobs(self.metrics.metrics):
            return None

        def ask(encoded: Encoded) -> list[float]:
            return self.engine.token_logprobs(running.url, encoded.prompt, encoded.completion)

        try:
            return self._all(
                ask, encode(load_tokenizer(tokenizer_of(self.candidate.variant.artifact)), rows)
            )
        # The engine's API cannot tell them; metrics that need them are left out.
        except NotImplementedError:
            return None

    def _all(self, ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.streams) as pool:
            try:
                return list(pool.map(ask, items))
            # On Ctrl-C, too: leaving the pool would first ask every question that still waits.
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def score(self, answers: _Answers) -> dict[str, Score]:
        if not answers.rows:
            return {}
        metrics: list[MetricArgs] = list(self.metrics.metrics)
        return score_all(
            metrics, answers.texts, [row.reference for row in answers.rows], answers.logprobs
        )

    def _keep(
        self, answers: Mapping[Split, _Answers], scores: Mapping[Split, Mapping[str, Score]]
    ) -> Artifact:
        """Store every example with its answer and scores, as one artifact."""
        with self.workspace.store.scratch() as scratch:
            for split, split_answers in answers.items():
                lines = (
                    json.dumps(example, ensure_ascii=False) + "\n"
                    for example in _examples(split_answers, scores[split])
                )
                (scratch / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            return self.workspace.store.add(scratch, "jsonl", {"candidate": self.candidate.label})


def _body(row: Row) -> dict[str, Any]:
    if isinstance(row.prompt, str):
        return {"prompt": row.prompt}
    return {"messages": [message.model_dump() for message in row.prompt]}


def _died(running: Running) -> bool:
    """Whether the engine's process has ended: its connections break a moment before it does."""
    for _ in range(10):
        if not running.process.alive():
            return True
        time.sleep(0.1)
    return False


def tokenizer_of(artifact: Artifact) -> Path:
    """Return the folder with the Hugging Face tokenizer of a servable artifact."""
    beside = artifact.path / "tokenizer"
    return beside if beside.is_dir() else artifact.path


def _examples(answers: _Answers, scores: Mapping[str, Score]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(answers.rows):
        example = {
            "prompt": row.model_dump()["prompt"],
            "reference": row.reference,
            "answer": answers.texts[number],
        }
        if (problem := answers.problems[number]) is not None:
            example["problem"] = problem
        example["scores"] = {
            name: score.per_example[number] for name, score in scores.items() if score.per_example
        }
        yield example
