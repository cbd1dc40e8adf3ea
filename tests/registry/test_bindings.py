"""Targets: which model's champion serves where."""

import pytest

from tests.registry.conftest import Make
from weighbridge.core.errors import BadInput
from weighbridge.registry import Binding, Registry
from weighbridge.registry.bindings import _TAG


@pytest.fixture(autouse=True)
def _models(registry: Registry, make: Make) -> None:
    with registry.release("any", 1, params={}, tags={}) as run:
        for name in ("demo", "other"):
            registry.register(name, "base", make("base"), run=run)


def test_targets_are_listed_with_model_and_arguments(registry: Registry) -> None:
    assert registry.bindings() == []
    local = Binding(
        target="local", model="demo", deploy={"port": 3000, "target": {"kind": "local"}}
    )
    edge = Binding(target="edge.1", model="demo", deploy={})
    local = registry.bind(local)
    edge = registry.bind(edge)
    assert registry.bind(local) == local
    assert registry.bindings() == [edge, local]


def test_a_target_serves_one_model_and_the_later_word_holds(registry: Registry) -> None:
    for model, port in (("demo", 1), ("other", 2), ("demo", 3), ("demo", 4)):
        bound = registry.bind(Binding(target="local", model=model, deploy={"port": port}))
        assert registry.bindings() == [bound]
        assert (bound.model, bound.deploy) == (model, {"port": port})


def test_every_word_on_a_target_is_later_than_the_one_before_whatever_the_clock_says(
    registry: Registry,
) -> None:
    said = [(1, 50.0), (2, 40.0), (2, 60.0), (3, 0.0)]
    words = [
        registry.bind(Binding(target="local", model="demo", deploy={"port": port}, since=since))
        for port, since in said
    ]
    assert [word.since for word in words[:2]] == [50.0, pytest.approx(50.0)]
    assert words[1].since > words[0].since
    assert words[2] == words[1], "nothing new was said"
    assert words[3].since > 1e9


def test_killed_between_the_new_model_and_the_old_one_the_new_one_holds(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    moved = Binding(target="local", model="other", deploy={})
    registry.bind(Binding(target="local", model="demo", deploy={}))
    with monkeypatch.context() as patched:
        patched.setattr(registry.connection.client, "delete_registered_model_tag", refuse)
        with pytest.raises(KeyboardInterrupt):
            registry.bind(moved)
    [found] = registry.bindings()
    assert (found.model, found.deploy) == ("other", {})
    registry.bind(moved)
    model = registry.connection.client.get_registered_model("demo")
    assert f"{_TAG}local" not in model.tags


def test_what_mlflow_cannot_hold_is_refused(registry: Registry) -> None:
    with pytest.raises(BadInput, match="longer than 5000"):
        registry.bind(Binding(target="local", model="demo", deploy={"x": "y" * 6000}))
    with pytest.raises(BadInput, match="only letters"):
        registry.bind(Binding(target="a b", model="demo", deploy={}))


def test_the_wish_is_the_champion_by_number_and_nothing_where_it_is_gone(
    registry: Registry,
) -> None:
    assert registry.desired_version("demo") is None
    assert registry.desired_version("unknown") is None
    registry.promote(registry.version("demo", "1"))
    desired = registry.desired_version("demo")
    assert desired is not None
    assert desired.version == "1"
    registry.connection.client.delete_model_version("demo", "1")
    assert registry.desired_version("demo") is None
