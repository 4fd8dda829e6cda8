"""The Python client of the server: what it refuses to begin with, and what it says when something else answers."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from anysam import Prompt
from anysam.errors import OptionError
from anysam.serve.client import Client, ServerError


@pytest.mark.parametrize(
    "given",
    [
        {"url": "example.org"},
        {"url": "http://[::1"},
        {"url": "http://127.0.0.1:port"},
        {"token": "s3cret\n"},
        {"token": "s3crét"},
        {"seconds": 0},
        {"seconds": -1.0},
    ],
    ids=str,
)
def test_a_client_that_can_never_ask_is_refused(given):
    with pytest.raises(OptionError) as caught:
        Client(**{"url": "http://127.0.0.1:8000"} | given)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize(
    "status, body", [(200, b"<html>"), (200, b"{}"), (200, b"[1]"), (302, b""), (502, b"<html>")], ids=str
)
def test_a_client_says_that_something_else_answers(status, body):
    class Another(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Another) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{other.server_port}") as client:
                for ask in (
                    lambda: client.add_image(b"image"),
                    lambda: client.wait("0" * 32),
                    lambda: client.predict("0" * 32, [Prompt(points=[[1, 1]])]),
                    lambda: client.everything("0" * 32),
                ):
                    with pytest.raises(ServerError) as caught:
                        ask()
                    assert caught.value.status == (0 if status == 200 else status)
        finally:
            other.shutdown()
            thread.join()
