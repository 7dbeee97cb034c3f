"""A server that knows just enough of W&B's interface for a run to begin online, and can stop at any time."""

import contextlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VIEWER = {"id": "u", "entity": "someone", "username": "someone", "email": "", "flags": "{}", "teams": {"edges": []}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.owner.connections.append(self.connection)

    def log_message(self, *args):
        """Nothing is printed."""

    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        self.reply({})
        if self.path == "/stop":
            self.server.owner.stop()

    def do_PUT(self):
        self.body()
        self.server.owner.seen.append(("PUT", self.path))
        self.reply({})

    def do_POST(self):
        body = self.body()
        if not self.path.endswith("/graphql"):
            self.server.owner.seen.append(("POST", self.path))
            return self.reply({})
        query = json.loads(body)
        name = re.search(r"(?:query|mutation)\s+(\w+)", query["query"]).group(1)
        values = query.get("variables") or {}
        self.server.owner.seen.append((name, values))
        answer = getattr(self.server.owner, name, None)
        if answer is None:
            return self.reply({"data": None, "errors": [{"message": f"{name} is unknown here"}]})
        return self.reply({"data": answer(values)})


class HTTP(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Who goes away is no error."""


class Server:
    """``with Server() as server:`` runs at ``server.url``; ``server.seen`` is what was asked; ``server.stop()`` ends it."""

    def __enter__(self):
        self.seen, self.connections = [], []
        self.http = HTTP(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.owner = True, self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def stop(self):
        """Answer no more."""
        self.http.shutdown()
        self.http.server_close()
        for connection in self.connections:  # that were kept open
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *args):
        self.stop()

    def Viewer(self, values):
        return {"viewer": VIEWER}

    def ServerFeaturesQuery(self, values):
        return {"serverInfo": {"features": []}}

    def RunResumeStatus(self, values):
        return {"model": None}

    def UpsertBucket(self, values):
        project = {"name": values["project"], "entity": {"name": "someone"}}
        bucket = {"id": "b", "name": values["name"], "displayName": values["displayName"] or values["name"]}
        return {"upsertBucket": {"bucket": bucket | {"project": project, "historyLineCount": 0}, "inserted": True}}

    def CreateRunFiles(self, values):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def GetDefaultEntity(self, values):
        return {"viewer": VIEWER}

    def GetProjects(self, values):
        node = {"__typename": "Project", "id": "p", "name": "dilated_seg", "entityName": "someone", "createdAt": ""}
        nodes = [{"node": node | {"isBenchmark": False, "user": None}}]
        return {"models": {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": nodes}}

    def ProjectInternalId(self, values):
        return {"project": {"internalId": "p"}}

    def UpsertView2(self, values):
        return {"upsertView": {"view": {"id": "view1", "name": values["name"]}, "inserted": True}}

    def upsertView(self, values):
        kept = {key: values[key] for key in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "p", "name": values["projectName"], "entityName": values["entityName"]}
        view = {"id": "view2", "project": project, "updatedAt": "2026-01-01T00:00:00"}
        return {"upsertView": {"view": kept | view, "inserted": True}}


class BlackHole:
    """A server that takes connections and never says a word."""

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return self

    def __exit__(self, *args):
        self.socket.close()
