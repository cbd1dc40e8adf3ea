"""What a recipe says of a target in a Kubernetes cluster."""

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from weighbridge.core import container_layout
from weighbridge.core.field_types import PathText
from weighbridge.serving.client_requests import MAX_BODY_BYTES
from weighbridge.serving.targets.base import TargetArgs

BENTOML_USER: Final = 1034
"""In images that `bentoml containerize` builds."""

DnsLabel = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
]
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
]
Hostname = Annotated[
    str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
]
Quantity = Annotated[
    str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$")
]
"""An amount as Kubernetes writes it: `2`, `500m`, `16Gi`."""
_SUFFIXES: Final[dict[str, float]] = {
    "m": 1e-3,
    **{suffix: 1000 ** (power + 1) for power, suffix in enumerate("kMGTP")},
    **{f"{suffix}i": 1024 ** (power + 1) for power, suffix in enumerate("KMGTP")},
}
Network = Annotated[str, AfterValidator(lambda text: str(ip_network(text)))]
"""Addresses, such as `10.0.0.0/24` or `10.0.0.1/32`."""
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Image = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f\x7f-][^\s\x00-\x1f\x7f]*$")]


def amount(quantity: Quantity) -> float:
    """Return an amount as a number: bytes, or processors."""
    digits = quantity.rstrip("".join(_SUFFIXES))
    suffix = quantity.removeprefix(digits)
    return float(digits) * (_SUFFIXES[suffix] if suffix else 1.0)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SecretKey(_Part):
    """One value in a Secret of the namespace: its name alone is in the recipe, never its text."""

    name: ObjectName = Field(description="Of the Secret.")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$", description="Of the value in it.")


class GatewayRef(_Part):
    """The Gateway (Gateway API) that clients come through, and what they call it."""

    name: ObjectName = Field(description="Of the Gateway; it is there already.")
    namespace: DnsLabel | Literal[""] = Field("", description="Of the Gateway; empty: our own.")
    listener: str = Field("", description="Of its listeners (`sectionName`); empty: any.")
    hostname: Hostname = Field(description="Name under which clients ask, without scheme.")
    tls: bool = Field(True, description="Whether clients ask by https.")


class SharedStoreRef(_Part):
    """WEIGHBRIDGE_STORE as the cluster reaches it, and who fetches from it."""

    uri: str = Field(
        pattern=r"^s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[^\x00-\x1f\x7f]*)?$",
        description="`s3://bucket/prefix`.",
    )
    endpoint: str = Field(
        "", pattern=r"^(https?://[^\s@]+)?$", description="AWS_ENDPOINT_URL; empty: Amazon's own."
    )
    secret: ObjectName | Literal[""] = Field(
        "",
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; empty: the service "
        "account may read the bucket.",
    )
    image: Image = Field(
        description="Image with Weighbridge that fetches: `weighbridge image control` builds one."
    )


class Resources(_Part):
    """What one replica gets: asked for and allowed, so that no neighbour can take it away."""

    cpu: Quantity = "2"
    memory: Quantity = "4Gi"
    disk: Quantity = Field(
        "2Gi", description="Of what it writes; with `model: init` the Bento is a part of it."
    )
    gpus: int = Field(0, ge=0, description="Whole graphics cards.")
    gpu_resource: str = Field(
        "nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="What the cluster calls them.",
    )
    gpu_model: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9-]*)?$",
        description="Such as `H100`, where a cloud has several; only SkyPilot is told.",
    )
    shared_memory: Quantity = Field(
        "1Gi", description="Size of /dev/shm, through which processes of one engine talk."
    )


class Autoscale(_Part):
    """More replicas while more requests are under way, fewer while there are fewer."""

    by: Literal["hpa", "keda"] = Field(
        "hpa",
        description="`hpa`: HorizontalPodAutoscaler, which needs a metrics adapter that serves "
        "`weighbridge_requests_in_flight` per pod; `keda`: ScaledObject, which asks Prometheus.",
    )
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    requests_per_replica: int = Field(
        8, ge=1, description="Requests under way and waiting that one replica is to have."
    )
    prometheus: str = Field(
        "",
        pattern=r"^(https?://[^\s]+)?$",
        description="Prometheus that has scraped the replicas' /metrics; for `keda`.",
    )
    down_seconds: int = Field(
        600, ge=0, le=3600, description="Seconds of less traffic before a replica is taken away."
    )

    @property
    def kind(self) -> str:
        """The kind of the object that scales."""
        return "ScaledObject" if self.by == "keda" else "HorizontalPodAutoscaler"

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        if self.by == "keda" and not self.prometheus:
            raise ValueError("`by: keda` needs the address of Prometheus in `prometheus`")
        return self


class KubernetesArgs(TargetArgs):
    """Which cluster, whose images, how many replicas, and how one is ended."""

    kind: Literal["kubernetes"] = "kubernetes"
    namespace: DnsLabel = Field("default", description="Namespace that everything is made in.")
    context: PathText = Field(
        "", description="Of the kubeconfig; empty: its current one, or the pod's own account."
    )
    image: Image = Field(
        description="Of the server. `{name}`, `{version}`, `{bento}` and `{digest}` are filled "
        "in, so that each version can have its own."
    )
    model: Literal["image", "init", "oci_volume"] = Field(
        "image",
        description="Where the Bento comes from: it is in `image`; an init container fetches it "
        "by its digest from WEIGHBRIDGE_STORE; or it is the OCI image `model_image`, mounted "
        "(Kubernetes 1.35 and later). With the latter two `image` is the engine's, as `weighbridge "
        "image` builds it.",
    )
    model_image: Image | Literal[""] = Field(
        "", description="For `oci_volume`: the image that holds the Bento, filled in as `image`."
    )
    store: SharedStoreRef | None = Field(None, description="For `init`: where it is fetched from.")
    pull_secret: ObjectName | Literal[""] = Field(
        "", description="Secret with the login of the image registry."
    )
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    replicas: int = Field(1, ge=1, description="Where `autoscale` says nothing else.")
    autoscale: Autoscale | None = None
    resources: Resources = Field(default_factory=Resources)
    surge: bool = Field(
        True,
        description="Whether the cluster has room for one replica more while one is replaced. "
        "Without (too few GPUs): one goes before the next comes, and so does a whole version: from "
        "its end until the next one is found good nobody serves.",
    )
    gateway: GatewayRef | None = Field(
        None,
        description="Gateway that shifts traffic step by step; none: the Service turns from one "
        "version to the next at once.",
    )
    port: int = Field(80, ge=1, le=65535, description="Of the Service.")
    clients: tuple[DnsLabel, ...] = Field(
        (),
        description="Namespaces whose pods may ask; none: the gateway's, or without a gateway "
        "anybody.",
    )
    networks: tuple[Network, ...] = Field(
        (),
        description="Addresses outside of namespaces that may ask too, such as the API server's, "
        "through which a deployer outside the cluster asks.",
    )
    load_seconds: int = Field(
        600, ge=10, description="Longest time until the first real answer, model fetched."
    )
    endpoints_lag: int = Field(
        10,
        ge=5,
        description="Seconds until every client has learned that a replica is about to end.",
    )
    drain_seconds: int = Field(
        300, ge=5, description="Longest time for which a replica that is to end may answer on."
    )
    stop_seconds: int = Field(
        30, ge=1, description="Seconds that the engine has between SIGTERM and SIGKILL."
    )
    user_id: int | None = Field(
        None,
        ge=1,
        description="User and group of the processes, as a number; empty: 1034, which owns the "
        "images of `bentoml containerize`, or 10001 of `weighbridge image`.",
    )
    service_account: ObjectName | Literal[""] = Field(
        "", description="Of the pods; no token of it is mounted. Empty: the namespace's default."
    )
    priority_class: ObjectName | Literal[""] = ""
    runtime_class: ObjectName | Literal[""] = Field("", description="Such as `nvidia`.")
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = Field(
        (),
        description="As Kubernetes writes them, such as {key: nvidia.com/gpu, operator: Exists}.",
    )
    secrets: Mapping[VariableName, SecretKey] = Field(
        default_factory=dict,
        description="Environment variables of the engine whose values are in Secrets.",
    )
    max_body_bytes: int = Field(MAX_BODY_BYTES, ge=1 << 10, le=64 << 20)
    overlay: tuple[Mapping[str, Any], ...] = Field(
        (),
        description="Parts of manifests, each with `kind` and where it is to be one alone "
        "`metadata.name`, that are merged into ours: mappings deeply, named lists by name; null "
        "removes.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.endpoints_lag > self.drain_seconds:
            raise ValueError(
                f"endpoints_lag {self.endpoints_lag} is longer than drain_seconds "
                f"{self.drain_seconds}: a replica would end while clients still find it"
            )
        if self.model == "oci_volume" and not self.model_image:
            raise ValueError("`model: oci_volume` needs the image that holds it in `model_image`")
        if self.model == "init" and self.store is None:
            raise ValueError("`model: init` fetches from a bucket: name it in `store.uri`")
        for part in self.overlay:
            if not isinstance(part.get("kind"), str):
                raise ValueError("overlay: each part names the `kind` that it is merged into")
        return self

    @property
    def user(self) -> int:
        """User and group of the processes."""
        return self.user_id or (BENTOML_USER if self.model == "image" else container_layout.USER)

    @property
    def splits_traffic(self) -> bool:
        """Whether clients' requests can be shared out by percent; else it is all or nothing."""
        return self.gateway is not None

    @property
    def least_replicas(self) -> int:
        """How many there are when least is asked of them."""
        return self.autoscale.min_replicas if self.autoscale else self.replicas

    @property
    def grace_seconds(self) -> int:
        """How long Kubernetes waits from the beginning of a pod's end until it kills it."""
        # The five seconds are kubelet's: it notices and reports the end of preStop only then.
        return self.drain_seconds + self.stop_seconds + 5

    def remarks(self) -> list[str]:
        """Return what follows of these arguments that people may not expect, a sentence each."""
        found, least = [], self.least_replicas
        if least == 1:
            found.append(
                "one replica: a drained node waits until somebody lets another one start; with "
                "`replicas: 2` nobody has to"
            )
        if self.model == "init":
            found.append(
                f"`model: init`: the Bento is a part of the {self.resources.disk} in "
                "`resources.disk`; a pod that takes more is evicted"
            )
        if not self.surge:
            found.append(
                "`surge: false`: a replica goes before the next comes, so there is one fewer while "
                "one is replaced"
                + (", and none at all of one" if least == 1 else "")
                + "; a version ends before the next one starts, and nobody serves meanwhile"
            )
        if self.gateway is None:
            found.append(
                "no gateway: all requests go from one version to the next at once, so "
                "`deploy.rollout.steps` can only be [100]"
            )
        if (self.gateway or self.clients) and not self.networks:
            found.append(
                "a deployer outside the cluster asks pods through the API server: where the "
                "cluster enforces NetworkPolicies, name its address in `networks`"
            )
        if self.autoscale and self.autoscale.by == "hpa":
            found.append(
                "`autoscale.by: hpa` needs a metrics adapter, such as prometheus-adapter, that "
                "serves weighbridge_requests_in_flight of pods"
            )
        return found
