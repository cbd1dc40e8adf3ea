"""Source `hf`: a model or data set repository of the Hugging Face hub, or of the hub that
HF_ENDPOINT names.

Listing goes through huggingface_hub, with its token and its settings. Bytes don't: it neither
verifies what it fetches nor goes on where it was killed.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.ranges import ReadRange, Transient, fetch_ranges
from weighbridge.core.remote_file import RemoteFile
from weighbridge.tasks.sources.base import Listing, SourceArgs

if TYPE_CHECKING:
    import httpx
    from huggingface_hub.hf_api import RepoFile

URI = re.compile(
    r"hf://(?P<data>datasets/)?(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^@\s]+))?/?"
)
TIMEOUT = 30.0
"""Seconds without a byte until a connection counts as dead."""
REFUSED = (401, 403)
BUSY = (408, 429)


class HubArgs(SourceArgs):
    """A repository of the Hugging Face hub. The token is huggingface_hub's own (HF_TOKEN or `hf
    auth login`).
    """

    kind: Literal["hf"] = "hf"
    repo: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="`organization/name`.")
    repo_type: Literal["model", "dataset"] = Field(
        "model", description="What kind of repository it is."
    )
    revision: str = Field(
        "main",
        pattern=r"^[^\s\x00-\x1f\x7f-][^\s\x00-\x1f\x7f]*$",
        description="Branch, tag or commit; kept as the commit it stands for.",
    )

    def uri(self, revision: str) -> str:
        return f"hf://{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo}@{revision}"


class HubSource:
    """Revisions are pinned to commits; every file has a digest: sha256 of LFS files, git blob ids
    of the others.
    """

    Args: ClassVar[type[SourceArgs]] = HubArgs

    def parse(self, uri: str) -> HubArgs:
        match = URI.fullmatch(uri)
        if not match:
            wrong = (
                "it is not hf://org/name, hf://org/name@revision or hf://datasets/org/name@revision"
            )
            raise BadInput(f"reading '{uri}'", wrong)
        repo_type: Literal["model", "dataset"] = "dataset" if match["data"] else "model"
        return HubArgs(
            repo=match["repo"], repo_type=repo_type, revision=match["revision"] or "main"
        )

    def list_files(self, args: HubArgs) -> Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with _translated(args):
            api = HfApi(endpoint=_endpoint())
            commit = api.repo_info(
                args.repo, repo_type=args.repo_type, revision=args.revision, timeout=TIMEOUT
            ).sha
            if not commit:
                raise Unavailable(
                    f"asking {_endpoint()} for {args.uri(args.revision)}", "it names no commit"
                )
            # By commit: the branch may move between the two requests.
            tree = api.list_repo_tree(
                args.repo, recursive=True, revision=commit, repo_type=args.repo_type
            )
            files = [_remote(entry) for entry in tree if isinstance(entry, RepoFile)]
        origin = {"uri": args.uri(commit), "revision": commit}
        return Listing(files=files, origin=origin, immutable=args.revision == commit)

    def fetch(
        self,
        args: HubArgs,
        listing: Listing,
        file: RemoteFile,
        to: Path,
        advance: Callable[[int], None],
    ) -> None:
        import httpx
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public by its documentation

        commit = listing.origin["revision"]
        url = hf_hub_url(
            args.repo, file.path, repo_type=args.repo_type, revision=commit, endpoint=_endpoint()
        )
        # Compression would make ranges count bytes other than those of the file.
        headers = {**build_hf_headers(), "accept-encoding": "identity"}
        doing = f"downloading {file.path} of {args.uri(commit)}"
        with httpx.Client(headers=headers, follow_redirects=True, timeout=TIMEOUT) as client:
            try:
                fetch_ranges(_reader(client, url, doing), file.size, to, advance)
            except Transient as exc:
                remedy = "what has arrived is kept: run again to go on"
                raise Unavailable(
                    doing, f"the hub at {_endpoint()} does not deliver ({exc})", remedy
                ) from exc


def _endpoint() -> str:
    """Return the hub's address as the environment names it now."""
    # Not huggingface_hub's own constant: it is read once, when that is imported.
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _remote(entry: "RepoFile") -> RemoteFile:
    if entry.lfs:
        return RemoteFile(path=entry.path, size=entry.lfs.size, sha256=entry.lfs.sha256)
    return RemoteFile(path=entry.path, size=entry.size, git_sha1=entry.blob_id)


def _reader(client: "httpx.Client", url: str, doing: str) -> ReadRange:
    import httpx

    def read(start: int, end: int) -> Iterator[bytes]:
        try:
            with client.stream(
                "GET", url, headers={"range": f"bytes={start}-{end - 1}"}
            ) as response:
                skip = _bytes_before(response, start, doing)
                left = end - start
                for chunk in response.iter_raw():
                    part = chunk[skip : skip + left]
                    skip = max(skip - len(chunk), 0)
                    left -= len(part)
                    if part:
                        yield part
                    if not left:
                        return
        except httpx.TransportError as exc:
            raise Transient(str(exc) or type(exc).__name__) from exc

    return read


def _bytes_before(response: "httpx.Response", start: int, doing: str) -> int:
    """Return how many bytes of the answer come before `start`. Raises where it is not the file."""
    status = response.status_code
    if status == 206 and response.headers.get("content-range", "").startswith(f"bytes {start}-"):
        return 0
    # The server knows no ranges and sends the whole file.
    if status == 200:
        return start
    if status in REFUSED:
        raise BadInput(
            doing,
            f"the hub refuses it ({status})",
            "accept the conditions on its page and set HF_TOKEN",
        )
    # 206 of another range than the one asked for may be right at the next attempt.
    if status in BUSY or status >= 500 or status == 206:
        raise Transient(f"status {status}")
    raise BadInput(doing, f"the hub answers {status}", "check the repository and the revision")


@contextmanager
def _translated(args: HubArgs) -> Iterator[None]:
    """Raise errors of huggingface_hub as ours."""
    from huggingface_hub import errors, get_session

    uri, endpoint = args.uri(args.revision), _endpoint()
    doing = f"asking {endpoint} for {uri}"
    # huggingface_hub 1.x speaks through httpx, 2.x through httpx2: their errors differ.
    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    try:
        yield
    except errors.GatedRepoError as exc:
        remedy = "accept its conditions on its page, then set HF_TOKEN or run: hf auth login"
        raise BadInput(doing, "access to the repository must be granted first", remedy) from exc
    except errors.RepositoryNotFoundError as exc:
        remedy = "check the name; for a private one set HF_TOKEN or run: hf auth login"
        raise BadInput(
            doing, f"there is no such {args.repo_type} repository, or it is private", remedy
        ) from exc
    except errors.RevisionNotFoundError as exc:
        wrong = f"the repository has no revision '{args.revision}'"
        raise BadInput(doing, wrong, "name a branch, a tag or a whole commit id") from exc
    except errors.OfflineModeIsEnabled as exc:
        raise Unavailable(doing, "HF_HUB_OFFLINE forbids it", "unset it") from exc
    except errors.HfHubHTTPError as exc:
        raise _by_status(doing, exc.response.status_code) from exc
    except (client.TransportError, ConnectionError) as exc:
        wrong = f"the hub cannot be reached ({exc})"
        raise Unavailable(
            doing, wrong, "check the network and HF_ENDPOINT, then run again"
        ) from exc


def _by_status(doing: str, status: int) -> BadInput | Unavailable:
    if status in REFUSED:
        return BadInput(
            doing, f"the hub refuses access ({status})", "check HF_TOKEN, or run: hf auth login"
        )
    if status in BUSY or status >= 500:
        return Unavailable(doing, f"the hub answers {status}", "run again later")
    return BadInput(doing, f"the hub answers {status}", "check the repository and the revision")
