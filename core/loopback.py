"""HTTP to services of this machine, for looks that are taken again and again."""

import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any

import httpx


def get(url: str, timeout: float = 5.0) -> httpx.Response:
    """Return the answer to a GET. Raises httpx.HTTPError where none comes in time."""
    return request("GET", url, timeout)


def post(
    url: str,
    document: object,
    timeout: float = 5.0,
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> httpx.Response:
    """Return the answer to a POST of JSON. Raises httpx.HTTPError where none comes in time."""
    return request("POST", url, timeout, json=document, headers=headers, auth=auth)


def request(method: str, url: str, timeout: float, **options: Any) -> httpx.Response:
    """Return the answer to a request with httpx's options. Raises httpx.HTTPError as above."""
    # trust_env: no proxy of the user's may stand between us and our own machine. verify: reading
    # every certificate of the machine takes 20 ms for each client, and this is plain HTTP.
    return httpx.request(
        method, url, timeout=timeout, trust_env=False, verify=_no_certificates(), **options
    )


@cache
def _no_certificates() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
