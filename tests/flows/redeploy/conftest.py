"""A machine that is up, and 32 busy clients: a promotion in MLflow becomes what answers at the
address.
"""

from collections.abc import Iterator

import pytest

from benchmarks.crowd import Habits
from tests.conftest import MACHINE_CACHE
from tests.flows.live import LONG, SELDOM, Live, settings
from tests.waiting import until
from weighbridge.serving.reaper import marked

HABITS = Habits(stream_tokens=LONG + 2)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Up, with two good versions, 1 and 2; some version of them serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")
        patch.setenv("WEIGHBRIDGE_CACHE", str(MACHINE_CACHE))
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        patch.delenv("PREFECT_API_URL", raising=False)
        home = tmp_path_factory.mktemp("live")
        patch.setenv("WEIGHBRIDGE_HOME", str(home))
        machine = Live(settings(home, MACHINE_CACHE, reconcile_seconds=3))
        try:
            machine.platform.up()
            assert (machine.add(), machine.add()) == ("1", "2")
            machine.claim()
            machine.alias("1")
            machine.serves("1")
            yield machine
        finally:
            machine.platform.down()
    assert list(marked(f"{home}:")) == []


@pytest.fixture
def shop(live: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """The same, quiet, with a good version serving by the usual policy."""
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(live.home))
    live.well()
    live.claim()
    live.alias(live.good)
    live.serves(live.good)
    until(
        lambda: not live.state.draining,
        90,
        lambda: f"nothing should drain: {live.state}",
        poll=SELDOM,
    )
    return live
