"""Runs in a Bento's own environment and folder, with `BENTOML_HOME` set to scratch: creates the
model and the Bento.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    import bentoml

    order = json.loads(Path(os.environ["BENTO_ORDER"]).read_text())
    sys.path[0] = str(Path.cwd())
    with bentoml.models.create(order["model"], metadata=order["metadata"], labels=order["labels"]):
        pass  # its files are linked in afterwards: BentoML would copy them
    built = bentoml.bentos.build(
        "weighbridge.serving.service:Weighbridge",
        name=order["name"],
        version=order["version"],
        labels=order["labels"],
        description=order["description"],
        include=["*"],
        build_ctx=str(Path.cwd()),
        python={"requirements_txt": "requirements.txt", "lock_packages": False},
        models=[order["model"]],
    )
    _require_exactly(Path(built.path), Path("requirements.txt").read_text())


def _require_exactly(folder: Path, requirements: str) -> None:
    """Put the lock back as it was: BentoML adds itself a second time, without a hash, which pip
    then refuses.

    uv, which BentoML's containers install it with from this folder, is told that there is nothing
    to add: what a lock leaves out on purpose (see a lock's `.overrides`) would come back as a
    dependency of the rest.
    """
    import yaml

    python = folder / "env" / "python"
    (python / "requirements.txt").write_text(requirements)
    (python / "uv.toml").write_text("[pip]\nno-deps = true\n")
    description = folder / "bento.yaml"
    info = yaml.safe_load(description.read_text())
    info["image"]["python_requirements"] = requirements
    description.write_text(yaml.safe_dump(info, sort_keys=False))


if __name__ == "__main__":
    main()
