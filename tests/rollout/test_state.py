"""The state of a target: what is read back, from files of older installations too."""

from pathlib import Path

import pytest

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.versions import own_version
from weighbridge.rollout.deploy_args import read_deploy_args
from weighbridge.rollout.state import TargetState, read_state, state_document, traffic_shares
from weighbridge.serving.targets.base import Release, Revision
from weighbridge.serving.targets.home_records import HomeRecords
from weighbridge.serving.targets.local import LocalRevision
from weighbridge.serving.targets.records import STATE

OLDER = """
{
 "current": {
  "name": "7",
  "release": {"name": "demo", "version": "7", "bento": "demo:7", "digest": "sha256:7",
   "peak_memory": 9},
  "url": "http://127.0.0.1:1007",
  "since": 5.0,
  "program": "shop@7",
  "folder": "/bentos/7",
  "environment": "/environments/7",
  "port": 1007,
  "management_port": 2007,
  "health": "/health",
  "stop_seconds": 30
 },
 "rollout": {
  "id": "abc",
  "trigger": "webhook",
  "began": 10.0,
  "next": {
   "name": "8",
   "release": {"name": "demo", "version": "8", "bento": "demo:8", "digest": "sha256:8",
    "peak_memory": 0},
   "url": "http://127.0.0.1:1008",
   "since": 0.0,
   "program": "shop@8",
   "folder": "/bentos/8",
   "environment": "/environments/8",
   "port": 1008,
   "management_port": 2008,
   "health": "/health",
   "stop_seconds": 30
  },
  "previous": null,
  "phase": "shift",
  "admitted": true,
  "share": 10,
  "swap": false,
  "committed": false
 },
 "retiring": [
  {
   "revision": {
    "name": "6",
    "release": {"name": "demo", "version": "6", "bento": "demo:6", "digest": "sha256:6",
     "peak_memory": 0},
    "url": "http://127.0.0.1:1006",
    "since": 1.0,
    "program": "shop@6",
    "folder": "/bentos/6",
    "environment": "/environments/6",
    "port": 1006,
    "management_port": 2006,
    "health": "/health",
    "stop_seconds": 30
   },
   "until": 99.0,
   "rollout": "abb"
  }
 ],
 "kept": [
  {"name": "demo", "version": "6", "bento": "demo:6", "digest": "sha256:6", "peak_memory": 0}
 ],
 "failed": {
  "release": {"name": "demo", "version": "5", "bento": "demo:5", "digest": "sha256:5",
   "peak_memory": 0},
  "verdict": "fail",
  "why": "its answers",
  "at": 4.0,
  "tries": 2
 },
 "deploy": {"name": "shop", "target": {"kind": "local", "port": 8000}},
 "wish": "8",
 "note": "the target is paused"
}
"""


def test_a_state_written_with_the_older_names_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(OLDER)
    state = read_state(HomeRecords(tmp_path), LocalRevision)
    assert isinstance(state.current, LocalRevision)
    assert [one.revision.name for one in state.draining] == ["6"]
    assert [release.version for release in state.previous_releases] == ["6"]
    assert state.last_failure is not None
    assert (state.last_failure.release.version, state.last_failure.tries) == ("5", 2)
    assert state.deploy_args == {"name": "shop", "target": {"kind": "local", "port": 8000}}
    assert (state.desired_version, state.reason) == ("8", "the target is paused")
    shares = [(one.revision.name, one.weight, one.draining) for one in traffic_shares(state)]
    assert shares == [("6", 0, True), ("8", 10, False), ("7", 90, False)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(OLDER)
    records = HomeRecords(tmp_path)
    state = read_state(records, LocalRevision)
    records.change(STATE, lambda _: state_document(state))
    read = read_state(HomeRecords(tmp_path), LocalRevision)
    assert read == state.model_copy(update={"written_by": own_version()})
    assert '"retiring"' not in (tmp_path / "state.json").read_text()


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert read_state(HomeRecords(tmp_path), Revision) == TargetState()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    release = Release(name="demo", version="7", bento="demo:7", digest="sha256:7")
    (tmp_path / "state.json").write_text(release.model_dump_json()[:-5])
    with pytest.raises(Unavailable, match="it is damaged"):
        read_state(HomeRecords(tmp_path), Revision)


def test_a_state_of_a_later_form_is_refused_and_the_version_to_install_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.json").write_text('{"form": 2, "written_by": "9.1.0", "current": "7"}')
    said = r"Weighbridge 9.1.0 wrote it, .* install weighbridge>=9.1.0 here"
    with pytest.raises(Unavailable, match=said):
        read_state(HomeRecords(tmp_path), Revision)
    (tmp_path / "state.json").write_text('{"form": 2, "written_by": "9.1.0"}')
    with pytest.raises(Unavailable, match=said):
        read_state(HomeRecords(tmp_path), Revision)


def test_arguments_of_a_newer_version_name_it_where_they_are_not_understood() -> None:
    arguments = {"name": "shop", "a_new_one": 1}
    with pytest.raises(Unavailable, match=r"reading target 'shop': .* install weighbridge>=9.1.0"):
        read_deploy_args("shop", arguments, "9.1.0")
    with pytest.raises(BadInput, match="run its recipe again"):
        read_deploy_args("shop", arguments, own_version())
