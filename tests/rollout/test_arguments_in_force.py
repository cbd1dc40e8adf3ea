"""The arguments of a target: the latest word holds, whoever dies, whatever was read before it."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from tests.rollout.rollouts import Crash, Machine, machine
from tests.stand_ins.target import Fault
from tests.waiting import until
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding
from weighbridge.rollout import target_operations
from weighbridge.rollout.deploy_args import read_deploy_args
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.reconcile import managed_target_of, reconcile, recover
from weighbridge.rollout.state import known_targets


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Version 1 serves at an open address."""
    with machine(workspace, monkeypatch) as shop:
        shop.promote("1")
        assert shop.world.door == "open"
        yield shop
        assert shop.world.violations == []


def bound(shop: Machine, door: str, since: float) -> Binding:
    """The binding as MLflow has it, with the address kept like this since then."""
    deploy = {**shop.binding.deploy, "target": {"kind": "memory", "door": door}}
    return Binding(target="shop", model="demo", deploy=deploy, since=since)


def said_by(shop: Machine, binding: Binding) -> ManagedTarget:
    """The target by the arguments of a recipe, which nobody was told yet."""
    return ManagedTarget("shop", read_deploy_args("shop", binding.deploy), shop.workspace)


def settle(shop: Machine, binding: Binding) -> str:
    return reconcile(binding, shop.registry, shop.workspace, "test").action  # type: ignore[arg-type]


def test_arguments_of_a_release_that_rolls_nothing_out_are_those_that_recovery_goes_by(
    shop: Machine,
) -> None:
    assert settle(shop, bound(shop, "locked", 1.0)) == "nothing"
    assert shop.world.door == "locked"
    shop.world.door = "open"  # the gateway was started anew, by what it was told before
    shop.registry.down = True
    recover(shop.workspace)
    assert shop.world.door == "locked"
    shop.world.door = "open"
    shop.managed.keep_address()  # as the deployer's watch does, whatever MLflow does
    assert shop.world.door == "locked"
    target = target_operations.find_target("shop", shop.workspace).target
    assert target.args.door == "locked", "so it is asked, and shown, there"


def test_a_binding_that_was_read_before_the_latest_word_does_not_bring_its_arguments_back(
    shop: Machine,
) -> None:
    settle(shop, bound(shop, "locked", 2.0))
    settle(shop, bound(shop, "open", 1.0))
    assert shop.world.door == "locked"
    assert managed_target_of(bound(shop, "open", 1.0), shop.workspace).args.target.door == "locked"  # type: ignore[attr-defined]
    settle(shop, bound(shop, "open", 3.0))
    assert shop.world.door == "open"


def test_a_version_that_is_rolled_out_takes_the_latest_arguments_along(shop: Machine) -> None:
    settle(shop, bound(shop, "locked", 2.0))
    shop.registry.alias = "2"
    assert settle(shop, bound(shop, "open", 1.0)) == "deployed"
    assert (shop.serves(), shop.world.door) == ("2", "locked")


def test_new_arguments_do_not_wait_for_a_rollout_to_end_and_it_goes_on_by_them(
    shop: Machine,
) -> None:
    shop.registry.alias = "2"
    shop.policy |= {"step_seconds": 30}
    rolling = threading.Thread(target=shop.reconcile)
    rolling.start()
    until(lambda: shop.state.rollout is not None and shop.state.rollout.phase == "shift")
    said_by(shop, bound(shop, "locked", 0.0)).put_in_force()
    assert shop.world.door == "locked"
    routes = dict(shop.world.routes)
    shop.managed.keep_address()
    assert (shop.world.refreshed, shop.world.routes) == (1, routes)
    target_operations.command("shop", "now", shop.workspace)
    rolling.join()
    assert (shop.serves(), shop.world.door) == ("2", "locked")


@pytest.mark.parametrize("kind", ["crash before", "crash after", "not done"])
def test_killed_anywhere_the_address_is_not_more_open_than_what_was_written_down(
    shop: Machine, kind: str
) -> None:
    words = ("locked", "open", "locked", "open")
    for number, door in enumerate(words):
        said = said_by(shop, bound(shop, door, 0.0))
        before = shop.world.door
        shop.world.fault = Fault(len(shop.world.effects) + number // 2, kind)  # type: ignore[arg-type]
        with contextlib.suppress(Crash, Unavailable):
            said.put_in_force()
        shop.world.fault = None
        recover(shop.workspace)
        assert shop.world.door in (before, door)
        written = open_target("shop", shop.workspace)
        assert written is not None
        assert written.args.target.door == shop.world.door  # type: ignore[attr-defined]
        said.put_in_force()
        assert shop.world.door == door


def test_an_address_that_can_not_be_had_leaves_what_was_in_force(shop: Machine) -> None:
    settle(shop, bound(shop, "locked", 1.0))
    with pytest.raises(BadInput, match="somebody else's"):
        said_by(shop, bound(shop, "taken", 0.0)).put_in_force()
    recover(shop.workspace)
    assert (shop.world.door, shop.state.deploy_args_since) == ("locked", 1.0)


def test_a_later_word_is_later_also_where_the_clock_was_set_back(shop: Machine) -> None:
    settle(shop, bound(shop, "locked", 9e9))
    since = said_by(shop, bound(shop, "open", 0.0)).put_in_force()
    assert since > 9e9
    assert shop.world.door == "open"


def test_one_target_that_can_not_be_recovered_does_not_keep_the_others_from_it(
    shop: Machine,
) -> None:
    damaged = shop.workspace.settings.home / "targets" / "a-damaged-one"
    damaged.mkdir()
    (damaged / "state.json").write_text("{")
    assert known_targets(shop.workspace.settings.home) == ["a-damaged-one", "shop"]
    shop.world.routes = {}
    shop.world.was_served = False
    recover(shop.workspace)
    assert shop.serves() == "1"
