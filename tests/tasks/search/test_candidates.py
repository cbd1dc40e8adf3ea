"""A weighing whose recipe has a search tries the space on its engines, and weighs what it found."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError, model_validator

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from tests.tasks.made import load
from weighbridge.core import machine, plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.llama_cpp import LlamaCpp, LlamaCppArgs
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.search.candidates import GRID, SUMMARY, Live
from weighbridge.tasks.search.checks import refused
from weighbridge.tasks.search.replay import replay_of
from weighbridge.tasks.search.space import Branch, space_of
from weighbridge.tasks.search.visits import Failure, Question, Visit, read_grid
from weighbridge.tasks.weigh import inputs_of, weigh
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
    weighed = weigh([variant], data, METRICS, args(options, trials=5), workspace)
    found = {one.candidate.label: one.candidate.engine for one in weighed.measurements}
    assert {label: (one.threads, one.default) for label, one in found.items()} == {
        "stand_in/whole(default=one two)": (2, "one two"),
        "stand_in/whole(default=three four)": (2, "three four"),
    }
    assert weighed.search is not None
    space, _ = replay_of(weighed.search.path / GRID)
    # The engine's own threads, but none of its number formats beside those that are named.
    assert space.settings[0] == {"candidate": "stand_in/whole", "threads": 1, "default": "one two"}
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


def visit_of(
    options: dict[str, Any], variant: Variant, data: Artifact, workspace: Workspace
) -> Visit:
    candidate = Candidate(label="stand_in/whole", variant=variant, engine=StandInArgs())
    asked = args({"stand_in": {name: [value] for name, value in options.items()}})
    live = Live({candidate.label: candidate}, {}, data, METRICS, asked, workspace)
    return live(Question({"candidate": candidate.label, **options}, 1, 0))


def test_what_dies_under_load_is_a_record_with_status_memory_then_and_arguments(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left once it has ended is not what it died of.
    left = iter([7 * 2**20])
    monkeypatch.setattr("weighbridge.core.machine.available_memory", lambda: next(left, 2**40))
    visit = visit_of({"die_after": 4}, variant, data, workspace)
    assert visit.failure is not None
    assert visit.failure.phase == "load"
    assert "the engine died with status 9. Its log ends:" in visit.failure.why
    assert visit.failure.memory == 7 * 2**20
    assert visit.failure.arguments["die_after"] == 4
    assert visit.start_seconds > 0
    assert not visit.repeats


def test_what_answers_errors_alone_tells_the_first_and_how_its_log_ends(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = load(0, 2, requests_per_second=0).model_copy(
        update={"requests": 7, "errors": 7, "first_error": "HTTP 500: out of memory"}
    )
    monkeypatch.setattr(CandidateBenchmark, "_run_levels", lambda *_, **__: [silent])
    visit = visit_of({"threads": 2}, variant, data, workspace)
    assert visit.failure is not None
    assert visit.failure.phase == "load"
    assert visit.failure.why.startswith(
        "no tokens/s at concurrency 2: of 7 requests 7 failed and 0 were not answered in time, "
        "the first: HTTP 500: out of memory. The engine's log ends:"
    )


def test_what_is_refused_before_a_start_is_in_the_record_and_not_replayed(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_threads(8, monkeypatch)
    asked = args({"stand_in": {"threads": [1, 2, 8]}})
    found = weigh([variant], data, METRICS, asked, workspace).search
    assert found is not None
    refused_ones = [one for one in read_grid(found.path / GRID) if one.failure]
    assert [one.setting["threads"] for one in refused_ones] == [8]
    assert refused_ones[0].failure == Failure(
        phase="check", why="8 are too many", memory=machine.memory(), arguments={"threads": 8}
    )
    summary = json.loads((found.path / SUMMARY).read_text())
    assert list(summary["not tried"].values()) == ["8 are too many"]
    space, replay = replay_of(found.path / GRID)
    assert [setting["threads"] for setting in space.settings] == [1, 2]
    assert len(replay.points) == 2


def test_a_killed_search_begins_anew_where_its_space_has_changed(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = args({"stand_in": {"threads": [2, 8]}})
    measure, met = Live.__call__, []

    def dies(live: Live, question: Question) -> Visit:
        met.append(question.setting["threads"])
        if len(met) == 3:
            raise KeyboardInterrupt
        return measure(live, question)

    assert asked.search is not None
    monkeypatch.setattr(Live, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        weigh([variant], data, METRICS, asked, workspace)
    refuse_threads(8, monkeypatch)
    weighed = weigh([variant], data, METRICS, asked, workspace)
    assert weighed.measurements[0].candidate.engine.model_dump()["threads"] == 2
    # None of the trials that there were, and none of what is refused now.
    assert len(met[3:]) == asked.search.trials
    assert 8 not in met[3:]


def refuse_threads(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(engine: engine.StandInEngine, model: Path | None = None) -> None:
        if engine.args.threads == number:
            raise BadInput("checking", f"{number} are too many")

    monkeypatch.setattr(engine.StandInEngine, "check", check)


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
        ({"options": {"stand_in": {"threads": [2, "2"]}}, "trials": 1}, "threads has 2 twice"),
        ({"options": "auto", "unless": [{"thread": 1}], "trials": 1}, "no engine has an option"),
        ({"options": "auto", "unless": [{"threads": "no"}], "trials": 1}, "threads 'no': Input"),
        ({"options": "auto", "unless": [{"threads": [1, []]}], "trials": 1}, "threads \\[\\]: In"),
        ({"options": "auto", "unless": [{"kind": "vllm"}], "trials": 1}, "names vllm, which is no"),
        ({"options": "auto", "unless": [{}], "trials": 1}, "leaves everything out"),
        ({"options": "auto"}, "give `seconds` or `trials`"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_the_recipe(
    search: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(ValidationError, match=wrong):
        WeighArgs.model_validate({"engines": [StandInArgs()], "search": search})


def test_the_engines_defaults_are_tried_whatever_is_named(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    found = weigh([variant], data, METRICS, args({"stand_in": {"threads": [8, 6]}}), workspace)
    assert found.search is not None
    points = read_grid(found.search.path / GRID)
    # What the engine is weighed with where nothing is searched: the first that it would tune.
    assert [point.setting["threads"] for point in points] == [1, 8, 6]
    assert found.measurements[0].candidate.engine.model_dump()["threads"] == 1


def test_an_engine_that_takes_no_option_without_another_is_searched(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SizedArgs(StandInArgs):
        @model_validator(mode="after")
        def _has_a_context(self) -> "SizedArgs":
            if not self.context:
                raise ValueError("it takes a context")
            return self

    asked = args("auto").model_copy(update={"engines": [SizedArgs(context=512)]})
    monkeypatch.setattr(engine.StandInEngine, "Args", SizedArgs)
    found = weigh([variant], data, METRICS, asked, workspace)
    assert found.search is not None
    points = read_grid(found.search.path / GRID)
    assert sorted(point.setting["threads"] for point in points) == [1, 2, 8]


def test_a_default_comes_first_wherever_it_is_named() -> None:
    branch = Branch("a", {"threads": [8, 1], "slots": [4]}, default={"threads": 1})
    space = space_of([branch])
    assert [setting["threads"] for setting in space.settings] == [1, 8]
    assert (space.defaults, space.overrides(0), space.overrides(1)) == ((0,), 0, 1)


def test_conditions_name_engines_variants_and_options_that_the_recipe_gives(
    variant: Variant, data: Artifact, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    other = variant.model_copy(update={"label": "other"})
    asked = args(
        {"stand_in": {"threads": [1, 2, 8]}},
        trials=1,
        unless=[
            {"kind": "stand_in", "variant": "whole", "threads": 2},
            {"context": 512, "threads": 8},
            {"context": 0, "threads": 8},
        ],
    ).model_copy(update={"engines": [StandInArgs(context=512)]})
    with caplog.at_level("WARNING"):
        found = weigh([variant, other], data, METRICS, asked, workspace)
    assert found.search is not None
    summary = json.loads((found.search.path / SUMMARY).read_text())
    # Defaults of both, and two threads of one alone.
    assert "of 3 settings 1 were tried" in summary["why"]
    said = [record.message for record in caplog.records]
    assert said == ['search.unless leaves nothing out by {"context": 0, "threads": 8}']


def test_what_the_recipe_gives_stays_and_a_candidate_without_a_setting_is_weighed_as_it_is(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_threads(6, monkeypatch)
    asked = args({"stand_in": {"threads": [1, 2], "context": [512]}}).model_copy(
        update={"engines": [StandInArgs(threads=2), StandInArgs(threads=6)]}
    )
    given, refused_one = weigh([variant], data, METRICS, asked, workspace).measurements
    assert given.candidate.engine.model_dump()["threads"] == 2
    assert refused_one.candidate.label == "stand_in(threads=6)/whole"
    assert refused_one.failure is not None
    assert "6 are too many" in refused_one.failure


def test_another_budget_searches_again_and_measures_no_candidate_again(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    candidate = Candidate(label="a", variant=variant, engine=StandInArgs())
    few, many = (args({"stand_in": {"threads": [1, 2]}}, trials=trials) for trials in (1, 4))
    assert inputs_of(candidate, data, METRICS, few, workspace) == inputs_of(
        candidate, data, METRICS, many, workspace
    )
    first, second = (weigh([variant], data, METRICS, asked, workspace) for asked in (few, many))
    assert first.search is not None
    assert second.search is not None
    assert "1 were tried" in (first.search.path / SUMMARY).read_text()
    assert "2 were tried" in (second.search.path / SUMMARY).read_text()


def test_the_same_variant_under_another_name_is_searched_under_that(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    asked = args({"stand_in": {"threads": [2]}}, trials=1)
    for label in ("whole", "renamed"):
        named = variant.model_copy(update={"label": label})
        (measured,) = weigh([named], data, METRICS, asked, workspace).measurements
        assert measured.candidate.label == f"stand_in/{label}"


def test_every_setting_has_room_for_the_highest_load(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.serving.engines.llama_cpp.trained_context", lambda _: 2048)
    candidate = Candidate(label="a", variant=variant, engine=LlamaCppArgs(ubatch_size=128))
    asked = args({"stand_in": {}}).model_copy(update={"concurrency": [1, 8, 4]})
    live = Live({"a": candidate}, {"a": 512}, data, METRICS, asked, workspace)
    for options, sized in (({}, (8, 4096)), ({"parallel": 2}, (2, 1024))):
        engine_args = live.args_of({"candidate": "a", **options}).model_dump()
        assert (engine_args["parallel"], engine_args["ctx_size"]) == sized
        assert engine_args["ubatch_size"] == 128


def test_by_itself_llama_cpp_has_what_costs_no_quality_tried() -> None:
    choices = LlamaCpp(LlamaCppArgs()).choices(2, 8)
    assert choices["threads"] == [1, 2]
    assert choices["parallel"] == [8, 4]
    assert not LlamaCpp.numerics & choices.keys()
