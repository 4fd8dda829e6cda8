"""Fetching weights, against an HTTP server on the loopback address that misbehaves in every way we could think of."""

import dataclasses
import hashlib
import http.server
import logging
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path

import pytest

from anysam import fetch
from anysam.catalogue import Resource, Variant, WeightsFile, find_resource, find_variant
from anysam.errors import DownloadError, LicenceError, OptionError, WeightsError
from anysam.fetch import cache_path, fetch_resource, fetch_weights, file_sha256, home, locate, verify_weights

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclasses.dataclass
class Server:
    """What the server does with requests, and what it has been asked."""

    address: str = ""
    body: bytes = BODY
    ranges: bool = True  # honours Range
    statuses: list[int] = dataclasses.field(default_factory=list)  # sent, one a request, before it behaves
    cut: list[int] = dataclasses.field(default_factory=list)  # breaks off after so many bytes, one entry a request
    stall: float = 0.0  # sleeps this long where it would break off
    chunk: int = 1 << 20
    delay: float = 0.0  # sleeps this long after each chunk
    content_type: str = "application/octet-stream"
    length: bool = True  # says Content-Length
    shift: int = 0  # continues at another byte than asked
    gate: threading.Event | None = None  # waits for it after the first chunk
    redirect: str = ""  # the path that is redirected to the file
    asked: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)  # (path, Range)


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            server.asked.append((self.path, self.headers.get("Range")))
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            if server.redirect and self.path == server.redirect:
                self.send_response(302)
                self.send_header("Location", f"{server.address}/moved.pth")
                self.end_headers()
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if server.ranges else 0
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                first = start + server.shift
                self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{len(server.body)}")
            if server.length:
                self.send_header("Content-Length", str(len(server.body) - start))
            self.send_header("Content-Type", server.content_type)
            self.end_headers()
            self._send(server.body[start:])

        def _send(self, body: bytes) -> None:
            limit = server.cut.pop(0) if server.cut else len(body)
            try:
                for i in range(0, min(limit, len(body)), server.chunk):
                    self.wfile.write(body[i : min(i + server.chunk, limit)])
                    time.sleep(server.delay)
                    if server.gate is not None and not server.gate.wait(10):
                        return  # nobody opened it: the test has failed, but must end
            except ConnectionError:
                return  # the client was killed
            if limit < len(body):
                time.sleep(server.stall)

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server that ANYSAM_MIRROR points to."""
    state = Server()
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setenv("ANYSAM_MIRROR", state.address)
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANYSAM_MIRROR", raising=False)
    monkeypatch.delenv("ANYSAM_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy of the machine must not get in between


def variant_of(sha256: str | None = SHA256, size: int | None = len(BODY), url: str | None = None) -> Variant:
    file = WeightsFile("tiny.pth", url=url or "https://weights.invalid/tiny.pth", sha256=sha256, bytes=size)
    return dataclasses.replace(find_variant("sam_vit_b"), name="tiny", file=file)


def get(variant: Variant, attempts: int = 3, timeout: float = 5.0) -> Path:
    return fetch_weights(variant, timeout=timeout, attempts=attempts, pause=0.0)


def part_of(variant: Variant) -> Path:
    target = cache_path(variant)
    return target.with_name(target.name + ".part")


def leave_part(variant: Variant, content: bytes) -> None:
    part_of(variant).parent.mkdir(parents=True, exist_ok=True)
    part_of(variant).write_bytes(content)


# --- where things are -------------------------------------------------------------------------------------------------


def test_home_is_the_variable_or_the_platform_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home() == tmp_path / "home"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("ANYSAM_HOME", "~/models")
    assert home() == tmp_path / "me" / "models"
    monkeypatch.setenv("ANYSAM_HOME", "")
    assert home().name.lower() == "anysam" or home().parent.name.lower() == "anysam"
    assert not (tmp_path / "me").exists()  # asking for the folder does not make it


def test_the_package_file_comes_before_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variant = variant_of(sha256=None)
    assert locate(variant) is None
    cache_path(variant).parent.mkdir(parents=True)
    cache_path(variant).write_bytes(BODY)
    assert locate(variant) == cache_path(variant)
    package = tmp_path / "package"
    (package / "weights").mkdir(parents=True)
    monkeypatch.setattr(fetch, "__file__", str(package / "fetch.py"))
    assert locate(variant) == cache_path(variant)
    (package / "weights" / "tiny.safetensors").write_bytes(b"x")
    assert locate(variant) == package / "weights" / "tiny.safetensors" == fetch_weights(variant)


def test_a_missing_package_file_says_to_install_again(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(fetch, "embedded_path", lambda variant: None)
    with pytest.raises(DownloadError, match=r"lacks weights/anysam_lite\.safetensors; install the package again\.$"):
        fetch_weights(find_variant("anysam_lite"))
    assert server.asked == []


# --- downloads that succeed -------------------------------------------------------------------------------------------


def test_a_download_is_complete_and_reports_progress(server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch_weights(variant_of(), lambda done, total: seen.append((done, total)))
    assert path == locate(variant_of()) and path.read_bytes() == BODY
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not part_of(variant_of()).exists()
    assert server.asked == [("/tiny.pth", None)]
    assert fetch_weights(variant_of()) == path
    assert len(server.asked) == 1  # what is here is not fetched again


def test_a_slow_server_is_waited_for_as_long_as_data_comes(server: Server) -> None:
    server.chunk, server.delay = 20_000, 0.03  # 15 pieces: longer in all than the timeout, each piece well within it
    counts: list[int] = []
    start = time.monotonic()
    path = fetch_weights(variant_of(), lambda done, total: counts.append(done), timeout=0.3)
    assert time.monotonic() - start > 0.3
    assert path.read_bytes() == BODY and len(server.asked) == 1
    assert len(counts) > 5  # progress moves while the data comes


@pytest.mark.parametrize("suffix", ["", "/", "/some/folder/"])
def test_the_file_name_is_appended_to_the_mirror(server: Server, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("ANYSAM_MIRROR", server.address + suffix)
    get(variant_of())
    assert server.asked[0][0] == suffix.rstrip("/") + "/tiny.pth"


def test_without_a_mirror_the_published_address_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYSAM_MIRROR")
    get(variant_of(url=server.address + "/published/tiny.pth"))
    assert server.asked == [("/published/tiny.pth", None)]


def test_redirects_are_followed_but_not_from_https_to_http(server: Server) -> None:
    server.redirect = "/tiny.pth"
    assert get(variant_of()).read_bytes() == BODY
    assert [path for path, _ in server.asked] == ["/tiny.pth", "/moved.pth"]
    secure = urllib.request.Request("https://weights.invalid/tiny.pth")
    with pytest.raises(urllib.error.HTTPError, match="insecure"):
        fetch._NoDowngrade().redirect_request(secure, None, 302, "Found", Message(), "http://weights.invalid/tiny.pth")


def test_a_server_that_does_not_say_the_length_is_believed_by_hash(server: Server) -> None:
    server.length = False
    assert get(variant_of(size=None)).read_bytes() == BODY


# --- broken connections and resuming ----------------------------------------------------------------------------------


def test_a_truncated_answer_is_continued_where_it_broke(server: Server) -> None:
    server.cut = [100_000, 50_000]
    assert get(variant_of()).read_bytes() == BODY
    assert server.asked == [("/tiny.pth", None), ("/tiny.pth", "bytes=100000-"), ("/tiny.pth", "bytes=150000-")]


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_is_kept(server: Server) -> None:
    server.cut = [1000] + [0] * 20
    with pytest.raises(DownloadError) as caught:
        get(variant_of(), attempts=3)
    assert "the connection ended after 1000 of 300000 bytes (3 tries)" in str(caught.value)
    assert "the next try continues after the 1000 bytes" in str(caught.value)
    assert len(server.asked) == 3
    assert part_of(variant_of()).read_bytes() == BODY[:1000] and not cache_path(variant_of()).exists()
    server.cut = []
    assert get(variant_of()).read_bytes() == BODY
    assert server.asked[-1][1] == "bytes=1000-"


def test_a_silent_server_is_given_up_after_the_timeout(server: Server) -> None:
    server.cut, server.stall = [1000, 0], 0.6
    with pytest.raises(DownloadError, match=r"no data came for 0\.2 seconds \(2 tries\)"):
        get(variant_of(), attempts=2, timeout=0.2)


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.statuses = [503, 429]
    assert get(variant_of()).read_bytes() == BODY
    assert len(server.asked) == 3


def test_a_server_that_ignores_range_sends_everything_again(server: Server) -> None:
    leave_part(variant_of(), BODY[:1234])
    server.ranges = False
    assert get(variant_of()).read_bytes() == BODY
    assert server.asked == [("/tiny.pth", "bytes=1234-")]


def test_a_server_that_ignores_range_and_breaks_off_is_given_up(server: Server) -> None:
    server.ranges, server.cut = False, [500, 700] * 50  # never further than 700, and not steadily
    with pytest.raises(DownloadError, match="of 300000 bytes"):
        get(variant_of(), attempts=4)
    assert len(server.asked) < 10


def test_a_server_that_continues_elsewhere_is_asked_for_everything(server: Server) -> None:
    leave_part(variant_of(), BODY[:1234])
    server.shift = 7
    assert get(variant_of()).read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["bytes=1234-", None]


def test_a_part_of_another_file_is_replaced(server: Server) -> None:
    leave_part(variant_of(), b"?" * 1234)
    assert get(variant_of()).read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["bytes=1234-", None]


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_part_that_is_too_long_is_replaced(server: Server, size: int | None) -> None:
    leave_part(variant_of(), BODY + b"more")
    assert get(variant_of(size=size)).read_bytes() == BODY


def test_a_complete_part_is_moved_into_place_without_connecting(server: Server) -> None:
    leave_part(variant_of(), BODY)
    assert get(variant_of()).read_bytes() == BODY
    assert server.asked == []


_CLIENT = """
import dataclasses, sys
from anysam.catalogue import WeightsFile, find_variant
from anysam.fetch import fetch_weights
file = WeightsFile("tiny.pth", url="https://weights.invalid/tiny.pth", sha256=sys.argv[1], bytes=int(sys.argv[2]))
print(fetch_weights(dataclasses.replace(find_variant("sam_vit_b"), name="tiny", file=file)))
"""


def start_client() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CLIENT, SHA256, str(len(BODY))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_killed_process_leaves_a_part_that_the_next_one_continues(server: Server) -> None:
    server.chunk, server.delay = 10_000, 0.1
    process = start_client()
    part = part_of(variant_of())
    try:
        wait_for(lambda: part.exists() and part.stat().st_size >= 20_000)
    finally:
        process.kill()
        process.communicate()
    arrived = part.stat().st_size
    assert 20_000 <= arrived < len(BODY) and not cache_path(variant_of()).exists()
    server.delay = 0.0
    assert get(variant_of()).read_bytes() == BODY  # the lock of the killed process does not stand in the way
    assert server.asked[-1][1] == f"bytes={arrived}-"


def test_two_processes_at_once_download_once(server: Server) -> None:
    server.chunk, server.gate = 10_000, threading.Event()
    first = start_client()
    wait_for(lambda: bool(server.asked))
    second = start_client()
    try:
        assert second.stderr is not None
        said = second.stderr.readline()  # comes while the first is in the middle of its download
        server.gate.set()
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    finally:
        first.kill()
        second.kill()
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert said == "Waiting for another process that is downloading tiny.pth.\n"
    assert [out.strip() for out, _ in outputs] == [str(cache_path(variant_of()))] * 2
    assert cache_path(variant_of()).read_bytes() == BODY
    assert server.asked == [("/tiny.pth", None)]


# --- downloads that must fail -----------------------------------------------------------------------------------------


def test_a_wrong_hash_is_refused_with_both_hashes_and_deletes_nothing(server: Server) -> None:
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    wrong = hashlib.sha256(server.body).hexdigest()
    neighbour = cache_path(variant_of()).parent / "mine.pth"
    neighbour.parent.mkdir(parents=True)
    neighbour.write_bytes(b"mine")
    with pytest.raises(DownloadError) as caught:
        get(variant_of())
    assert wrong in str(caught.value) and SHA256 in str(caught.value)
    assert neighbour.read_bytes() == b"mine"
    assert locate(variant_of()) is None and not part_of(variant_of()).exists()
    server.body = BODY  # a mended server is not refused because of what it sent before
    assert get(variant_of()).read_bytes() == BODY


def test_a_wrong_file_in_the_cache_is_refused_with_both_hashes_and_stays(server: Server) -> None:
    target = cache_path(variant_of())
    target.parent.mkdir(parents=True)
    target.write_bytes(b"mine")
    with pytest.raises(WeightsError) as caught:
        get(variant_of())
    assert hashlib.sha256(b"mine").hexdigest() in str(caught.value) and SHA256 in str(caught.value)
    assert target.read_bytes() == b"mine" and server.asked == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_missing_file_is_reported_at_once(server: Server, status: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(DownloadError) as caught:
        get(variant_of())
    assert f"from {server.address}/tiny.pth: the server answered {status}" in str(caught.value)
    assert "ANYSAM_MIRROR" in str(caught.value) and str(cache_path(variant_of()).parent) in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_instead_of_weights_is_recognised(server: Server, content_type: str) -> None:
    server.body, server.content_type = b"\n<!DOCTYPE html><html><body>Sign in</body></html>", content_type
    with pytest.raises(DownloadError, match="a web page came instead of the file"):
        get(variant_of(size=None))
    assert locate(variant_of()) is None and not (
        part_of(variant_of()).exists() and part_of(variant_of()).stat().st_size
    )


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(server: Server) -> None:
    server.body = BODY * 2
    with pytest.raises(DownloadError, match="has 600000 bytes, expected 300000"):
        get(variant_of())
    assert not part_of(variant_of()).exists()


def test_an_endless_answer_is_cut_off(server: Server) -> None:
    server.body, server.length = BODY * 2, False
    with pytest.raises(DownloadError, match="more than the expected 300000 bytes came"):
        get(variant_of())


def test_nothing_listening_is_one_sentence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    monkeypatch.setenv("ANYSAM_MIRROR", f"http://127.0.0.1:{port}")
    with pytest.raises(DownloadError, match=r"the connection failed \(.+\) \(2 tries\)\.$"):
        get(variant_of(), attempts=2)


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_offline_never_connects(server: Server, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ANYSAM_OFFLINE", value)
    with pytest.raises(DownloadError) as caught:
        get(variant_of())
    assert str(cache_path(variant_of())) in str(caught.value) and "ANYSAM_OFFLINE" in str(caught.value)
    assert server.asked == []
    cache_path(variant_of()).parent.mkdir(parents=True, exist_ok=True)
    cache_path(variant_of()).write_bytes(BODY)
    assert get(variant_of()) == cache_path(variant_of())


@pytest.mark.parametrize("value", ["0", "", "false"])
def test_offline_can_be_switched_off(server: Server, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ANYSAM_OFFLINE", value)
    assert get(variant_of()).read_bytes() == BODY


@pytest.mark.parametrize(
    "mirror",
    [
        "weights.example",
        "ftp://weights.example",
        "file:///etc",
        "http://",
        "http://host:port",
        "http://[::1",
        "http://h?a=b",
    ]
    + ["http://" + "a" * 70 + ".example"],
)
def test_an_unusable_mirror_is_named(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("ANYSAM_MIRROR", mirror)
    with pytest.raises(DownloadError, match="ANYSAM_MIRROR must be an http:// or https:// address") as caught:
        get(variant_of())
    assert repr(mirror) in str(caught.value)


def test_a_password_in_the_mirror_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYSAM_MIRROR", "https://me:secret@weights.example/")
    with pytest.raises(DownloadError, match="without user name") as caught:
        get(variant_of())
    assert "secret" not in str(caught.value)


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_too_little_space_is_said_before_the_download(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: _Usage(free=299_999))
    with pytest.raises(DownloadError, match=r"0 MB are still needed, but only 0 MB are free in .*ANYSAM_HOME"):
        get(variant_of())
    assert not part_of(variant_of()).exists()
    leave_part(variant_of(), BODY[:2])  # what is here already needs no space
    assert get(variant_of()).read_bytes() == BODY


@dataclasses.dataclass
class _Usage:
    free: int


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device that is always full")
def test_a_disk_that_fills_up_is_one_sentence(server: Server) -> None:
    part = part_of(variant_of())
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(
        DownloadError, match=r"cannot write .*tiny\.pth\.part: No space left on device; free some space"
    ):
        get(variant_of())
    assert locate(variant_of()) is None


def test_an_unusable_home_is_one_sentence(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"Cannot use the weights folder .*file/weights: .*; set ANYSAM_HOME"):
        get(variant_of())
    assert server.asked == []


# --- files without a published hash -----------------------------------------------------------------------------------


def test_an_unpublished_hash_is_recorded_said_and_checked_later(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    variant = variant_of(sha256=None)
    with caplog.at_level(logging.WARNING):
        path = get(variant)
    assert SHA256 in caplog.text and "No hash is published for tiny.pth" in caplog.text
    # the form that `sha256sum --check` reads: hash, two spaces, name
    assert (path.parent / "tiny.pth.sha256").read_text() == f"{SHA256}  tiny.pth\n"
    assert verify_weights(variant, path) == SHA256
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=f"expected {SHA256}"):
        verify_weights(variant, path)
    (path.parent / "tiny.pth.sha256").write_text("not a hash")
    with pytest.raises(WeightsError, match="does not hold a sha256"):
        verify_weights(variant, path)


def test_without_a_published_hash_an_old_part_is_not_trusted(server: Server) -> None:
    leave_part(variant_of(), b"?" * 1234)
    assert get(variant_of(sha256=None)).read_bytes() == BODY
    assert server.asked == [("/tiny.pth", None)]


def test_the_hash_is_that_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    assert file_sha256(tmp_path / "file") == SHA256
    with pytest.raises(WeightsError, match="Cannot read the weights file .*nothing"):
        file_sha256(tmp_path / "nothing")


# --- files beside weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Resource:
    """A vocabulary that the server has, in a table with one that ships and one without a hash."""
    file = WeightsFile("words.pkl", url="https://words.invalid/words.pkl", sha256=SHA256, bytes=len(BODY))
    row = dataclasses.replace(find_resource("coco_80"), name="words", file=file)
    free = dataclasses.replace(row, name="free", file=WeightsFile("free.model", url="https://words.invalid/free.model"))
    free = dataclasses.replace(free, kind="tokenizer", licence="LLaMA (not stated)")
    for module in ("catalogue", "fetch"):
        monkeypatch.setattr(f"anysam.{module}.RESOURCES", (row, free, find_resource("everyday")))
    monkeypatch.setattr("anysam.licences._said", set())
    return row


def test_a_resource_is_fetched_once_and_checked(server: Server, words: Resource, tmp_path: Path) -> None:
    seen: list[int] = []
    path = fetch_resource("words", lambda done, total: seen.append(done))
    assert path == tmp_path / "home" / "resources" / "words.pkl" == locate(words)
    assert path.read_bytes() == BODY and seen[-1] == len(BODY)
    assert fetch_resource("words") == path and server.asked == [("/words.pkl", None)]
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match="not the published file of words"):
        fetch_resource("words")


def test_another_file_than_the_published_resource_is_not_kept(server: Server, words: Resource) -> None:
    server.body = BODY[::-1]
    with pytest.raises(DownloadError, match="The vocabulary words could not be fetched.*sha256"):
        fetch_resource("words")
    assert locate(words) is None


def test_a_resource_offline_says_where_it_would_be(words: Resource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"The vocabulary words is not at .*words\.pkl and ANYSAM_OFFLINE forbids"):
        fetch_resource("words")


def test_a_resource_in_the_package_needs_no_download(
    words: Resource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    assert fetch_resource("everyday").read_text(encoding="utf-8").startswith("#")
    monkeypatch.setattr(fetch, "__file__", str(tmp_path / "fetch.py"))
    with pytest.raises(DownloadError, match=r"ships inside the package.*lacks everyday\.txt; install"):
        fetch_resource("everyday")


def test_an_own_file_is_taken_as_it_is(words: Resource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_bytes(b"mine")
    for place in ("plain", "./plain", str(tmp_path / "plain"), tmp_path / "plain", Path("plain")):
        assert fetch_resource(place, allow="mit") == Path(place)
    Path("words").write_bytes(b"mine")  # the table's name comes first; a Path is always a file
    assert fetch_resource(Path("words")) == Path("words")
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    with pytest.raises(DownloadError):
        fetch_resource("words")


@pytest.mark.parametrize("place", ["no.pkl", "no/where", "~/no.pkl", "x" * 300 + ".pkl", "a\0b.pkl"])
def test_a_missing_own_file_is_said_with_the_names_that_there_are(words: Resource, place: str) -> None:
    with pytest.raises(OptionError, match="There is no file .*or a name: words, everyday"):
        fetch_resource(place, kinds=("vocabulary", "names"))


def test_an_unknown_resource_is_answered_with_the_nearest(words: Resource) -> None:
    with pytest.raises(OptionError, match="no vocabulary called 'wordz'; did you mean words.*path of a file"):
        fetch_resource("wordz", kinds=("vocabulary",))
    with pytest.raises(OptionError, match="no file called 'zzz'; known are words, free, everyday"):
        fetch_resource("zzz")
    with pytest.raises(OptionError, match="no vocabulary called 'free', but there is a tokenizer of that name"):
        fetch_resource("free", kinds=("vocabulary",))
    with pytest.raises(OptionError):
        fetch_resource("x" * 5000)


def test_a_resources_licence_is_asked_for_before_it_is_fetched(
    server: Server, words: Resource, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LicenceError, match=r"The tokenizer free is under.*--allow mit,llama-not-stated"):
        fetch_resource("free", allow="mit")
    assert server.asked == []
    path = fetch_resource("free", allow="mit,llama-not-stated")
    error = capsys.readouterr().err
    assert "the tokenizer free is under LLaMA (not stated)" in error and error.count("\n") == 1
    assert fetch_resource("free") == path and capsys.readouterr().err == ""
    assert path.with_name("free.model.sha256").read_text() == f"{SHA256}  free.model\n"


def test_a_published_file_elsewhere_is_under_its_licence(words: Resource, tmp_path: Path) -> None:
    (tmp_path / "renamed.bin").write_bytes(BODY)
    with pytest.raises(LicenceError, match="The vocabulary words is under the licence 'Apache-2.0'"):
        fetch_resource(tmp_path / "renamed.bin", allow="mit")
    assert fetch_resource(tmp_path / "renamed.bin", allow="apache-2.0") == tmp_path / "renamed.bin"
    (tmp_path / "renamed.bin").write_bytes(BODY[::-1])  # of the same size, but another
    assert fetch_resource(tmp_path / "renamed.bin", allow="mit") == tmp_path / "renamed.bin"
