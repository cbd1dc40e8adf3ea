"""Wait until nothing is under way in this pod: the preStop of a Bento's container.

It ends once clients have had time to learn that the pod ends and the last answer is out, or after
the longest time. It runs by any Python, without a package: `python -I pod_drain.py URL`.
"""

import argparse
import json
import time
import urllib.request
from typing import Any

_POLL_SECONDS = 0.5
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def drained(url: str, least: float, most: float) -> bool:
    """Wait, and return whether nothing was under way in the end.

    Args:
        url: base URL of the Bento in this pod.
        least: seconds in which new requests may still come.
        most: seconds after which what is under way is given up.
    """
    began = time.monotonic()
    # Clients that keep a connection would go on using this one, whatever they learn.
    _ask(url, "/drain", "POST")
    while (waited := time.monotonic() - began) < most:
        if waited >= least and not _in_flight(url):
            return True
        time.sleep(min(_POLL_SECONDS, most))
    return False


def _in_flight(url: str) -> int:
    # What does not answer any more has nothing under way that waiting would save.
    return int(_ask(url, "/requests", "GET").get("in_flight", 0))


def _ask(url: str, path: str, method: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}{path}", method=method)
    try:
        with _NO_PROXY.open(request, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except (OSError, ValueError):
        return {}


def _main() -> None:
    parser = argparse.ArgumentParser(description="Wait until nothing is under way.")
    parser.add_argument("url")
    parser.add_argument("--least", type=float, required=True)
    parser.add_argument("--most", type=float, required=True)
    given = parser.parse_args()
    drained(given.url, given.least, given.most)


if __name__ == "__main__":
    _main()
