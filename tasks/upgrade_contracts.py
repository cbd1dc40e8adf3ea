"""What the stages need of their libraries, done once: `weighbridge compat` runs these against newer
releases.

Each needs `WEIGHBRIDGE_HOME` to be a folder of its own. Models for engines are kept under
`WEIGHBRIDGE_COMPAT_MODELS`, by engine, so that every trial serves the same bytes.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge.core.artifact import Artifact
from weighbridge.core.plugins import names
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.data import Message, Row, write_rows
from weighbridge.tasks.metrics.base import load_metric
from weighbridge.tasks.optimizers.base import load_optimizer

if TYPE_CHECKING:
    from weighbridge.serving.engines.base import Engine
    from weighbridge.tasks.optimizers.base import Optimizer

# A hub that is away would look like a release that breaks.
NOT_OFFLINE = frozenset({"hub"})
"""Metrics that ask a model hub."""


def a_model_is_fine_tuned() -> None:
    """Train two steps of LoRA on a tiny model and merge them.

    Both trainers (rows in packs bring SFTTrainer), PEFT, Dataset and saved weights work together.
    """
    from weighbridge.tasks.finetune import finetune
    from weighbridge.tasks.finetune_args import FinetuneArgs

    workspace = Workspace()
    for packing in (False, True):
        args = FinetuneArgs(
            r=4,
            max_steps=2,
            per_device_train_batch_size=2,
            save_steps=1,
            max_length=256,
            packing=packing,
        )
        tuned = finetune(_base(workspace), _data(workspace), args, workspace)
        assert [entry["step"] for entry in tuned.losses] == [1.0, 2.0], (
            f"the losses are of steps {tuned.losses}"
        )
        assert {path.name for path in tuned.adapter.path.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }


def answers_are_scored() -> None:
    """Score the tuned model's answers and log-probabilities with every metric that needs no hub."""
    from weighbridge.tasks import hf_models
    from weighbridge.tasks.encoding import encode, load_tokenizer
    from weighbridge.tasks.generation import answers

    folder = _base(Workspace()).path
    model, tokenizer = hf_models.load_model(folder), load_tokenizer(folder)
    rows = encode(tokenizer, _rows(4))
    replies = answers(
        model,
        tokenizer,
        [row.prompt for row in rows],
        stops=rows[0].completion[-1:],
        max_new_tokens=4,
        batch_size=2,
    )
    assert len(replies) == len(rows), f"{len(replies)} answers to {len(rows)} prompts"
    for name in sorted(set(names("metric")) - NOT_OFFLINE):
        metric = load_metric(name)
        predictions = [[-0.5, -0.25]] * 2 if metric.uses == "logprobs" else ['{"order": 1}', "{}"]
        score = metric.score(metric.Args(kind=name), predictions, ['{"order": 1}', '{"order": 2}'])
        assert score.low <= score.value <= score.high, f"{name} scores {score}"


def a_bucket_is_asked() -> None:
    """List a bucket and read a range of an object with boto3's client, set up as ours is."""
    from weighbridge.core import s3

    with _bucket(b"0123456789") as url:
        # Not put back: every contract has a process of its own.
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        location = s3.S3Location(bucket="bucket", endpoint_url=url)
        listed = s3.list_objects(location)
        body = b"".join(s3.reader(location, "object", "")(2, 5))
    assert [file.path for file in listed] == ["object"], f"the bucket lists {listed}"
    assert body == b"234", f"the range reads {body!r}"


def an_optimizer_makes(name: str) -> None:
    """Make and prove the optimizer's smallest variant of a tiny model."""
    workspace = Workspace()
    _make(load_optimizer(name), _base(workspace), workspace, workspace.settings.home / "out")


def a_model_for_an_engine(name: str) -> None:
    """Make a tiny model in a format that the engine takes, kept for the trials of it."""
    workspace, engine = Workspace(), engine_class(name)
    target = Path(os.environ["WEIGHBRIDGE_COMPAT_MODELS"]) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    _make(
        optimizer_for(engine), _base(workspace), workspace, workspace.settings.home / "out"
    ).rename(target)


def optimizer_for(engine: "type[Engine]") -> "Optimizer":
    """Return the first optimizer that makes what an engine takes. Raises LookupError if none."""
    optimizers = (load_optimizer(name) for name in names("optimizer"))
    optimizer = next((plugin for plugin in optimizers if plugin.format in engine.formats), None)
    if optimizer is None:
        raise LookupError(
            f"no optimizer makes what {engine.name} takes: {', '.join(sorted(engine.formats))}"
        )
    return optimizer


def _make(optimizer: "Optimizer", base: Artifact, workspace: Workspace, out: Path) -> Path:
    args = optimizer.Args.model_validate({})
    out.mkdir(parents=True)
    optimizer.check(base.path, args, workspace)
    optimizer.optimize(base, _data(workspace), args, out, workspace)
    return out


def _base(workspace: Workspace) -> Artifact:
    from examples.tiny_model import make

    with workspace.store.scratch() as scratch:
        make(scratch)
        return workspace.store.add(scratch, "safetensors", {"uri": "random"})


def _rows(count: int) -> list[Row]:
    return [
        Row(
            prompt=[Message(role="user", content=f"Order {number} is late.")],
            completion=[Message(role="assistant", content=json.dumps({"order": number}))],
        )
        for number in range(count)
    ]


def _data(workspace: Workspace) -> Artifact:
    with workspace.store.scratch() as scratch:
        for split in ("train", "validation", "test"):
            write_rows(_rows(24), scratch / f"{split}.jsonl")
        return workspace.store.add(scratch, "jsonl")


@contextmanager
def _bucket(content: bytes) -> Iterator[str]:
    """Serve an S3 bucket with one object, as far as listing and ranges go."""
    listing = (
        '<?xml version="1.0"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        "<IsTruncated>false</IsTruncated><Contents><Key>object</Key><ETag>1</ETag>"
        f"<Size>{len(content)}</Size></Contents>"
        "</ListBucketResult>"
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first, _, last = (
                self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            )
            part = content[int(first) : int(last) + 1] if last else content
            body = listing if "list-type=2" in self.path else part
            self.send_response(206 if last else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
