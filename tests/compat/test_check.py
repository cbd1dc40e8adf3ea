"""The whole check on a made-up index: what breaks, at which package, and what is left behind."""

from pathlib import Path

import pytest

from tests.made_up_index import IMPORTS, Index
from weighbridge.compat.check import Options, check
from weighbridge.compat.locked_environments import LockedEnvironment
from weighbridge.compat.report import CheckedEnvironment, CompatReport
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port


def run(
    environment: LockedEnvironment, cache: Path, options: Options | None = None
) -> tuple[CompatReport, CheckedEnvironment]:
    report = check([environment], options or Options(), cache)
    (one,) = report.environments
    return report, one


def test_the_package_whose_update_breaks_a_contract_is_named_and_others_are_not(
    index: Index, cache: Path
) -> None:
    index.add("alpha", "1.0", "def thing(): ...\n")
    index.add("alpha", "2.0")
    index.add("beta", "1.0")
    index.add("beta", "1.1")
    environment = index.environment(
        ["alpha<2", "beta"],
        {"alpha": "1.0", "beta": "1.0"},
        {IMPORTS: "from alpha import thing\nimport beta\n", "beta alone": "import beta\n"},
    )
    report, one = run(environment, cache)
    (found,) = one.findings
    assert (found.kind, found.packages, found.contract) == (
        "breaks",
        {"alpha": ("1.0", "2.0")},
        IMPORTS,
    )
    assert "alpha.thing: ModuleNotFoundError" in found.why
    assert {result.contract: result.holds for result in one.results} == {
        IMPORTS: False,
        "beta alone": True,
    }
    assert report.headline() == "alpha 1.0 → 2.0 breaks 'its imports' (made_up)"
    assert [(row["package"], row["verdict"]) for row in report.rows()] == [
        ("alpha", "breaks 'its imports'"),
        ("beta", "nothing breaks"),
    ]
    assert "## alpha 1.0 → 2.0: breaks “its imports” in made_up" in report.markdown()


def test_an_indirect_dependency_is_blamed_where_no_direct_one_breaks_it(
    index: Index, cache: Path
) -> None:
    index.add("alpha", "1.0", requires=["gamma"])
    index.add("alpha", "1.1", requires=["gamma"])
    index.add("gamma", "1.0", "def thing(): ...\n")
    index.add("gamma", "2.0")
    environment = index.environment(
        ["alpha"], {"alpha": "1.0", "gamma": "1.0"}, {IMPORTS: "from gamma import thing\n"}
    )
    _, one = run(environment, cache)
    assert [found.packages for found in one.findings] == [{"gamma": ("1.0", "2.0")}]


def test_what_must_move_along_is_told(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0", "def thing(): ...\n", requires=["gamma"])
    index.add("alpha", "2.0", requires=["gamma>=2"])
    index.add("gamma", "1.0")
    index.add("gamma", "2.0")
    environment = index.environment(
        ["alpha<2"], {"alpha": "1.0", "gamma": "1.0"}, {IMPORTS: "from alpha import thing\n"}
    )
    report, one = run(environment, cache)
    (found,) = one.findings
    assert found.with_it == {"gamma": ("1.0", "2.0")}
    assert "Moved along with it: gamma 1.0 → 2.0." in report.markdown()


def test_a_conflict_names_both_packages_and_their_bounds(index: Index, cache: Path) -> None:
    for version, requires in (("1.0", []), ("2.0", ["gamma<2"])):
        index.add("alpha", version, requires=requires)
    for version, requires in (("1.0", []), ("2.0", ["gamma>=2"])):
        index.add("beta", version, requires=requires)
    index.add("gamma", "1.0")
    index.add("gamma", "2.0")
    locked = {"alpha": "1.0", "beta": "1.0"}
    report, one = run(
        index.environment(["alpha", "beta"], locked, {IMPORTS: "import alpha, beta\n"}), cache
    )
    held = [found for found in one.findings if found.kind == "held back"]
    assert len(held) == 1
    (name,) = held[0].packages
    assert held[0].packages == {name: ("1.0", "2.0")}
    assert ({"alpha", "beta"} - {name}).pop() in held[0].why
    assert {result.versions for result in one.results} == {
        "everything at its newest",
        f"{name} 2.0 alone",
    }
    assert report.breaks == []


def test_an_update_that_goes_only_without_the_others_is_tried_alone(
    index: Index, cache: Path
) -> None:
    index.add("alpha", "1.0", "def thing(): ...\n")
    index.add("alpha", "2.0", requires=["beta<2"])
    index.add("beta", "1.0")
    index.add("beta", "2.0")
    environment = index.environment(
        ["beta", "alpha"], {"alpha": "1.0", "beta": "1.0"}, {IMPORTS: "from alpha import thing\n"}
    )
    _, one = run(environment, cache)
    assert [(found.kind, found.packages) for found in one.findings] == [
        ("held back", {"alpha": ("1.0", "2.0")}),
        ("breaks", {"alpha": ("1.0", "2.0")}),
    ]


def test_a_contract_that_breaks_as_locked_too_is_nobodys_fault(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0")
    report, one = run(
        index.environment(["alpha"], {"alpha": "1.0"}, {IMPORTS: "from alpha import thing\n"}),
        cache,
    )
    assert [(found.kind, found.packages) for found in one.findings] == [("broken already", {})]
    assert report.breaks


@pytest.mark.slow
def test_one_that_hangs_and_one_that_dies_hide_no_other(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0", "import os\nos.write(2, b'out of luck')\nos._exit(7)\n")
    index.add("beta", "1.0")
    index.add("beta", "2.0", "import time\ntime.sleep(600)\n")
    index.add("gamma", "1.0", "thing = 1\n")
    index.add("gamma", "2.0")
    names = ("alpha", "beta", "gamma")
    uses = {
        "dies": "import alpha\n",
        "hangs": "import beta\n",
        "lacks": "from gamma import thing\n",
    }
    _, one = run(
        index.environment(names, dict.fromkeys(names, "1.0"), uses),
        cache,
        Options(contract_seconds=8),
    )
    blamed = {found.contract: (list(found.packages), found.why) for found in one.findings}
    assert blamed["dies"] == (["alpha"], "it ended without a result; its last words: out of luck")
    assert blamed["hangs"][0] == ["beta"]
    assert blamed["hangs"][1].startswith("it took longer than 8 s")
    assert blamed["lacks"][0] == ["gamma"]


def test_only_the_packages_asked_for_move(index: Index, cache: Path) -> None:
    for name in ("alpha", "beta"):
        index.add(name, "1.0")
        index.add(name, "2.0")
    environment = index.environment(
        ["alpha<2", "beta<2"], {"alpha": "1.0", "beta": "1.0"}, {IMPORTS: "import alpha\n"}
    )
    _, one = run(environment, cache, Options(only=("beta",)))
    assert {change.package: change.newest for change in one.changes} == {"beta": "2.0"}
    with pytest.raises(BadInput, match=r"checking 'bta'.*did you mean 'beta'"):
        run(environment, cache, Options(only=("bta",)))


def test_a_bound_is_named_where_it_is_what_keeps_the_newest_out(index: Index, cache: Path) -> None:
    for name in ("alpha", "beta"):
        index.add(name, "1.0")
        index.add(name, "2.0")
    environment = index.environment(
        ["alpha<2", "beta<3"], {"alpha": "1.0", "beta": "1.0"}, {IMPORTS: "import alpha\n"}
    )
    report, _ = run(environment, cache, Options(run=False))
    assert {row["package"]: row["why"] for row in report.rows() if row["package"]} == {
        "alpha": "kept out by our own <2",
        "beta": "",
    }


def test_where_nothing_is_newer_nothing_is_installed(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0")
    report, one = run(
        index.environment(["alpha"], {"alpha": "1.0"}, {IMPORTS: "import alpha\n"}), cache
    )
    assert (one.state, one.results, report.headline()) == ("as locked", [], "nothing would break")


@pytest.mark.parametrize(("metadata", "contract"), [("2.2", "it installs"), ("1.0", "it resolves")])
def test_an_update_that_cannot_be_built_is_one_that_breaks(
    index: Index, cache: Path, metadata: str, contract: str
) -> None:
    """From version 2.2 on, metadata say what a package needs before it is built."""
    index.add("alpha", "1.0")
    index.add("beta", "1.0")
    index.add("beta", "1.1")
    index.add_broken_source("alpha", "2.0", metadata)
    environment = index.environment(
        ["alpha", "beta"], {"alpha": "1.0", "beta": "1.0"}, {IMPORTS: "import alpha\n"}
    )
    _, one = run(environment, cache)
    (found,) = one.findings
    assert (found.kind, found.contract) == ("breaks", contract)
    assert "alpha" in found.why
    if contract == "it installs":
        assert found.packages == {"alpha": ("1.0", "2.0")}


def test_it_leaves_nothing_behind_and_changes_no_environment(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0")
    (cache / "compat" / "left-by-a-killed-one").mkdir(parents=True)
    run(index.environment(["alpha"], {"alpha": "1.0"}, {IMPORTS: "import alpha\n"}), cache)
    assert list((cache / "compat").iterdir()) == []
    assert [path.name for path in (cache / "environments").iterdir()] == ["another-0123"]


def test_an_index_that_does_not_answer_is_no_finding(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("alpha", "1.0")
    environment = index.environment(["alpha"], {"alpha": "1.0"}, {IMPORTS: "import alpha\n"})
    (index.wheels / "alpha-1.0-py3-none-any.whl").unlink()
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(Unavailable, match="resolving the newest releases"):
        run(environment, cache)


def test_when_time_is_up_the_report_says_what_is_missing(index: Index, cache: Path) -> None:
    index.add("alpha", "1.0")
    index.add("alpha", "2.0")
    environment = index.environment(["alpha"], {"alpha": "1.0"}, {IMPORTS: "import alpha\n"})
    _, one = run(environment, cache, Options(minutes=0))
    assert [(found.kind, IMPORTS in found.why) for found in one.findings] == [("not run", True)]
