"""Hold an engine to the conformance suite: the model, its artifact in the engine's format, what
transformers answers.

The suite itself is in `conformance/suite.py`, which knows no machine learning library.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from weighbridge.conformance import model, suite
from weighbridge.conformance.base import CheckResult, Subject, Verdict
from weighbridge.conformance.matrix import MatrixEntry, render
from weighbridge.conformance.model import CONTEXT, LESSONS, prompt_of
from weighbridge.conformance.reference import Question, Reference, Scored, Tokens, read
from weighbridge.conformance.report import ConformanceReport, kept, versions
from weighbridge.core import machine, plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure, one_at_a_time
from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS: Final = (
    "Hello, my kettle is broken.",
    "  two  spaces and a tab\t.\n\n\nend",
    "naïve café 🙂 – 日本語",
    "1234567 3.14 1e-9",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't we'll I'M",
    '{"key": [1, "two", null]}',
    "\u00a0\u200b\u0301e\u0301",
)
FIRST: Final = (("environment", "its environment is built"), ("prepare", "its artifact is made"))
"""What must be there before the suite can run."""
SCORED: Final = ("Count to ten.", "one two ten seven! Kettles: 🙂")

log = logging.getLogger("weighbridge.conformance")


def check(
    name: str,
    workspace: Workspace,
    *,
    options: Mapping[str, Any] | None = None,
    tell: Callable[[CheckResult], None] = lambda outcome: None,
    only: Collection[str] = (),
) -> ConformanceReport:
    """Run the suite on an engine and keep the report; `options` are the engine's own.

    Raises:
        BadInput: there is no such engine, check or option.
        Unavailable: the model or its reference cannot be made.
    """
    plugin = engine_class(name)
    _known(only)
    engine = plugin(_args(plugin, options or {}))
    started = time.monotonic()
    outcomes = [
        _without_paths(outcome, workspace) for outcome in _outcomes(engine, workspace, tell, only)
    ]
    report = ConformanceReport(
        engine=name,
        device=engine.device(),
        options=dict(options or {}),
        versions=versions(engine),
        machine=machine.describe(),
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(time.monotonic() - started, 1),
        outcomes=outcomes,
    )
    # Of an engine that is not here nothing was seen.
    if not only and outcomes[0]["verdict"] != "not run":
        report.keep(workspace.settings.home)
    return report


def _outcomes(
    engine: Engine, workspace: Workspace, tell: Callable[[CheckResult], None], only: Collection[str]
) -> Iterator[CheckResult]:
    """What must be there first, then the suite; where something lacks, nothing after it is run."""
    broken = ""
    folder = Path()
    artifact: Artifact | None = None

    def install() -> str:
        engine.check()
        return ensure(engine.lock(), workspace.settings.cache).path.name

    def prepare() -> str:
        nonlocal folder, artifact
        folder = model_folder(workspace.settings.cache)
        artifact = servable(engine, folder, workspace)
        return f"{artifact.format}, {artifact.size / 1e6:.1f} MB"

    lacking: tuple[Verdict, Verdict] = ("not run", "failed")
    for (name, title), step, verdict in zip(FIRST, (install, prepare), lacking, strict=True):
        outcome = (
            CheckResult(name, title, "not run", broken)
            if broken
            else _step(name, title, step, verdict)
        )
        broken = broken or (outcome.why if outcome.verdict != "passed" else "")
        tell(outcome)
        yield outcome
    if artifact is None:
        for check in suite.CHECKS:
            yield CheckResult(check.name, check.title, "not run", broken)
        return
    logs, cache = workspace.settings.home / "logs" / "engines", workspace.settings.cache
    yield from suite.run(
        Subject(engine.args, artifact.path, read(folder / "reference.json"), cache, logs),
        tell,
        only,
    )


def _step(name: str, title: str, step: Callable[[], str], lacking: Verdict) -> CheckResult:
    started = time.monotonic()
    verdict: Verdict = "passed"
    try:
        why = step()
    except WeighbridgeError as exc:
        verdict, why = lacking, " ".join(str(exc).split())
    return CheckResult(name, title, verdict, why, time.monotonic() - started)


def _without_paths(outcome: CheckResult, workspace: Workspace) -> dict[str, Any]:
    """A report may be published: it says nothing of where things lie on this machine."""
    settings, why = workspace.settings, outcome.why
    for place, name in ((settings.home, "WEIGHBRIDGE_HOME"), (settings.cache, "WEIGHBRIDGE_CACHE")):
        why = why.replace(str(place), f"${name}")
    return {**asdict(outcome), "why": why, "seconds": round(outcome.seconds, 1)}


def recorded(settings: Settings, published: Sequence[MatrixEntry] = ()) -> list[MatrixEntry]:
    """Every engine on every device with its last report, or why there is none.

    `published` are those of a document: what they hold of other machines stays until it is seen
    anew.
    """
    before = {(entry.engine, entry.device): entry.report for entry in published}
    entries = []
    for name in plugins.names("engine"):
        engine = engine_class(name)
        here = engine(_args(engine, {})).device()
        for device in engine.locks:
            seen = [
                report
                for report in (kept(settings.home, name, device), before.get((name, device)))
                if report
            ]
            report = max(seen, key=lambda report: report.date, default=None)
            missing = "not checked yet" if device == here else f"no {device} device on this machine"
            why = "" if report else engine.capabilities.extras.get("not run", missing)
            entries.append(MatrixEntry(engine=name, device=device, report=report, why=why))
    return entries


def document(entries: Sequence[MatrixEntry]) -> str:
    """The matrix of what was recorded, in Markdown."""
    return render(entries, [*FIRST, *((check.name, check.title) for check in suite.CHECKS)])


def _known(only: Collection[str]) -> None:
    names = [check.name for check in suite.CHECKS]
    for name in only:
        if name not in names:
            raise BadInput(
                f"looking for check '{name}'", "there is none", plugins.suggestion(name, names)
            )


def _args(engine: type[Engine], options: Mapping[str, Any]) -> EngineArgs:
    """The engine's arguments; what is left open is as it would be tried first on this machine."""
    try:
        args = engine.Args.model_validate({"kind": engine.name, **options})
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(map(str, error["loc"]))
        known = [field for field in engine.Args.model_fields if field != "kind"]
        raise BadInput(
            f"reading the options of {engine.name}",
            f"{place}: {error['msg']}",
            plugins.suggestion(place, known),
        ) from exc
    tunings = engine(args).tunings(machine.cores())
    return tunings[0] if tunings else args


def servable(engine: Engine, folder: Path, workspace: Workspace) -> Artifact:
    """The model in a format that the engine takes, made by the optimizer that changes it least.

    Raises:
        BadInput: no optimizer makes any.
        Unavailable: the optimizer cannot be run.
    """
    from weighbridge.tasks.optimize import OptimizeArgs, optimize
    from weighbridge.tasks.optimizers.base import load_optimizer

    for kind in plugins.names("optimizer"):
        plugin = load_optimizer(kind)
        faithful = plugin.faithful
        if faithful is not None and plugin.format in engine.formats:
            model = workspace.store.add(
                folder / "model", "safetensors", {"uri": "conformance"}, adopt=False
            )
            data = workspace.store.add(
                folder / "data", "jsonl", {"uri": "conformance"}, adopt=False
            )
            args = OptimizeArgs.model_validate({"variants": [{"kind": kind, **faithful}]})
            return optimize(model, data, args, workspace).variants[0].artifact
    formats = ", ".join(sorted(engine.formats))
    raise BadInput(
        f"preparing a model for {engine.name}", f"no optimizer makes {formats} without loss"
    )


def model_folder(cache: Path) -> Path:
    """`model`, `data` and `reference.json`, made if they are not there; one process at a time makes
    them.
    """
    folder = cache / "models" / f"conformance-{_digest()}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder, "making the conformance model"):
            if not folder.exists():
                _make(folder)
    return folder


def _digest() -> str:
    sources = b"".join(Path(module).read_bytes() for module in (__file__, model.__file__))
    libraries = " ".join(version(name) for name in ("torch", "transformers"))
    return hashlib.sha256(sources + libraries.encode()).hexdigest()[:16]


def _make(folder: Path) -> None:
    machine.let_waiting_threads_sleep()
    from weighbridge.tasks.hf_models import quiet

    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        scratch.chmod(0o755)
        (scratch / "model").mkdir()
        with quiet():
            model.make(scratch / "model")
            reference = _reference(scratch / "model")
        (scratch / "reference.json").write_text(
            reference.model_dump_json(indent=1), encoding="utf-8"
        )
        _write_rows(scratch / "data")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_rows(folder: Path) -> None:
    """The lessons as canonical data, which optimizers calibrate and prove with."""
    folder.mkdir()
    rows = [
        {"prompt": lesson.messages, "completion": [{"role": "assistant", "content": lesson.answer}]}
        for lesson in LESSONS
        if lesson.messages
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _reference(folder: Path) -> Reference:
    from transformers import AutoModelForCausalLM

    from weighbridge.tasks.encoding import Encoded, load_tokenizer
    from weighbridge.tasks.generation import logprobs

    tokenizer: Any = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    prompt = _ids(tokenizer, prompt_of(tokenizer, LESSONS[0]))
    rows = [Encoded(prompt, _ids(tokenizer, text)) for text in SCORED]
    scored = zip(rows, logprobs(model, rows, batch_size=1), strict=True)
    return Reference(
        made_by=f"transformers {version('transformers')}",
        context=CONTEXT,
        texts=[Tokens(text=text, ids=_ids(tokenizer, text)) for text in TEXTS],
        questions=_questions(model, tokenizer),
        scored=[
            Scored(prompt_ids=row.prompt, ids=row.completion, logprobs=values)
            for row, values in scored
        ],
    )


def _questions(model: Any, tokenizer: PreTrainedTokenizerFast) -> list[Question]:
    """Every lesson with the answer that transformers gives; it must be the one that was taught."""
    import torch

    questions = []
    for lesson in LESSONS:
        prompt = _ids(tokenizer, prompt_of(tokenizer, lesson))
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=CONTEXT - len(prompt),
            )
        answer = [
            token for token in made[0, len(prompt) :].tolist() if token != tokenizer.eos_token_id
        ]
        text = str(tokenizer.decode(answer))
        if text != lesson.answer and not (lesson.endless and text.startswith(lesson.answer)):
            raise WeighbridgeError(
                "making the conformance reference", f"'{lesson.name}' is answered {text[:80]!r}"
            )
        asked = lesson.messages or str(lesson.prompt)
        questions.append(
            Question(
                name=lesson.name, prompt=asked, prompt_ids=prompt, answer=text, answer_ids=answer
            )
        )
    return questions


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
