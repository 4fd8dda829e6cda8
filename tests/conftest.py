"""For all tests: a home of their own, and no network beyond this machine."""

import ipaddress
import os
import signal
import socket
from contextlib import ExitStack

import pytest

_LOCAL_NAMES = ("localhost", "", None)
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _is_local(host):
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(address):
    # A tuple is an internet address; anything else is a Unix socket.
    if isinstance(address, tuple) and not _is_local(address[0]):
        pytest.fail(f"a test tried to connect to {address[0]}; tests use loopback only")


def _guarded_connect(self, address):
    _check(address)
    return _connect(self, address)


def _guarded_connect_ex(self, address):
    _check(address)
    return _connect_ex(self, address)


def _guarded_getaddrinfo(host, *arguments, **options):
    if not _is_local(host):
        pytest.fail(f"a test tried to look up {host}; tests use loopback only")
    return _getaddrinfo(host, *arguments, **options)


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Connections to anything but this machine fail the test; pytest.fail is no Exception that code could swallow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded_connect)
        patch.setattr(socket.socket, "connect_ex", _guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", _guarded_getaddrinfo)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            # For the processes that tests start: a proxy that nobody listens at.
            patch.setenv(name, "http://127.0.0.1:9")
            patch.delenv(name.upper(), raising=False)
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        patch.delenv("NO_PROXY", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C interrupts, as at a terminal; a shell that starts tests in the background (`make test &`) turns it off."""
    earlier = signal.getsignal(signal.SIGINT)
    if earlier == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.fixture(autouse=True, scope="session")
def temporary_home(tmp_path_factory):
    """The user's own cache and settings are neither read nor written, in this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYSAM_HOME", str(tmp_path_factory.mktemp("anysam-home")))
        for name in ("ANYSAM_MIRROR", "ANYSAM_OFFLINE", "ANYSAM_ALLOW"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def page_address(tmp_path_factory):
    """Says the address of an `anysam app` that several tests of the page use; started when it is first asked for."""
    from page_server import serving, shared_folder

    found = []
    with ExitStack() as stack:

        def address():
            if not found:
                folder = shared_folder(tmp_path_factory) / f"server-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
                folder.mkdir()
                found.append(stack.enter_context(serving(folder)))
            return found[0]

        yield address
