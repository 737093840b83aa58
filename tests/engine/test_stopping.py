"""A server that does not end with Ctrl-C fails its test, which says where it hangs."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.engine import server
from tests.engine.server import running

SERVER = """
import http.server, signal, subprocess, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object": "list", "data": []}')

def hang():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(flush=True)
    time.sleep(600)

kind, _, port = sys.argv[1:]
if kind == "child":
    hang()
if kind == "that leaves a child":
    child = [sys.executable, __file__, "child", "--port", port]
    subprocess.Popen(child, stdout=subprocess.PIPE).stdout.readline()
handler = lambda *_: sys.exit(1 if kind == "that fails" else 0)
signal.signal(signal.SIGINT, signal.SIG_IGN if kind == "that hangs" else handler)
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("that ends", None),
        ("that hangs", "did not end within 1 s:(?s:.)* in serve_forever"),
        ("that leaves a child", "did not end within 1 s:(?s:.)* in hang"),
        ("that fails", "exit status 1: "),
    ],
)
def test_a_server(
    kind: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("that hangs", "that leaves a child"):  # the others may take longer when it is busy
        monkeypatch.setattr(server, "STOP_SECONDS", 1)
    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, str(tmp_path / "server.py"), kind]
    failure = pytest.raises(AssertionError, match=said) if said else nullcontext()
    with failure, running(command, tmp_path / "log") as one:
        assert one.alive()
    assert not one.alive()
