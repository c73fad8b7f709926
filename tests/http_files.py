"""A real HTTP server for tests: files with byte ranges, and faults on order."""

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """`files`: path -> bytes. `faults`: path -> what its next GETs do instead, one item a GET: a status, "stall", "cut"
    (the connection ends in mid-body) or "whole" (ranges are not known). `headers`: further ones of every answer.
    `delay`: seconds before each answer. `ranges`: what was asked for. `active`, `most_active`: GETs at a time."""

    def __init__(self):
        self.files, self.faults, self.headers, self.ranges = {}, {}, {}, []
        self.active = self.most_active = 0
        self.delay = 0.0
        self.lock, self.release = threading.Lock(), threading.Event()


@contextmanager
def serve():
    """Yields (Files, base URL)."""
    state = Files()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            with state.lock:
                state.active += 1
                state.most_active = max(state.active, state.most_active)
            time.sleep(state.delay)
            try:
                self.answer(body=True)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with state.lock:
                    state.active -= 1

        def answer(self, body):
            path = self.path.strip("/")
            faults = state.faults.get(path, [])
            fault = (faults.pop(0) if len(faults) > 1 else faults[0]) if faults and body else None
            if isinstance(fault, int) or path not in state.files:
                return self.head(fault or 404, 0)
            wanted = "" if fault == "whole" else self.headers.get("Range", "")
            data, asked = state.files[path], re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            first, last = (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
            part = data[first : last + 1]
            self.head(206 if asked else 200, len(part), f"bytes {first}-{first + len(part) - 1}/{len(data)}" if asked else None)
            if not body:
                return
            state.ranges.append((path, first, first + len(part)))
            if fault == "stall":
                state.release.wait(30)
            if fault in ("stall", "cut"):
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            self.wfile.write(part)

        def head(self, status, length, content_range=None):
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            for name, value in state.headers.items():
                self.send_header(name, value)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
