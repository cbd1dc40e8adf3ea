"""Schedules of Prefect's deployments when `prefect.yaml` changes."""

from pathlib import Path

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
