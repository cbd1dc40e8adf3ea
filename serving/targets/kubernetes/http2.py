"""Requests with a body through the API server's proxy, by HTTP/2.

Over HTTP/1.1 the API server breaks some answers off: its Go server closes the body of a request as
the answer begins, while the proxy still reads it (golang/go#40747). On Kubernetes 1.36 that cut
0.3 to 2 % of streamed answers, of any pod; over HTTP/2 none.
"""

import ssl
from collections.abc import Mapping
from typing import Any

import httpx


class Answer:
    """An answer that is not read yet, as `http.client` and urllib3 give it."""

    def __init__(self, client: httpx.Client, response: httpx.Response) -> None:
        self._client, self._response = client, response
        self._pieces = response.iter_bytes()
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def read1(self, size: int = -1) -> bytes:
        """Return what has come, of any size; nothing at the end. Raises httpx.HTTPError."""
        return next(self._pieces, b"")

    def read(self) -> bytes:
        """Return the rest. Raises httpx.HTTPError."""
        return b"".join(self._pieces)

    def close(self) -> None:
        """Read no more of it."""
        self._response.close()
        self._client.close()


def ask(
    method: str,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout: float,
    configuration: Any,
) -> Answer:
    """Send a request on a connection of its own, and return the answer, not read yet.

    Args:
        method: such as POST.
        url: where to.
        body: what is sent.
        headers: with the login.
        timeout: seconds between two pieces of the answer; to connect it has five at most.
        configuration: of Kubernetes' client: whom to trust, and which certificate to show.

    Raises:
        httpx.HTTPError: the server can't be reached.
        OSError: a file of the configuration can't be read.
    """
    client = httpx.Client(http2=True, verify=_trust(configuration), trust_env=False)
    waits = httpx.Timeout(timeout, connect=min(timeout, 5.0))
    try:
        request = client.build_request(
            method, url, content=body, headers=dict(headers), timeout=waits
        )
        if name := configuration.tls_server_name:
            request.extensions["sni_hostname"] = name
        return Answer(client, client.send(request, stream=True))
    except BaseException:
        client.close()
        raise


def _trust(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data
    )
    if not configuration.verify_ssl or configuration.assert_hostname is False:
        context.check_hostname = False
    if not configuration.verify_ssl:
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
