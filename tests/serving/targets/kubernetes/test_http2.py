"""Requests with a body go by HTTP/2: over HTTP/1.1 an API server breaks answers off."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from kubernetes import client

from tests.waiting import until
from weighbridge.core.errors import Unavailable
from weighbridge.serving.targets.kubernetes.api import Api


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of `cluster.test` that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "tls.crt", folder / "tls.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    name = ["-subj", "/CN=cluster.test", "-addext", "subjectAltName=DNS:cluster.test"]
    to = ["-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command.split(), *name, *to], check=True, capture_output=True)
    return files


class Server:
    """Answers each request, by HTTP/2 alone, with its own body in two pieces."""

    def __init__(self, certificate: tuple[Path, Path]) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(*certificate)
        self._context.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.open = 0
        """Connections that clients have not closed."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.open += 1
            try:
                with self._context.wrap_socket(plain, server_side=True) as encrypted:
                    self._serve(encrypted)
            except OSError:
                pass
            finally:
                self.open -= 1

    def _serve(self, encrypted: ssl.SSLSocket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        encrypted.sendall(connection.data_to_send())
        body = b""
        while data := encrypted.recv(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                if isinstance(event, h2.events.StreamEnded):
                    connection.send_headers(event.stream_id, [(":status", "201"), ("x-is", "h2")])
                    connection.send_data(event.stream_id, body[:3])
                    connection.send_data(event.stream_id, body[3:], end_stream=True)
            encrypted.sendall(connection.data_to_send())


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    server = Server(certificate)
    yield server
    server.close()


def ask(server: Server, **configured: Any) -> Any:
    """The answer, through the API of a cluster that the kubeconfig says this of."""
    configuration = client.Configuration()
    configuration.host, configuration.retries = server.url, False
    for name, value in configured.items():
        setattr(configuration, name, value)
    return Api(client.ApiClient(configuration)).open("POST", "/proxy", b"one two", {}, 10.0)


def test_a_body_goes_by_http2_and_the_answer_is_read_as_it_comes(
    server: Server, certificate: tuple[Path, Path]
) -> None:
    trusted = {"ssl_ca_cert": str(certificate[0]), "tls_server_name": "cluster.test"}
    answer = ask(server, **trusted)
    assert (answer.status, answer.headers["x-is"]) == (201, "h2")
    first = answer.read1(1 << 16)
    assert b"one two".startswith(first)
    assert first + answer.read() == b"one two"
    assert answer.read1() == b""
    answer.close()
    until(lambda: server.open == 0)


def test_who_shows_no_certificate_that_the_kubeconfig_trusts_is_not_asked(
    server: Server, certificate: tuple[Path, Path]
) -> None:
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server)
    # Trusted, and of another name than the address.
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server, ssl_ca_cert=str(certificate[0]))
    for told in ({"verify_ssl": False}, {"ca_cert_data": certificate[0].read_text()}):
        answer = ask(server, **told, assert_hostname=False)
        assert answer.read() == b"one two"
        answer.close()
