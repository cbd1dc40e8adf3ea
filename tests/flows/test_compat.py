"""The weekly check in Prefect: a failed run with the table and the text for an issue, where
something would break.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MACHINE_CACHE
from tests.made_up_index import IMPORTS, Index
from weighbridge.core.settings import Settings
from weighbridge.flows.prefect_server import prefect_api


def test_a_break_fails_the_flow_and_is_kept_as_table_and_text(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("alpha", "1.0", "thing = 1\n")
    index.add("alpha", "2.0")
    environment = index.environment(
        ["alpha"], {"alpha": "1.0"}, {IMPORTS: "from alpha import thing\n"}
    )
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with prefect_api(Settings(home=tmp_path / "home", cache=MACHINE_CACHE)):
        from prefect.client.orchestration import get_client

        from weighbridge.flows import compat

        monkeypatch.setattr(compat, "locked_environments", lambda names: [environment])
        monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
        state: Any = compat.compat(return_state=True)
        path: Any = "/artifacts/filter"
        with get_client(sync_client=True) as client:
            kept = {one["key"]: one["data"] for one in client.request("POST", path, json={}).json()}
    assert state.is_failed()
    assert (
        state.message
        == "checking the newest releases: alpha 1.0 → 2.0 breaks 'its imports' (made_up)"
    )
    assert kept["compat"].startswith("# Newest releases: alpha 1.0 → 2.0 breaks")
    assert "breaks 'its imports'" in str(kept["compat-table"])
