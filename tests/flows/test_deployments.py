"""Deployments in Prefect when `prefect.yaml` changes, and who carries out their runs."""

import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from weighbridge.flows import deployments


def test_a_schedule_of_an_earlier_description_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    known = [
        {
            "name": name,
            "id": name,
            "schedules": [{"id": slug, "slug": slug} for slug in (*slugs, "of-the-user")],
        }
        for name, slugs in {
            "monitor": ["every-5-minutes", "every-10-minutes"],
            "reconcile": ["every-10-minutes", "every-hour"],
        }.items()
    ]

    def answer(method: str, url: str, **_: object) -> httpx.Response:
        asked.append((method, url))
        return httpx.Response(200, json=known, request=httpx.Request(method, url))

    monkeypatch.setattr(httpx, "request", answer)
    deployments._remove_earlier_schedules("http://prefect/api", tmp_path)
    assert [url.rpartition("deployments/")[2] for method, url in asked if method == "DELETE"] == [
        "monitor/schedules/every-5-minutes",
        "reconcile/schedules/every-10-minutes",
    ]


def test_workers_ask_the_deployer_for_the_short_runs_and_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: dict[str, list[str]] = {}
    known = [{"name": name, "id": name} for name in deployments.NAMES]

    def answer(method: str, url: str, json: Any, **_: object) -> httpx.Response:
        if method == "PATCH":
            commands[url.rpartition("/")[2]] = shlex.split(json["job_variables"]["command"])
        return httpx.Response(200, json=known, request=httpx.Request(method, url))

    monkeypatch.setattr(httpx, "request", answer)
    deployments._let_the_deployer_run("http://prefect/api", tmp_path, known)
    program = [sys.executable, "-m", "weighbridge.deployer.run_request"]
    assert commands == {name: [*program, name] for name in ("reconcile", "monitor")}
