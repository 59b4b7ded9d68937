"""A local stand-in for the hub: the endpoints that creating, pushing and loading a model ask, over plain HTTP.

Files arrive as they do on the hub without Xet: small ones within the commit, large ones and weights by LFS, each
checked against its checksum and size. It remembers every commit, can refuse, and can keep an upload waiting.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

USER, TOKEN = "tester", "hf_local_token"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass
class Commit:
    """One push.

    Args:
        message (`str`): its message.
        files (`dict[str, bytes]`): what it brought.
    """

    message: str
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Repository:
    """A model repository with one branch.

    Args:
        private (`bool`): as it was asked for.
        commits (`list[Commit]`): oldest first.
    """

    private: bool = False
    commits: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The branch as it is now."""
        return {name: data for commit in self.commits for name, data in commit.files.items()}

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


class HubServer:
    """Listens on 127.0.0.1 until it is closed.

    Args:
        lfs_bytes (`int`): files of at least so many bytes come by LFS.
    """

    def __init__(self, lfs_bytes: int = 4096) -> None:
        self.lfs_bytes = lfs_bytes
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.refusals: list[tuple[re.Pattern[str], int]] = []
        self.faults: list[str] = []
        """What a real hub would not have accepted."""
        self.held: set[str] = set()
        self.waiting, self.released = Event(), Event()
        self._lock = Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            server_version, protocol_version = "Stand-in", "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer("GET")

            def do_HEAD(self) -> None:
                self.answer("HEAD")

            def do_POST(self) -> None:
                self.answer("POST")

            def do_PUT(self) -> None:
                self.answer("PUT")

            def answer(self, method: str) -> None:
                body, path = self.body(), unquote(urlsplit(self.path).path)
                refused = next((status for pattern, status in hub.refusals if pattern.search(path)), None)
                is_signed = path.startswith("/lfs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if refused is not None:
                    self.reply(refused, {"error": f"refused with {refused}, as told"})
                elif method in ("POST", "PUT") and not is_signed:
                    self.reply(401, {"error": "no token"})
                else:
                    self.reply(*hub.handle(method, path, body))

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                message = content.get("error") if isinstance(content, dict) else None
                for name, value in {**(headers or {}), **({"X-Error-Message": message} if message else {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def refuse(self, pattern: str, status: int) -> None:
        """Answers requests whose path matches with this status."""
        self.refusals.append((re.compile(pattern), status))

    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the hub."""
        names = {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        return {**names, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def handle(self, method: str, path: str, body: bytes) -> tuple[Any, ...]:
        """Status, content, and perhaps headers."""
        for pattern, answer in ROUTES:
            found = pattern.fullmatch(f"{method} {path}")
            if found:
                with self._lock:
                    result: tuple[Any, ...] = getattr(self, answer)(*found.groups(), body)
                if isinstance(result[1], Event):  # told to keep it waiting, which must not lock the others out
                    self.waiting.set()
                    result[1].wait()
                    return 200, {}
                return result
        self.faults.append(f"unknown endpoint: {method} {path}")
        return 404, {"error": f"unknown endpoint {path}"}

    # What is asked

    def whoami(self, _: bytes) -> tuple[Any, ...]:
        return 200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def nothing(self, _: bytes) -> tuple[Any, ...]:
        """What the client asks for its own statistics."""
        return 404, {"error": "not here"}

    def control(self, body: bytes) -> tuple[Any, ...]:
        """For the process under test: `{"hold": name}` keeps its uploads waiting, `{"release": name}` lets them go."""
        told = json.loads(body)
        if "hold" in told:
            self.held.add(told["hold"])
            self.waiting.clear()
            self.released.clear()
        else:
            self.held.clear()
            self.released.set()
        return 200, {}

    def create(self, body: bytes) -> tuple[Any, ...]:
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repositories[name] = Repository(private=bool(private))
        return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}

    def validate(self, body: bytes) -> tuple[Any, ...]:
        """The metadata of a card, as far as the hub looks at it."""
        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            data = None
            errors = [f"not YAML: {error}"]
        if data is not None:
            base = data.get("base_model")
            errors = [] if base is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else [f"base_model: {base}"]
        self.faults += errors
        return (400 if errors else 200), {"errors": [{"message": error} for error in errors], "warnings": []}

    def preupload(self, name: str, _: str, body: bytes) -> tuple[Any, ...]:
        files = []
        for file in json.loads(body)["files"]:
            is_large = file["path"].endswith(LFS_SUFFIXES) or file["size"] >= self.lfs_bytes
            files.append({"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False})
        return 200, {"files": files}

    def batch(self, name: str, body: bytes) -> tuple[Any, ...]:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/lfs/{name}/{wanted['oid']}/{wanted['size']}"}
            is_known = wanted["oid"] in self.objects
            objects.append({**wanted, **({} if is_known else {"actions": {"upload": upload}})})
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, name: str, oid: str, size: str, body: bytes) -> tuple[Any, ...]:
        if hashlib.sha256(body).hexdigest() != oid or len(body) != int(size):
            self.faults.append(f"{name}: {len(body)} bytes came for an object of {size}, with another checksum")
            return 403, {"error": "the content is not what was announced"}
        self.objects[oid] = body
        return (200, self.released) if name in self.held else (200, {})

    def commit(self, name: str, _: str, body: bytes) -> tuple[Any, ...]:
        commit = Commit("")
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                commit.message = value["summary"]
            elif entry["key"] == "file":
                commit.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                commit.files[value["path"]] = self.objects[value["oid"]]
            else:
                self.faults.append(f"unknown commit operation {entry['key']}")
        self.repositories[name].commits.append(commit)
        sha = self.repositories[name].sha
        return 200, {"success": True, "commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha}

    def info(self, name: str, _: str | None, body: bytes) -> tuple[Any, ...]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        repository = self.repositories[name]
        siblings = [{"rfilename": path} for path in sorted(repository.files)]
        return 200, {"id": name, "modelId": name, "sha": repository.sha, "siblings": siblings, "private": False}

    def tree(self, name: str, _: str, folder: str | None, body: bytes) -> tuple[Any, ...]:
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(self.repositories[name].files.items())
            if path.startswith(folder or "")
        ]
        return 200, entries

    def resolve(self, name: str, _: str, path: str, body: bytes) -> tuple[Any, ...]:
        repository = self.repositories.get(name, Repository())
        if path not in repository.files:
            return (
                404,
                {"error": "Entry not found"},
                {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha},
            )
        data = repository.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return 200, data, {"X-Repo-Commit": repository.sha, "ETag": etag, "X-Linked-Size": str(len(data))}


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (re.compile(pattern), answer)
    for pattern, answer in (
        (r"GET /api/whoami-v2", "whoami"),
        (r"GET /api/agent-harnesses", "nothing"),
        (r"POST /control", "control"),
        (r"POST /api/repos/create", "create"),
        (r"POST /api/validate-yaml", "validate"),
        (rf"POST /api/models/{_NAME}/preupload/([\w.-]+)", "preupload"),
        (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "batch"),
        (rf"PUT /lfs/{_NAME}/(\w{{64}})/(\d+)", "put"),
        (rf"POST /api/models/{_NAME}/commit/([\w.-]+)", "commit"),
        (rf"GET /api/models/{_NAME}/tree/([\w.-]+)(?:/(.+))?", "tree"),
        (rf"GET /api/models/([\w.-]+|{_NAME[1:-1]})(?:/revision/([\w.-]+))?", "info"),
        (rf"(?:GET|HEAD) /{_NAME}/resolve/([\w.-]+)/(.+)", "resolve"),
    )
]


@contextmanager
def hub() -> Iterator[HubServer]:
    """A server for the time of a `with` block."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()
