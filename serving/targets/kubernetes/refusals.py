"""What an API server refuses, as errors of ours: what was done, what is wrong, what to do."""

import json
import re
from typing import Final

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line

_FORBIDDEN: Final = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
)
_NO_NAMESPACE: Final = "there is no namespace "
_NO_SUCH_RESOURCE: Final = "could not find the requested resource"


class Refusal(Unavailable):
    """The API server answered, with an error."""


class Forbidden(Refusal):
    """Our account may not do that."""


class NotFound(Refusal):
    """There is no such object, or no such kind of objects."""

    @property
    def is_of_kind(self) -> bool:
        """Whether the cluster knows no objects of this kind at all."""
        return _is_unknown_kind(self.wrong)

    @property
    def is_of_namespace(self) -> bool:
        """Whether there is not even the namespace."""
        return self.wrong.startswith(_NO_NAMESPACE)


class Conflict(Refusal):
    """The object is there already, or has been changed since the version that was named."""


class NoAnswer(Unavailable):
    """The API server cannot be reached, or says that it can't answer now."""


def refusal_of(doing: str, status: int, data: bytes) -> Unavailable:
    """Return what an error of the API server comes to."""
    try:
        message = str(json.loads(data).get("message", ""))
    except (ValueError, AttributeError):
        message = data.decode("utf-8", "replace")
    message = one_line(message, 500) or f"HTTP {status}"
    if status == 401:
        remedy = "log in to the cluster again: the kubeconfig's credentials are refused"
        return Refusal(doing, "the cluster does not know who asks", remedy)
    if status == 403:
        return Forbidden(doing, *_forbidden(message))
    if status == 404:
        return NotFound(doing, *_missing(message))
    if status == 409:
        return Conflict(doing, message)
    if status == 429 or status >= 500:
        return NoAnswer(doing, f"the cluster can't answer now: {message}")
    return Refusal(doing, f"the cluster refuses it: {message}")


def _forbidden(message: str) -> tuple[str, str]:
    if match := _FORBIDDEN.search(message):
        kind = f"{match['resource']}.{match['group']}" if match["group"] else match["resource"]
        remedy = "give it the Role of `weighbridge render RECIPE --role`, or take another account"
        return f"this account may not {match['verb']} {kind} ({message})", remedy
    return f"the cluster forbids it: {message}", ""


def _missing(message: str) -> tuple[str, str]:
    if match := re.search(r'namespaces "([^"]+)" not found', message):
        return f"{_NO_NAMESPACE}{match[1]}", f"kubectl create namespace {match[1]}"
    if _is_unknown_kind(message):
        remedy = "install what brings it (the Gateway API for an HTTPRoute), or do without"
        return f"the cluster knows no such kind of object ({message})", remedy
    return message, ""


def _is_unknown_kind(message: str) -> bool:
    # The second is what a group of objects says that is not installed at all.
    return _NO_SUCH_RESOURCE in message or "404 page not found" in message
