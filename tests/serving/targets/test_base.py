"""What every target is, whoever wrote it: found by its kind, with defaults for what is optional."""

from pathlib import Path

import pytest

from tests.stand_ins import target as memory
from tests.stand_ins.target import MemoryArgs, MemoryRevision, MemoryTarget
from weighbridge.core import plugins
from weighbridge.core.errors import BadInput
from weighbridge.serving.gateway.files import DesiredState
from weighbridge.serving.gateway.models import Front, GatewayArgs
from weighbridge.serving.targets.base import Release, Target, TargetArgs, target_for
from weighbridge.serving.targets.local import Local, LocalArgs

REVISION = MemoryRevision(
    name="7",
    release=Release(name="demo", version="7", bento="demo:7", digest="sha256:7"),
    url="http://7",
)


@pytest.mark.parametrize(
    ("args", "kind"), [(LocalArgs(port=8123), Local), (MemoryArgs(), MemoryTarget)]
)
def test_a_target_is_made_of_its_name_its_arguments_and_its_home(
    args: TargetArgs,
    kind: type[Target[TargetArgs, MemoryRevision]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["target"], "memory", memory.PATH)  # type: ignore[arg-type]
    target = target_for("shop", args, tmp_path)
    assert type(target) is kind
    assert (target.name, target.args, target.home) == ("shop", args, tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is written yet"


def test_a_kind_that_nobody_knows_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'local'"):
        target_for("shop", TargetArgs(kind="lokal"), tmp_path)


def test_what_is_optional_has_a_default(tmp_path: Path) -> None:
    class Plain(MemoryTarget):
        free_memory = Target.free_memory
        traffic_figures = Target.traffic_figures

    target = Plain("shop", MemoryArgs(), tmp_path)
    target.check()
    assert target.credentials() == {}
    assert target.probe_endpoint(REVISION) == (target.address, {})
    assert target.traffic_figures(REVISION) == {}
    assert target.free_memory() is None


def test_monitoring_asks_one_revision_with_our_own_key(tmp_path: Path) -> None:
    target = Local("shop", LocalArgs(port=8123), tmp_path)
    revision = MemoryRevision(**{**dict(REVISION), "url": "http://127.0.0.1:9"})
    url, headers = target.probe_endpoint(revision)  # type: ignore[arg-type]
    assert url == "http://127.0.0.1:8123"
    assert headers["X-Weighbridge-Version"] == "7"
    assert headers["Authorization"].startswith("Bearer ")
    assert target.credentials() == {}, "clients need no key here"


def test_past_tls_monitoring_asks_the_engine_itself(tmp_path: Path) -> None:
    args = LocalArgs.model_validate({"port": 8123, "gateway": {"tls": "cert.pem"}})
    target = Local("shop", args, tmp_path)
    assert target.address == "https://127.0.0.1:8123"
    assert target.probe_endpoint(REVISION) == ("http://7", {})  # type: ignore[arg-type]


def test_before_the_gateway_was_ever_up_there_are_no_figures(tmp_path: Path) -> None:
    target = Local("shop", LocalArgs(port=8123), tmp_path)
    assert target.traffic_figures(REVISION) == {}  # type: ignore[arg-type]


def test_arguments_of_unknown_age_take_no_key_and_no_certificate_away(tmp_path: Path) -> None:
    keyed = GatewayArgs(api_keys="/etc/keys", tls="/etc/endpoint.pem")
    front = Front(target="shop", port=8123, args=keyed)
    (tmp_path / "run").mkdir()
    desired = DesiredState(metrics_port=1, fronts=(front,))
    (tmp_path / "run" / "gateway.json").write_text(desired.model_dump_json())
    older = Local("shop", LocalArgs(port=8123), tmp_path)
    assert older.not_more_open().args.gateway == keyed
    other = LocalArgs.model_validate({"port": 8123, "gateway": {"api_keys": "/etc/other"}})
    assert Local("shop", other, tmp_path).not_more_open().args.gateway.api_keys == "/etc/other"
    assert Local("new", LocalArgs(), tmp_path).not_more_open().args == LocalArgs()
