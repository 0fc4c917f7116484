"""A server on the loopback that behaves as well, or as badly, as mirrors do, and remembers what it was asked for."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = b"the right bytes " * 64


class Server(ThreadingHTTPServer):
    """Serves `files`; the first part of a request's path says how."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"file.gz": CONTENT}
        self.requests: list[str] = []
        self.stopping = threading.Event()

    def mirror(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        behaviour, name = self.path.strip("/").split("/")
        self.server.requests.append(f"{behaviour}/{name}")
        content = self.server.files.get(name, b"")
        with suppress(OSError):  # the client has had enough, as it should
            getattr(self, f"be_{behaviour}")(content)

    def answer(self, code: int = 200, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def drip(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.server.stopping.wait(0.05):
                return

    def be_good(self, content: bytes) -> None:
        self.answer(Content_Length=len(content))
        self.wfile.write(content)

    def be_slow(self, content: bytes) -> None:
        self.server.stopping.wait(0.5)
        self.be_good(content)

    def be_missing(self, content: bytes) -> None:
        self.answer(404)

    def be_wrong(self, content: bytes) -> None:
        self.be_good(content[::-1])

    def be_truncated(self, content: bytes) -> None:
        self.answer(Content_Length=len(content))
        self.wfile.write(content[:100])

    def be_silent(self, content: bytes) -> None:
        self.server.stopping.wait(30)

    def be_dripping(self, content: bytes) -> None:
        self.answer(Content_Length=len(content))
        self.drip(content)

    def be_dripping_headers(self, content: bytes) -> None:
        self.drip(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 200)

    def be_endless(self, content: bytes) -> None:
        self.answer()
        while not self.server.stopping.is_set():
            self.wfile.write(b"more " * 1000)

    def be_redirected(self, content: bytes) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def be_moved(self, content: bytes) -> None:
        self.answer(302, Location="/good/" + self.path.split("/")[-1])

    def be_rude(self, content: bytes) -> None:
        self.wfile.write(b"\x1b[31mwhat?\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass
