"""The report tells what a search of options has found, and why each setting lost."""

import json
from pathlib import Path
from typing import Any

from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.report_search import LONGEST, MOST_SHOWN, search_facts, setting_text
from weighbridge.tasks.search.candidates import SUMMARY
from weighbridge.tasks.search.space import key_of


def record(workspace: Workspace, tmp_path: Path, **summary: Any) -> Artifact:
    folder = tmp_path / "search"
    folder.mkdir()
    whole = {"why": "of 9 settings 4 were tried", "winner": setting(2), "losers": {}, **summary}
    (folder / SUMMARY).write_text(json.dumps(whole))
    return workspace.store.add(folder, "jsonl")


def setting(threads: int) -> dict[str, Any]:
    return {"candidate": "llama_cpp/Q8_0", "threads": threads, "flash_attn": "off"}


def test_losers_failures_and_what_was_refused_keep_their_reasons(
    workspace: Workspace, tmp_path: Path
) -> None:
    losers = {
        key_of(setting(1)): "3 % behind the winner, give or take 8 %",
        key_of(setting(4)): f"load: the engine died. Its log ends:\nout of memory\n{'x' * 300}",
    }
    refused = {key_of(setting(threads)): "it needs 9 GiB" for threads in (8, 16)}
    facts = search_facts(record(workspace, tmp_path, losers=losers, **{"not tried": refused}))
    assert facts["found"] == "of 9 settings 4 were tried"
    assert facts["the best"] == "llama_cpp/Q8_0: flash_attn off, threads 2"
    slower = facts["llama_cpp/Q8_0: flash_attn off, threads 1"]
    assert slower == "3 % behind the winner, give or take 8 %"
    died = facts["llama_cpp/Q8_0: flash_attn off, threads 4"]
    assert died.startswith("load: the engine died. Its log ends: out of memory xxx")
    assert len(died) == LONGEST
    assert facts["llama_cpp/Q8_0: flash_attn off, threads 8 and 1 more"] == (
        "not tried: it needs 9 GiB"
    )


def test_of_many_the_nearest_are_shown_and_no_failure_is_crowded_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    losers = {key_of(setting(100 + number)): f"{number} % behind" for number in range(40)}
    losers[key_of(setting(4))] = "start: no such tensor"
    facts = search_facts(record(workspace, tmp_path, losers=losers))
    shown = [why for why in facts.values() if why.endswith("% behind")]
    assert shown == [f"{number} % behind" for number in range(MOST_SHOWN)]
    assert facts["more that were slower"].startswith(f"{40 - MOST_SHOWN}, in search/search.json")
    assert "start: no such tensor" in facts.values()


def test_records_of_earlier_releases_and_weighings_without_a_search_have_less_to_tell(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert list(search_facts(record(workspace, tmp_path))) == ["found", "the best"]
    assert search_facts(None) == {}


def test_values_are_told_as_a_recipe_writes_them() -> None:
    assert setting_text({"threads": None, "spec": {"n": 1}, "on": True}) == (
        'on true, spec {"n": 1}, threads null'
    )
