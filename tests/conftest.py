"""Fixtures every test area shares: a workspace of its own, the made models once per machine."""

import logging
import os
import ssl
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.made_up_index import Index
from tests.stand_ins.hub import Hub
from tests.stand_ins.swift import Swift, shared
from tests.warm.engines import WarmEngines
from tests.warm.scripts import WarmScripts
from tests.warm.services import WarmServices
from weighbridge.core import ranges
from weighbridge.core.machine import let_waiting_threads_sleep
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

# Before a test module loads torch. Other workers, engines and services have work for the cores.
let_waiting_threads_sleep()

MACHINE_CACHE = Settings().cache
PREFECT_INSIDE = [Path(__file__).parent / folder for folder in ("flows", "deployer", "services")]
"""Where Prefect's server runs inside the test process, and brings its own warnings with it."""

LONG_FILES = (
    "rollout/test_rollout_faults.py",
    "serving/targets/test_local.py",
    "serving/bento/test_running.py",
    "serving/bento/test_building.py",
    "registry/test_webhooks.py",
    "tasks/test_package.py",
    "conformance/test_faults.py",
    "serving/gateway/test_gateway.py",
    "tasks/test_weigh.py",
    "serving/gateway/test_gateway_clients.py",
    "stand_ins/test_openai.py",
    "serving/engines/test_llama_cpp.py",
    "examples/test_support_tickets.py",
    "tasks/test_finetune.py",
    "serving/test_supervisor.py",
    "tasks/metrics/test_metrics.py",
    "tasks/test_shapes.py",
    "rollout/test_rollout_walk.py",
    "serving/gateway/test_gateway_requests.py",
)
"""Files whose tests are none of them slow, and take ten seconds and more together: longest first.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(folder in item.path.parents for folder in PREFECT_INSIDE):
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
    # xdist hands out whole files in this order. A long one that begins last would leave the other
    # workers idle, so files with many slow tests come first, and the quick ones fill up the end.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    long = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: (-slow[item.path], long.get(item.path, len(long))))


def live_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have commands keep their state below the folder."""
    patch.setenv("WEIGHBRIDGE_HOME", str(folder / "home"))
    patch.setenv("WEIGHBRIDGE_CACHE", str(MACHINE_CACHE))
    patch.setenv("BENTOML_HOME", str(folder / "bentoml"))
    patch.setenv("BENTOML_DO_NOT_TRACK", "True")
    patch.setenv("PREFECT_HOME", str(folder / "home" / "prefect"))


@pytest.fixture(autouse=True)
def _own_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the state of the person who runs it; environments are shared."""
    live_in(tmp_path, monkeypatch)


@pytest.fixture(autouse=True, scope="session")
def _certificates_read_once() -> Iterator[None]:
    """HTTP clients read all certificates of the machine when they are made, which takes 40 ms of
    CPU time each, and nothing here is asked over TLS by them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture
def workspace() -> Workspace:
    """A fresh installation in the test's own folder."""
    return Workspace(Settings())


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A random Llama of a few hundred thousand parameters, with a chat template."""
    from tests.models import tiny_model as make

    return make(MACHINE_CACHE)


@pytest.fixture(scope="session")
def test_run(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """Folder that all workers of a test run share, and the process that outlives them."""
    if hasattr(pytestconfig, "workerinput"):
        return tmp_path_factory.getbasetemp().parent, os.getppid()
    return tmp_path_factory.getbasetemp(), os.getpid()


@pytest.fixture(scope="module", autouse=True)
def warm_scripts(test_run: tuple[Path, int]) -> Iterator[None]:
    """Scripts of other environments begin with their libraries imported."""
    with WarmScripts(*test_run):
        yield


@pytest.fixture(scope="module")
def warm_services(test_run: tuple[Path, int]) -> Iterator[WarmServices]:
    """Services begin with their libraries imported, in all of a module."""
    with WarmServices(*test_run) as services:
        yield services


@pytest.fixture(scope="module")
def warm_engines(test_run: tuple[Path, int]) -> Iterator[WarmEngines]:
    """Servers of engines on a processor begin with their libraries imported, in all of a module."""
    with WarmEngines(*test_run) as engines:
        yield engines


@pytest.fixture(autouse=True)
def _quiet_loggers() -> Iterator[None]:
    """A test that changes the level of our loggers does not change it for the next one."""
    logger = logging.getLogger("weighbridge")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that HF_ENDPOINT names."""
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(ranges, "PATIENCE", 0.01)
        yield server


@pytest.fixture(scope="session")
def swift_server(test_run: tuple[Path, int]) -> Iterator[Swift]:
    """One S3 service for all tests of a run: take a bucket of your own.

    Every client parses botocore's description of S3 again, which is two thirds of the CPU time of
    making one: here it is parsed once.
    """
    from botocore.loaders import JSONFileLoader

    folder, owner = test_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield shared(folder / "swift", MACHINE_CACHE, owner)


@pytest.fixture
def bucket(swift_server: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket; boto3 finds the service and its keys in the environment."""
    for name, value in swift_server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(ranges, "PATIENCE", 0.01)
    name = f"b{abs(hash(tmp_path)):x}"
    swift_server.create_bucket(name)
    return name


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An empty index."""
    (wheels := tmp_path / "wheels").mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return Index(tmp_path, wheels)
