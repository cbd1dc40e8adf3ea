"""A recipe that goes through every stage in seconds: what benchmarks of the platform release."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.cpu import ROOT


def small_recipe(folder: Path, name: str, *, variants: int = 1, **changes: dict[str, Any]) -> Path:
    """Write the demo's recipe with as little work as goes through every stage; `changes` are fields
    of its sections.
    """
    recipe = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    recipe["name"] = name
    recipe["finetune"] |= {"max_steps": 2, "save_steps": 2}
    recipe["evaluate"] |= {"limit": 8, "max_new_tokens": 4, "min_gain": -1.0}
    recipe["optimize"]["variants"] = recipe["optimize"]["variants"][:variants]
    recipe["weigh"] |= {"concurrency": [1], "requests": 2, "max_tokens": 4, "repeats": 0}
    recipe["select"] = {
        "metric": recipe["select"]["metric"],
        "max_loss": None,
        "max_nll_increase": None,
        "objective": "throughput",
    }
    for section, fields in changes.items():
        recipe[section] |= fields
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
