"""A local HTTP server of a directory that serves parts of files and counts the bytes that it sends.

It lists directories, or answers as the Hugging Face Hub does for the files of one dataset.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Handler(BaseHTTPRequestHandler):
    """Serves files below ``root``; ``server.sent`` has the bytes of each file's content."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, root, **kwargs):
        self.root = root
        super().__init__(*args, **kwargs)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.root / self.path.lstrip("/")
        if path.is_dir():
            names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())
            links = "".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>\n' for name in names)
            return self.reply(200, links.encode(), body, "text/html")
        if not path.is_file():
            return self.reply(404, b"", body)
        content, wanted = path.read_bytes(), re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        extra = {"ETag": f'"{path.stat().st_mtime_ns}"', "Accept-Ranges": "bytes" if self.server.ranges else "none"}
        if not wanted or not self.server.ranges:
            return self.reply(200, content, body, **extra)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        extra["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.reply(206, content[first : last + 1], body, **extra)

    def reply(self, status, content, body, kind="application/octet-stream", **headers):
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(content)
            if kind == "application/octet-stream":
                self.server.sent[self.path] += len(content)

    def log_message(self, *args):
        pass


class DroppingHandler(Handler):
    """Closes the connection, without an answer, at the first ``drops`` requests of each path that ends in ``dropped``."""

    drops, dropped = 0, ""

    def do_GET(self, body=True):
        self.server.requests[self.path] += 1
        if self.path.endswith(self.dropped) and self.server.requests[self.path] <= self.drops:
            self.close_connection = True
        else:
            super().do_GET(body)


REPO, COMMIT = "owner/name", "0123456789abcdef0123456789abcdef01234567"

REVISIONS = ("", "/revision/main", f"/revision/{COMMIT}")


class HubHandler(Handler):
    """Answers what `huggingface_hub` asks for one dataset, whose only commit is ``COMMIT``."""

    def do_GET(self, body=True):
        if not self.path.startswith("/api/"):
            self.path = self.path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}")
            return super().do_GET(body)
        self.server.requests[self.path] += 1
        if self.path.partition("?")[0] in [
            f"/api/datasets/{REPO}{end}" for end in ("", "/revision/main", f"/revision/{COMMIT}")
        ]:
            return self.answer({"id": REPO, "sha": COMMIT, "siblings": []})
        if tree := re.match(rf"/api/datasets/{REPO}/tree/{COMMIT}/?([^?]*)", self.path):
            inside = sorted((self.root / tree[1]).glob("**/*" if "recursive=true" in self.path.lower() else "*"))
            return self.answer([self.entry(path) for path in inside])
        self.reply(404, b"{}", body, "application/json", X_Error_Code="RepoNotFound")

    def do_POST(self):
        self.server.requests[self.path] += 1
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        paths = [self.root / name for name in ([wanted] if isinstance(wanted, str) else wanted)]
        self.answer([self.entry(path) for path in paths if path.exists()])

    def entry(self, path):
        state = {"path": str(path.relative_to(self.root)), "oid": "0" * 40}
        return state | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})

    def answer(self, content):
        self.reply(200, json.dumps(content).encode(), True, "application/json")


@contextmanager
def serve(root: Path, ranges: bool = True, handler: type[Handler] = Handler) -> Iterator[tuple[str, Counter]]:
    """Serve a directory; gives its URL and the bytes sent of each file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, root=root))
    server.requests = Counter()
    server.sent, server.ranges, server.daemon_threads = Counter(), ranges, True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
