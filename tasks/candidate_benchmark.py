"""The benchmark of one candidate: its engine tuned, loaded, asked, and its answers scored."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final, NoReturn

from weighbridge.core import machine
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import PeakMemory, cpu_seconds
from weighbridge.core.progress import track
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_for
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.serving.openai_client import Payload
from weighbridge.tasks.answer_faults import count
from weighbridge.tasks.candidate_answers import Answers
from weighbridge.tasks.candidate_prompts import body_of, prompts_of_level, with_own_beginning
from weighbridge.tasks.candidate_questions import CandidateQuestions, tokenizer_of
from weighbridge.tasks.candidate_rates import measure_rates, speed_limits
from weighbridge.tasks.candidate_tuning import Setting, best
from weighbridge.tasks.context_room import context_for, longest_row
from weighbridge.tasks.data import Split, read_rows
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.gpu_watch import GpuWatch
from weighbridge.tasks.harness import lm_eval
from weighbridge.tasks.left_out import left_out
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.reference_distributions import reference_distributions
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.slices import slices_of
from weighbridge.tasks.weigh_args import WeighArgs

logger = logging.getLogger(__name__)

TUNING_SECONDS: Final = 1.5
"""0.6 seconds told one thread from two by chance on a busy machine."""
TUNING_MAX_SECONDS: Final = 10.0
"""Enough to see that options are bad; a slow engine with good ones answers a few requests in it."""


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
    reference: Artifact | None = None
    """The unquantized weights that it was made of; None where they are not here."""
    compared: Artifact | None = None
    """What these hold likely, once `measure` has asked them."""
    tuning: list[dict[str, int | float | str]] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return engine_for(self.candidate.engine)

    @property
    def streams(self) -> int:
        return max(self.args.concurrency)

    @property
    def questions(self) -> CandidateQuestions:
        return CandidateQuestions(
            self.candidate,
            self.data,
            self.metrics,
            self.streams,
            self.args.request_timeout,
            self.compared,
        )

    def measure(self) -> Measurement:
        """Tune, then take every figure under the best options.

        Raises:
            Unavailable: the engine does not start, or dies while it is measured.
        """
        if self.reference:
            # Before an engine is there: both in memory would be one too many.
            self.compared = reference_distributions(
                self.reference, self.data, self.metrics, self.workspace
            )
        payloads, questions = self._payloads(), self.questions
        with (
            self.tuned(payloads) as (running, tuned),
            track(f"weighing {self.candidate.label}", 4, "steps") as done,
        ):
            with PeakMemory(running.process.pid) as peak:
                # Speed first: after the questions of quality, the engine knows these prompts.
                with GpuWatch(running.process.pid, self.engine.device() != "cpu") as cards:
                    load = self.load(running, payloads)
                goodput, rates = measure_rates(running.url, payloads, load, self.args)
                done(1)
                answers: dict[Split, Answers] = {}
                for split in ("validation", "test"):
                    answers[split] = questions.ask(running.url, split)
                    done(2 if split == "validation" else 3)
            context = self._context(running, tuned)
            unreached: dict[str, str] = {}
            scores = {
                split: questions.score(of_split, unreached) for split, of_split in answers.items()
            }
            harness = self._harness(running.url, unreached)
            counted = {
                split: count(of_split, self.metrics.answers) for split, of_split in answers.items()
            }
            done(4)
        missing = left_out(self.metrics.metrics, answers.values(), load, unreached)
        for gap in missing:
            logger.warning("%s: %s", self.candidate.label, gap)
        return Measurement(
            candidate=self.candidate.model_copy(update={"engine": tuned}),
            scores={**scores["validation"], **harness},
            test_scores=scores["test"],
            predictions=questions.keep(answers, scores, counted, self.workspace.store),
            faults={split: of_split.scores for split, of_split in counted.items()},
            uncounted={
                **counted["test"].uncounted,
                **counted["validation"].uncounted,
                **questions.unscored(scores["validation"], answers["validation"]),
                **unreached,
            },
            slices={split: slices_of(of_split.rows) for split, of_split in answers.items()},
            answer_tokens=questions.answer_tokens(answers),
            max_new_tokens=self.metrics.max_new_tokens,
            load=load,
            goodput=goodput,
            rates=rates,
            load_seconds=running.load_seconds,
            peak_memory=peak.bytes,
            gpu=cards.seen(),
            context=context,
            tuning=self.tuning,
            left_out=missing,
            machine={
                **machine.describe(),
                "host": socket.gethostname(),
                "device": engine_for(tuned).device(),
                "build": self.build,
            },
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
                if not running.has_died():
                    raise
                raise Unavailable(
                    f"measuring {self.candidate.label}",
                    f"the engine died with status {running.process.status}. Its log ends:\n"
                    f"{running.process.tail()}\n",
                    f"whole log: {output}",
                ) from exc

    def _harness(self, url: str, unreached: dict[str, str]) -> dict[str, Score]:
        """Return the scores of the harness's tasks; none, with the reason, where it fails."""
        if self.metrics.lm_eval is None:
            return {}
        drawn = self.candidate.engine.sampling()
        try:
            return lm_eval.harness_scores(
                url, self.metrics.lm_eval, drawn, self.streams, self.workspace
            )
        except Unavailable as exc:
            unreached[lm_eval.LABEL] = str(exc)
            return {}

    def _context(self, running: Running, args: EngineArgs) -> int | None:
        """Return the context that a request has, and say so: options may divide it by slots."""
        try:
            context = engine_for(args).context(running.url)
        except Unavailable as exc:
            logger.warning("%s tells no context: %s", self.candidate.label, exc)
            return None
        if context:
            logger.info("%s: a request has %d tokens of context", self.candidate.label, context)
        return context

    def _payloads(self) -> list[Payload]:
        """Return every prompt once, validation first.

        An engine would not have to read a prompt that it has seen before.
        """
        rows = self.questions.rows("validation") + read_rows(self.data, "train")
        options = {"max_tokens": self.args.max_tokens, **self.candidate.engine.sampling()}
        bodies = [body_of(row) for row in rows]
        if self.args.prefix_cache == "avoid":
            bodies = [with_own_beginning(body, number) for number, body in enumerate(bodies)]
        return [{**body, **options} for body in bodies]

    def sized(self) -> EngineArgs:
        """Return the engine's options with room for the rows and the load that is asked for."""
        if not self.engine.takes_sizes:
            return self.candidate.engine
        artifact = self.candidate.variant.artifact
        return self.engine.sized_for(artifact.path, self.room(), self.streams)

    def room(self) -> int:
        """Return the tokens of context of each answer: as the recipe says, or by the rows."""
        artifact = self.candidate.variant.artifact
        answer = max(self.metrics.max_new_tokens, self.args.max_tokens)
        longest = longest_row(self.data, tokenizer_of(artifact), answer)
        context = self.args.context or context_for(longest)
        logger.info(
            "%s: room for %d answers together of %d tokens each (weigh.concurrency, "
            "weigh.context); the longest row takes %d",
            self.candidate.label,
            self.streams,
            context,
            longest,
        )
        return context

    @contextmanager
    def short_runs(self, aim: Aim) -> Iterator[Callable[[float], list[float]]]:
        """Serve under the candidate's own options; give what loads it for so many seconds at each
        of the levels that decide, and returns the figure of each.
        """
        payloads, levels = self._payloads(), aim.levels(self.args.concurrency)
        with self._serve(self.candidate.engine) as running, ExitStack() as stack:
            peak = PeakMemory(running.process.pid)
            # To look at memory takes time from the runs.
            if aim.figure == "1/memory":
                stack.enter_context(peak)

            def run(seconds: float) -> list[float]:
                figures = self._run_levels(
                    running, payloads, levels, 1, seconds, TUNING_MAX_SECONDS, tuning=True
                )
                values = [aim.value(level, peak.bytes) for level in figures]
                for level, value in zip(figures, values, strict=True):
                    # Neither 0 nor NaN is a speed.
                    if not value > 0:
                        self._refuse_without(aim.figure, level, running)
                return values

            yield run

    def _refuse_without(self, figure: str, level: LoadFigures, running: Running) -> NoReturn:
        """Say why a run has no such figure."""
        first = f", the first: {level.first_error}" if level.first_error else ""
        raise Unavailable(
            f"measuring {self.candidate.label}",
            f"no {figure} at concurrency {level.concurrency}: of {level.requests} requests "
            f"{level.errors} failed and {level.unfinished} were not answered in time{first}. "
            f"The engine's log ends:\n{running.process.tail()}\n",
            f"whole log: {running.process.log}",
        )

    def _tuning_levels(self) -> list[int]:
        return sorted({min(self.args.concurrency), self.streams})

    @contextmanager
    def tuned(self, payloads: Sequence[Payload]) -> Iterator[tuple[Running, EngineArgs]]:
        """Serve under the options that give the most tokens over all concurrencies, among those
        worth trying here.

        Among those whose speeds cannot be told apart, the shortest time to the first token wins.
        """
        sized = self.sized()
        options: Sequence[EngineArgs] = engine_for(sized).tunings(machine.cores())
        if not self.args.tune or len(options) < 2:
            args = options[0] if options else sized
            with self._serve(args) as running:
                yield running, args
            return
        with ExitStack() as stack:
            last, settings = self._measure_settings(stack, options, payloads)
            winner = best(settings, self.candidate)
            self.tuning += [setting.note(self.candidate.engine) for setting in settings]
            # To start an engine takes longer than all that is asked of it meanwhile.
            if last is None or settings[-1] != winner:
                stack.close()
                last = stack.enter_context(self._serve(winner.args))
            yield last, winner.args

    def _measure_settings(
        self, stack: ExitStack, options: Sequence[EngineArgs], payloads: Sequence[Payload]
    ) -> tuple[Running | None, list[Setting]]:
        """Measure every setting; leave the engine of the last one to the stack."""
        settings, running = [], None
        with track(f"tuning {self.candidate.label}", len(options), "settings") as done:
            for number, args in enumerate(options, start=1):
                stack.close()
                setting, running = self._measure_setting(stack, args, payloads)
                settings.append(setting)
                done(number)
        return running, settings

    def _measure_setting(
        self, stack: ExitStack, args: EngineArgs, payloads: Sequence[Payload]
    ) -> tuple[Setting, Running | None]:
        """Measure one setting, at the lowest and at the highest concurrency."""
        levels = self._tuning_levels()
        # From the other end: the engine that stays does not know yet what the load asks first.
        backwards = payloads[::-1]
        try:
            with ExitStack() as attempt:
                running = attempt.enter_context(self._serve(args))
                figures = self._run_levels(
                    running, backwards, levels, 1, TUNING_SECONDS, TUNING_MAX_SECONDS, tuning=True
                )
                stack.push(attempt.pop_all())
        except Unavailable as exc:
            return Setting(args, problem=str(exc)), None
        rates = [level.tokens_per_second for level in figures]
        # A geometric mean: ratios count, not the larger figures of the higher concurrencies.
        speed = math.prod(rates) ** (1 / len(rates))
        # Where too few got a first token to know, nothing can be said for it.
        ttft = figures[-1].ttft_p95
        return Setting(args, speed, math.inf if ttft is None else ttft), running

    def load(self, running: Running, payloads: Sequence[Payload]) -> list[LoadFigures]:
        """Measure the speed at every concurrency."""
        args = self.args
        figures = self._run_levels(
            running, payloads, args.concurrency, args.requests, args.seconds, args.max_seconds
        )
        for level in figures:
            if level.errors == level.requests:
                raise Unavailable(
                    f"measuring {self.candidate.label}",
                    f"under load not one request was answered: {level.first_error}",
                )
        return figures

    def repeat(self, concurrency: int, block: int) -> LoadFigures:
        """Start the candidate afresh, as it was tuned, and measure its speed briefly.

        Whatever runs in one block gets the same prompts, in the next block others.

        Raises:
            Unavailable: the engine does not start, or dies meanwhile.
        """
        payloads = self._payloads()
        first = block * self.args.requests % len(payloads)
        rotated = [*payloads[first:], *payloads[:first]]
        with self._serve(self.candidate.engine) as running:
            (figures,) = self._run_levels(
                running,
                rotated,
                [concurrency],
                1,
                self.args.repeat_seconds,
                max(TUNING_MAX_SECONDS, 4 * self.args.repeat_seconds),
                tuning=True,
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
        *,
        tuning: bool = False,
    ) -> list[LoadFigures]:
        """Run every level, each with prompts of its own as far as there are enough."""
        # Recipes import this module, and the generator an event loop.
        from weighbridge.serving.load import run_load

        figures = []
        for number, level in enumerate(levels):
            prompts = prompts_of_level(payloads, number, len(levels), max(8 * level, requests))
            before = cpu_seconds(running.process.pid)
            seen = run_load(
                running.url,
                prompts,
                level,
                requests=requests,
                seconds=seconds,
                max_seconds=max_seconds,
                timeout=self.args.request_timeout,
                limits=speed_limits(self.args),
                # Of tuning, bad options need no more time than they were given.
                wait_for_silent=not tuning,
            )
            spent = cpu_seconds(running.process.pid) - before
            figures.append(seen.model_copy(update={"cpu_seconds": spent}))
            if not running.process.alive():
                raise Unavailable(
                    f"measuring {self.candidate.label}", f"it died at concurrency {level}"
                )
        return figures
