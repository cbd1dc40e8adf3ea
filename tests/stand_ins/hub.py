"""A small Hugging Face hub: real HTTP, commits, LFS digests, ranges, and faults on request.

::

    with Hub() as hub:
        commit = hub.add("org/name", {"config.json": b"{}", "model.safetensors": weights})
        os.environ["HF_ENDPOINT"] = hub.url

It speaks what `huggingface_hub`, `transformers` and `datasets` ask when they read: repository
information, trees, and files with ETag, X-Repo-Commit, X-Linked-Etag, X-Linked-Size and Range.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.stand_ins.http_server import Handler, Server

Kind = Literal["models", "datasets"]
LFS = (".safetensors", ".bin", ".pt", ".parquet", ".model", ".gguf")
"""Files with these endings are kept in LFS, as the hub does by its default .gitattributes."""
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Files by commit, and branches that point to commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Faults:
    """What goes wrong from now on; all may be changed while the hub runs."""

    down: bool = False
    """Every request is answered with 503."""
    gated: bool = False
    """Files and information are refused with 403, as before the conditions are accepted."""
    token: str = ""
    """Without this bearer token, repositories look as if they did not exist (401)."""
    corrupt: set[str] = field(default_factory=set)
    """Paths whose bytes differ from the published digest, at the same size."""
    cut: dict[str, int] = field(default_factory=dict)
    """Path -> after this many bytes of each answer the connection is closed."""
    cuts: int = 1_000_000
    """How many connections are cut; those after are whole."""
    no_ranges: bool = False
    """Range is ignored: whole files, status 200."""
    delay: float = 0.0
    """Seconds to wait before every 64 KiB of a file."""
    hold_from: int = 0
    """Ranges that begin at this byte or later get nothing for as long as it is set."""


@dataclass(frozen=True)
class Request:
    """One request that was answered with bytes of a file."""

    path: str
    range: str


class Hub(Server):
    """The server, with what lies in it."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.faults = Faults()
        self.downloads: list[Request] = []
        self.calls: Counter[str] = Counter()
        self.stopping = threading.Event()
        self._repositories: dict[tuple[Kind, str], Repository] = {}

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes] | Path,
        *,
        kind: Kind = "models",
        branch: str = "main",
    ) -> str:
        """Commit files to a branch; the commit's id depends on repository and content alone."""
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        digest = hashlib.sha1(f"{kind} {repo}".encode())
        for path, content in sorted(files.items()):
            digest.update(f"\n{path} {hashlib.sha256(content).hexdigest()}".encode())
        repository = self._repositories.setdefault((kind, repo), Repository())
        repository.commits[digest.hexdigest()] = dict(files)
        repository.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def find(self, kind: Kind, repo: str) -> Repository | None:
        return self._repositories.get((kind, repo))

    def __exit__(self, *unused: object) -> None:
        self.stopping.set()
        super().__exit__(*unused)


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """One file of a tree, as the hub describes it."""
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": git_blob_id(content),
    }
    if path.endswith(LFS):
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{_sha256(content)}\nsize {len(content)}\n"
        )
        entry["oid"] = git_blob_id(pointer.encode())
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": len(pointer)}
    return entry


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Answer(Exception):
    """An answer that ends the request early."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}


class _Handler(Handler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        """`paths-info`: the tree's entries for the paths that are asked for."""
        body = self.body()
        url = urlsplit(self.path)
        match = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", url.path)
        try:
            self._check_faults()
            if not match:
                raise _Answer(404)
            files = self._files(self._repository(match[1], match[2]), unquote(match[3]))[1]
            form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            self._send_json(
                [_entry(path, files[path]) for path in form.get("paths", []) if path in files]
            )
        except _Answer as answer:
            self._send(answer.status, b"{}", answer.headers)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        try:
            self._check_faults()
            if match := RESOLVE.fullmatch(url.path):
                self._resolve(
                    "datasets" if match[1] else "models",
                    match[2],
                    unquote(match[3]),
                    unquote(match[4]),
                )
            elif match := API.fullmatch(url.path):
                self._api(match)
            else:
                raise _Answer(404)
        except _Answer as answer:
            self._send(answer.status, b"{}", answer.headers)

    def _check_faults(self) -> None:
        faults = self.server.faults
        if faults.down:
            raise _Answer(503)
        if faults.token and self.headers.get("Authorization") != f"Bearer {faults.token}":
            raise _Answer(401, "RepoNotFound", "Repository not found")
        if faults.gated:
            raise _Answer(403, "GatedRepo", "Access to this repository is restricted")

    def _repository(self, kind: str, repo: str) -> Repository:
        found = self.server.find("datasets" if kind == "datasets" else "models", repo)
        if not found:
            raise _Answer(404, "RepoNotFound", "Repository not found")
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repository.commit_of(revision)
        if not commit:
            raise _Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def _api(self, match: re.Match[str]) -> None:
        kind, repo, what, revision, below = match.groups()
        self.server.calls[what or "info"] += 1
        commit, files = self._files(self._repository(kind, repo), unquote(revision or "main"))
        if what == "tree":
            folder = f"{unquote(below)}/" if below else ""
            self._send_json(
                [_entry(path, files[path]) for path in sorted(files) if path.startswith(folder)]
            )
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {
            "id": repo,
            "sha": commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }
        self._send_json({**about, "modelId": repo} if kind == "models" else about)

    def _resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        commit, files = self._files(self._repository(kind, repo), revision)
        if path not in files:
            raise _Answer(404, "EntryNotFound", "Entry not found")
        content, entry = files[path], _entry(path, files[path])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if path in self.server.faults.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        self._send_file(path, content, headers)

    def _send_file(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        status, asked, faults = 200, self.headers.get("Range", ""), self.server.faults
        if (match := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)) and not faults.no_ranges:
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            if start > end:
                raise _Answer(416)
            status, headers = (
                206,
                {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"},
            )
            content = content[start : end + 1]
            while 0 < faults.hold_from <= start and not self.server.stopping.wait(0.01):
                pass
        if self.command == "GET":
            self.server.downloads.append(Request(path, asked))
        self._send(status, content, headers, self._limit(path))

    def _limit(self, path: str) -> int | None:
        """After how many bytes this answer is to be cut."""
        faults = self.server.faults
        if path not in faults.cut or faults.cuts <= 0 or self.command != "GET":
            return None
        faults.cuts -= 1
        return faults.cut[path]

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], limit: int | None = None
    ) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        self.begin_answer(len(body), status, headers)
        if self.command == "HEAD":
            return
        try:
            for at in range(0, len(body if limit is None else body[:limit]), 1 << 16):
                self.server.stopping.wait(self.server.faults.delay)
                self.wfile.write(
                    body[at : min(at + (1 << 16), len(body) if limit is None else limit)]
                )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if limit is not None and limit < len(body):
            self.wfile.flush()
            self.close_connection = True
