"""A small Hugging Face hub on loopback that serves folders as model repositories."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(
    r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(/(?P<what>revision|tree)/(?P<revision>[^/]+)(/(?P<folder>.+))?)?"
)


class Hub:
    """Serves `repositories` (name to folder) while its `with` block lasts.

        with Hub({"google/gemma-2-2b": folder}) as hub:
            subprocess.run([...], env=hub.environment(tmp_path / "home"))

    Attributes:
        url: What `HF_ENDPOINT` should be.
        repositories: The folder that each repository's `main` is now; change it for a new commit.
        older: Folders that were a repository's `main` before; their commits are still answered.
        tags: Of a repository, the folder that each tag names.
        failures: Repository name to the status that every request for it is answered with;
            change it at any time. 403 answers as a gated repository does.
        token: When set, a request without it is answered with 401.
        cut: Each body of a file stops after so many bytes, as a broken connection does.
        broken_at: No byte of a file from this one on is ever sent.
        delay: Seconds that every answer waits.
        requests: Method and path of every request so far.
        ranges: Path and `Range` of every request for a part of a file so far.
    """

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        self.repositories = {name: Path(folder) for name, folder in repositories.items()}
        self.older: dict[str, list[Path]] = {}
        self.tags: dict[str, dict[str, Path]] = {}
        self.failures: dict[str, int] = {}
        self.token: str | None = None
        self.cut: int | None = None
        self.broken_at: int | None = None
        self.delay = 0.0
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, str]] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """Paths of the files whose contents were asked for, in order."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process that knows no hub but this one and no cache but `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def commit(self, repo: str, revision: str | None = None) -> str:
        """The hash of a commit of `repo`: of the names and contents of its files."""
        folder = self.folder(repo, revision)
        assert folder is not None, f"{repo} has no {revision}"
        return _commit(folder)

    def folder(self, repo: str, revision: str | None) -> Path | None:
        """What `repo` holds at a commit, a tag or `main`; `None` for an unknown revision."""
        if revision in (None, "main"):
            return self.repositories[repo]
        folders = [self.repositories[repo], *self.older.get(repo, ())]
        named = {_commit(folder): folder for folder in folders} | self.tags.get(repo, {})
        return named.get(revision)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # an idle connection must not keep the server from closing

    def __init__(self, hub: Hub, *args, **kwargs) -> None:
        self.hub = hub
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests read `requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.closing.wait(self.hub.delay)
        match = RESOLVE.fullmatch(path) or API.fullmatch(path)
        if match is None:
            return self._refuse(404, "EntryNotFound")
        repo = match["repo"]
        if self.hub.token is not None:
            came = self.headers.get("Authorization")
            if came is None:
                return self._refuse(401, "RepoNotFound")
            if came != f"Bearer {self.hub.token}":
                return self._refuse(401, None, "Invalid credentials in Authorization header")
        if repo in self.hub.failures:
            status = self.hub.failures[repo]
            return self._refuse(status, {403: "GatedRepo", 404: "RepoNotFound"}.get(status))
        if repo not in self.hub.repositories:
            # the real hub hides what is private: 401 without a token
            return self._refuse(404 if "Authorization" in self.headers else 401, "RepoNotFound")
        folder = self.hub.folder(repo, match["revision"])
        if folder is None:
            return self._refuse(404, "RevisionNotFound")
        if match.re is RESOLVE:
            return self._file(folder, match["file"])
        if match["what"] == "tree":
            return self._tree(folder, match["folder"])
        return self._info(folder, repo)

    def _file(self, folder: Path, name: str) -> None:
        path = folder / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", commit=_commit(folder))
        body = path.read_bytes()
        headers = {
            "ETag": f'"{_digest(path)}"',
            "X-Repo-Commit": _commit(folder),
            "Accept-Ranges": "bytes",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._send(200, body, headers, cut=self._cut(0))
        self.hub.ranges.append((unquote(urlsplit(self.path).path), span[0]))
        start, stop = int(span[1]), int(span[2]) + 1 if span[2] else len(body)
        if start >= len(body):
            headers["Content-Range"] = f"bytes */{len(body)}"
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        return self._send(206, body[start:stop], headers, cut=self._cut(start))

    def _cut(self, start: int) -> int | None:
        """How many bytes from `start` on are sent; `None` for all."""
        cut, end = self.hub.cut, self.hub.broken_at
        left = [cut] if cut is not None else []
        left += [max(0, end - start)] if end is not None else []
        return min(left, default=None)

    def _info(self, folder: Path, repo: str) -> None:
        siblings = [{"rfilename": p.relative_to(folder).as_posix()} for p in _files(folder)]
        info = {
            "_id": "0" * 24,
            "id": repo,
            "modelId": repo,
            "sha": _commit(folder),
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _tree(self, folder: Path, below: str | None) -> None:
        if below is not None and not (folder / below).is_dir():
            return self._refuse(404, "EntryNotFound", commit=_commit(folder))
        entries = [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": _digest(path)[:40],
            }
            for path in _files(folder / (below or ""))
        ]
        return self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str | None, message: str | None = None, commit: str | None = None
    ) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._send(status, b"", {key: value for key, value in headers.items() if value})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
                self.close_connection = cut is not None and cut < len(body)
        except ConnectionError:  # a client that did not wait
            self.close_connection = True


def _commit(folder: Path) -> str:
    names = [f"{path.relative_to(folder)}:{_digest(path)}" for path in _files(folder)]
    return hashlib.sha1("\n".join(names).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _digest_of(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
