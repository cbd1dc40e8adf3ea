"""Build images that are not there yet, and push them."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.core.files import replace_text
from weighbridge.services.images.builders import Builder, OnLine
from weighbridge.services.images.containerfile import CERTIFICATES_SECRET, INDEX_SECRET
from weighbridge.services.images.image import Image, certificates, index_settings


@dataclass(frozen=True)
class BuiltImage:
    """An image on this machine."""

    name: str
    reference: str
    reused: bool
    """Whether it was there already."""
    pushed: bool


def build_image(
    image: Image, builder: Builder, *, push: bool, options: Sequence[str], on_line: OnLine
) -> BuiltImage:
    """Have an image on this machine, and in its registry.

    Args:
        image: What it holds.
        builder: Who builds it.
        push: Whether it goes to its registry too.
        options: Of the builder's command, such as `--network=host`.
        on_line: Is told what the builder says.

    Raises:
        BadInput: the registry wants a login.
        Unavailable: it cannot be built or pushed.
    """
    reused = builder.has(image.reference)
    if not reused:
        with tempfile.TemporaryDirectory(prefix="weighbridge-") as scratch:
            # Not in the context: it would be in a layer's cache key, and may hold a password.
            index = Path(scratch) / "index"
            replace_text(index, index_settings(), mode=0o600)
            context = Path(scratch) / "context"
            image.write_context(context)
            trusted = certificates()
            secrets = {INDEX_SECRET: index, **({CERTIFICATES_SECRET: trusted} if trusted else {})}
            builder.build(context, image.reference, secrets, options, on_line)
    if push:
        builder.push(image.reference, on_line)
    return BuiltImage(image.name, image.reference, reused, push)
