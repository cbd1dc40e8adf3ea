"""The recipe: one YAML file, one model, the sum of the stages' arguments."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from weighbridge.rollout.deploy_args import DeployArgs
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.download import DownloadArgs
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.optimize import OptimizeArgs
from weighbridge.tasks.optimizers.base import load_optimizer
from weighbridge.tasks.package import PackageArgs
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.weigh_args import WeighArgs

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Recipe(BaseModel):
    """From a base model to a served one, stage by stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Recipe")

    name: str = Field(
        pattern=NAME, description="Name of the registered model and of its experiment in MLflow."
    )
    download: DownloadArgs = Field(description="Base model and data: where their bytes come from.")
    finetune: FinetuneArgs = Field(
        default_factory=FinetuneArgs, description="LoRA fine-tune of the base model."
    )
    evaluate: EvaluateArgs = Field(
        default_factory=EvaluateArgs,
        description="Metrics, and the gate that a fine-tune worse than its base fails.",
    )
    optimize: OptimizeArgs = Field(description="Servable variants made out of the merged weights.")
    weigh: WeighArgs = Field(description="Engines the variants are measured on, and how.")
    select: SelectArgs = Field(
        default_factory=SelectArgs, description="Limits and objective that decide the winner."
    )
    package: PackageArgs = Field(default_factory=PackageArgs, description="The winner's Bento.")
    deploy: DeployArgs = Field(
        description="Where the winner serves, and whether it is promoted by itself."
    )

    @model_validator(mode="after")
    def _engines_take_what_is_made(self) -> Self:
        """Refuse variants that no engine takes: now, and not after the fine-tune."""
        formats = {load_optimizer(variant.kind).format for variant in self.optimize.variants}
        accepted = {
            name for engine in self.weigh.engines for name in engine_class(engine.kind).formats
        }
        if not formats & accepted:
            kinds = ", ".join(sorted({engine.kind for engine in self.weigh.engines}))
            raise ValueError(
                f"none of the engines ({kinds}) serves {', '.join(sorted(formats))}; add an engine "
                "or a variant"
            )
        return self


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors and for Prefect's run form."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
