"""A weighing whose recipe has a search tries the space on its engines, and weighs what it found."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from weighbridge.core import plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.llama_cpp import LlamaCpp, LlamaCppArgs
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.search.candidates import GRID, SUMMARY, Live
from weighbridge.tasks.search.checks import refused
from weighbridge.tasks.search.replay import replay_of
from weighbridge.tasks.search.space import Branch, space_of
from weighbridge.tasks.search.visits import Question
from weighbridge.tasks.weigh import weigh
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    monkeypatch.setattr(engine.StandInEngine, "numerics", frozenset({"default"}))


def args(options: Any, **search: Any) -> WeighArgs:
    return WeighArgs.model_validate(
        {
            "engines": [StandInArgs()],
            "concurrency": [1, 2],
            "requests": 2,
            "seconds": 0.0,
            "repeats": 0,
            "search": {"options": options, "trials": 3, "run_seconds": 0.05, **search},
        }
    )


def test_every_number_format_is_weighed_with_the_options_that_were_found(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    options = {"stand_in": {"threads": [8, 2], "default": ["one two", "three four"]}}
    weighed = weigh([variant], data, METRICS, args(options), workspace)
    found = {one.candidate.label: one.candidate.engine for one in weighed.measurements}
    assert {label: (one.threads, one.default) for label, one in found.items()} == {
        "stand_in/whole(default=one two)": (2, "one two"),
        "stand_in/whole(default=three four)": (2, "three four"),
    }
    assert weighed.search is not None
    space, _ = replay_of(weighed.search.path / GRID)
    assert space.settings[0] == {"candidate": "stand_in/whole", "threads": 8, "default": "one two"}
    summary = json.loads((weighed.search.path / SUMMARY).read_text())
    assert len(summary["losers"]) == len(space.settings) - 1


def test_what_does_not_start_is_a_record_with_phase_log_and_arguments(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    candidate = Candidate(label="stand_in/whole", variant=variant, engine=StandInArgs())
    options = {"stand_in": {"die_loading": ["", "no such tensor"]}}
    live = Live({candidate.label: candidate}, {}, data, METRICS, args(options), workspace)
    visit = live(Question({"candidate": candidate.label, "die_loading": "no such tensor"}, 1, 0))
    assert visit.failure is not None
    assert visit.failure.phase == "start"
    assert "no such tensor" in visit.failure.why
    assert visit.failure.arguments["die_loading"] == "no such tensor"
    assert visit.failure.memory
    assert not visit.repeats


def test_what_an_engine_refuses_is_never_started(tmp_path: Path, workspace: Workspace) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.gguf").write_bytes(b"no GGUF")
    made = Variant(
        label="Q8_0", optimizer="gguf", artifact=workspace.store.add(tmp_path / "model", "gguf")
    )
    candidate = Candidate(label="llama_cpp/Q8_0", variant=made, engine=LlamaCppArgs())
    space = space_of(
        [
            Branch(
                candidate.label,
                {"flash_attn": ["on", "off"], "cache_type_v": ["f16", "q8_0"], "parallel": [4, -1]},
            )
        ]
    )

    def with_options(setting: Any) -> LlamaCppArgs:
        options = {name: value for name, value in setting.items() if name != "candidate"}
        return LlamaCppArgs.model_validate(options)

    reasons = refused(space, {candidate.label: candidate}, with_options)
    assert len(reasons) == 5
    said = set(reasons.values())
    assert "cache_type_v q8_0 needs flash attention, and flash_attn is off" in said
    assert "Input should be greater than or equal to 1" in said


def test_what_does_not_fit_in_memory_is_never_started(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate(label="stand_in/whole", variant=variant, engine=StandInArgs())
    monkeypatch.setattr("weighbridge.core.machine.memory", lambda: 1)
    space = space_of([Branch(candidate.label, {"threads": [1, 2]})])
    reasons = refused(space, {candidate.label: candidate}, lambda _: StandInArgs())
    assert set(reasons) == {0, 1}
    assert "of memory at least" in reasons[0]


def test_a_space_that_is_empty_after_the_checks_is_refused_in_one_line(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.core.machine.memory", lambda: 1)
    with pytest.raises(BadInput, match="none of its 2 settings can work: it needs") as caught:
        weigh([variant], data, METRICS, args({"stand_in": {"threads": [1, 2]}}), workspace)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "wrong"),
    [
        ({"options": {"vllm": {}}, "trials": 1}, "names vllm, which is none of the engines"),
        ({"options": {"stand_in": {"thread": [1]}}, "trials": 1}, "did you mean 'threads'"),
        ({"options": {"stand_in": {"threads": ["many"]}}, "trials": 1}, "threads 'many'"),
        ({"options": {"stand_in": {"threads": []}}, "trials": 1}, "no value to try"),
        ({"options": "auto", "unless": [{"thread": 1}], "trials": 1}, "no engine has an option"),
        ({"options": "auto"}, "give `seconds` or `trials`"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_the_recipe(
    search: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(ValidationError, match=wrong):
        WeighArgs.model_validate({"engines": [StandInArgs()], "search": search})


def test_by_itself_llama_cpp_has_what_costs_no_quality_tried() -> None:
    choices = LlamaCpp(LlamaCppArgs()).choices(2, 8)
    assert choices["threads"] == [1, 2]
    assert choices["parallel"] == [8, 4]
    assert not LlamaCpp.numerics & choices.keys()
