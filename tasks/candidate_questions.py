"""The questions that tell a candidate's quality: asked over HTTP, scored, and kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.core.artifact import Artifact
from weighbridge.core.store import Store
from weighbridge.serving.engines.base import engine_for
from weighbridge.serving.openai_client import Client, RequestRefused
from weighbridge.tasks.answer_faults import Counted
from weighbridge.tasks.candidate_answers import Answers, examples
from weighbridge.tasks.candidate_likelihoods import Asked
from weighbridge.tasks.candidate_prompts import prompt_of
from weighbridge.tasks.data import Row, Split
from weighbridge.tasks.encoding import load_tokenizer, mean_tokens
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.evaluation_rows import evaluation_rows
from weighbridge.tasks.measurement import Candidate
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.reference_distributions import read_distributions
from weighbridge.tasks.scoring import score_rows


@dataclass(frozen=True)
class CandidateQuestions:
    """The rows of a data set as questions to one candidate's engine."""

    candidate: Candidate
    data: Artifact
    metrics: EvaluateArgs
    streams: int
    """Questions under way together."""
    timeout: float
    """Seconds that one answer may take."""
    reference: Artifact | None = None
    """What the unquantized weights hold likely, as `reference_distributions` keeps it."""

    def rows(self, split: Split) -> list[Row]:
        """Return the rows of a split that are asked."""
        return evaluation_rows(self.data, split, self.metrics.limit)

    def ask(self, url: str, split: Split) -> Answers:
        """Return answers to a split's prompts, drawn as they will be where a request says nothing
        of that, and, where a metric asks, what is likely at the tokens of the references.
        """
        rows = self.rows(split)
        options = {"max_tokens": self.metrics.max_new_tokens, **self.candidate.engine.sampling()}
        client = Client(url, self.timeout)
        tokenizer = tokenizer_of(self.candidate.variant.artifact)
        asked = Asked(url, engine_for(self.candidate.engine), tokenizer, self._all)

        def answer(row: Row) -> tuple[str, str, str | None]:
            try:
                answer = client.ask(prompt_of(row), **options)
                return answer.text, answer.finish_reason, None
            except RequestRefused as exc:
                return "", "", str(exc)

        replies = self._all(answer, rows)
        return Answers(
            rows,
            [text for text, _, _ in replies],
            [problem for _, _, problem in replies],
            [end for _, end, _ in replies],
            asked.likelihoods(
                rows, self.metrics.metrics, read_distributions(self.reference, split)
            ),
        )

    def _all(self, ask: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(self.streams) as pool:
            try:
                return list(pool.map(ask, items))
            # On Ctrl-C, too: leaving the pool would first ask every question that still waits.
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def score(self, answers: Answers, missing: dict[str, str]) -> dict[str, Score]:
        """Return every metric's score by label, and put into `missing` why others have none."""
        if not answers.rows:
            return {}
        metrics: list[MetricArgs] = list(self.metrics.metrics)
        told = answers.likelihoods
        return score_rows(
            metrics,
            answers.texts,
            answers.rows,
            told.logprobs,
            told.distributions,
            told.untold,
            missing,
        )

    def unscored(self, scores: Mapping[str, Score], answers: Answers) -> dict[str, str]:
        """Return by metric why it was left out."""
        labels = [metric.label() for metric in self.metrics.metrics]
        return {
            label: answers.likelihoods.untold
            for label in labels
            if label not in scores and answers.rows
        }

    def answer_tokens(self, answers: Mapping[Split, Answers]) -> dict[str, float]:
        """Return how long answers are: what speed is to be compared at."""
        folder = tokenizer_of(self.candidate.variant.artifact)
        if not (folder / "tokenizer.json").is_file():
            return {}
        tokenizer = load_tokenizer(folder)
        means = {split: mean_tokens(tokenizer, one.texts) for split, one in answers.items()}
        return {split: mean for split, mean in means.items() if mean is not None}

    def keep(
        self,
        answers: Mapping[Split, Answers],
        scores: Mapping[Split, Mapping[str, Score]],
        counted: Mapping[Split, Counted],
        store: Store,
    ) -> Artifact:
        """Store every example with its answer, scores and faults, as one artifact; and what a judge
        was asked.
        """
        with store.scratch() as scratch:
            for split, split_answers in answers.items():
                lines = (
                    json.dumps(example, ensure_ascii=False) + "\n"
                    for example in examples(split_answers, scores[split], counted[split].scores)
                )
                (scratch / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            for metric in self.metrics.metrics:
                if isinstance(prompt := getattr(metric, "prompt", None), str):
                    kept = scratch / f"{metric.label()}.prompt.txt"
                    kept.write_text(prompt, encoding="utf-8")
            return store.add(scratch, "jsonl", {"candidate": self.candidate.label})


def tokenizer_of(artifact: Artifact) -> Path:
    """Return the folder with the Hugging Face tokenizer of a servable artifact."""
    beside = artifact.path / "tokenizer"
    return beside if beside.is_dir() else artifact.path
