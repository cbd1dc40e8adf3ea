"""Creates a model and a Bento with BentoML.

A script: it runs in the Bento's own environment, in the folder that becomes the Bento's `src`, with
`BENTOML_HOME` a scratch folder and `BENTO_BUILD_SETTINGS` a file of JSON.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Build what the settings say."""
    import bentoml

    settings = json.loads(Path(os.environ["BENTO_BUILD_SETTINGS"]).read_text())
    # Not this script's folder, where modules of ours would hide libraries of the same name.
    sys.path[0] = str(Path.cwd())
    with bentoml.models.create(
        settings["model"], metadata=settings["metadata"], labels=settings["labels"]
    ):
        pass  # its files are linked in afterwards: BentoML would copy them
    built = bentoml.bentos.build(
        "weighbridge.serving.service:Weighbridge",
        name=settings["name"],
        version=settings["version"],
        labels=settings["labels"],
        description=settings["description"],
        include=["*"],
        build_ctx=str(Path.cwd()),
        # The lock is ours: BentoML would resolve it again, and writes no hashes.
        python={"requirements_txt": "requirements.txt", "lock_packages": False},
        models=[settings["model"]],
    )
    _require_exactly(Path(built.path), Path("requirements.txt").read_text())


def _require_exactly(folder: Path, requirements: str) -> None:
    """Have the Bento require exactly what its lock says.

    BentoML adds itself to the requirements a second time, without a hash, which pip then refuses.
    And its containers install with uv from this folder, which would add what a lock leaves out on
    purpose (see a lock's `.overrides`), because the rest depends on it: `uv.toml` forbids that.
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
