"""Schemas of what Kubernetes itself does not know: custom resources, and SkyPilot's file.

Nobody publishes these for Python, so what is here is written after the sources named at each, with
all fields that they know at the levels that we write: a misspelt field is refused, as the cluster
would refuse it or, worse, drop it. What has a pod in it is held against Kubernetes' own schema too.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Duration = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]
IntOrPercent = int | Annotated[str, StringConstraints(pattern=r"^[0-9]+%?$")]
Anything = Any
"""Valid, never written by us, and not looked into."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectMeta(_Strict):
    """What we write of an object's metadata."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


# Gateway API, kubernetes-sigs/gateway-api, apis/v1/httproute_types.go and shared_types.go.


class _ParentRef(_Strict):
    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    namespace: str = ""
    name: str
    sectionName: str = ""
    port: int | None = None


class _PathMatch(_Strict):
    type: Literal["Exact", "PathPrefix", "RegularExpression"] = "PathPrefix"
    value: str = "/"


class _ValueMatch(_Strict):
    type: Literal["Exact", "RegularExpression"] = "Exact"
    name: str
    value: str


class _RouteMatch(_Strict):
    path: _PathMatch | None = None
    headers: list[_ValueMatch] = Field(default_factory=list, max_length=16)
    queryParams: list[_ValueMatch] = Field(default_factory=list, max_length=16)
    method: str = ""


class _BackendRef(_Strict):
    group: str = ""
    kind: str = "Service"
    name: str
    namespace: str = ""
    port: int | None = Field(None, ge=1, le=65535)
    weight: int = Field(1, ge=0, le=1_000_000)
    filters: Anything = None


class _Timeouts(_Strict):
    request: Duration = "0s"
    backendRequest: Duration = "0s"


class _RouteRule(_Strict):
    name: str = ""
    matches: list[_RouteMatch] = Field(default_factory=list, max_length=64)
    filters: Anything = None
    backendRefs: list[_BackendRef] = Field(default_factory=list, max_length=16)
    timeouts: _Timeouts | None = None
    retry: Anything = None
    sessionPersistence: Anything = None


class _RouteSpec(_Strict):
    parentRefs: list[_ParentRef] = Field(default_factory=list, max_length=32)
    hostnames: list[str] = Field(default_factory=list, max_length=16)
    rules: list[_RouteRule] = Field(min_length=1, max_length=16)


class HTTPRoute(_Strict):
    """Gateway API 1.x."""

    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: ObjectMeta
    spec: _RouteSpec


# KEDA, kedacore/keda, apis/keda/v1alpha1/scaledobject_types.go.


class _ScaleTarget(_Strict):
    apiVersion: str = "apps/v1"
    kind: str = "Deployment"
    name: str
    envSourceContainerName: str = ""


class _Trigger(_Strict):
    type: str
    name: str = ""
    metadata: Mapping[str, str]
    metricType: Literal["", "AverageValue", "Value", "Utilization"] = ""
    useCachedMetrics: bool = False
    authenticationRef: Anything = None


class _HpaConfig(_Strict):
    name: str = ""
    behavior: Anything = None


class _Advanced(_Strict):
    horizontalPodAutoscalerConfig: _HpaConfig | None = None
    restoreToOriginalReplicaCount: bool = False
    scalingModifiers: Anything = None


class _ScaledObjectSpec(_Strict):
    scaleTargetRef: _ScaleTarget
    pollingInterval: int | None = None
    cooldownPeriod: int | None = None
    initialCooldownPeriod: int | None = None
    idleReplicaCount: int | None = None
    minReplicaCount: int | None = None
    maxReplicaCount: int | None = None
    advanced: _Advanced | None = None
    triggers: list[_Trigger] = Field(min_length=1)
    fallback: Anything = None


class ScaledObject(_Strict):
    """KEDA 2.x."""

    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: ObjectMeta
    spec: _ScaledObjectSpec


# Argo Rollouts, argoproj/argo-rollouts, pkg/apis/rollouts/v1alpha1/types.go; its Gateway API
# plugin, argoproj-labs/rollouts-plugin-trafficrouter-gatewayapi.


class _GatewayPlugin(_Strict):
    httpRoute: str
    namespace: str


class _Plugins(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    gateway: _GatewayPlugin = Field(alias="argoproj-labs/gatewayAPI")


class _TrafficRouting(_Strict):
    plugins: _Plugins
    managedRoutes: Anything = None
    maxTrafficWeight: int | None = None


class _Pause(_Strict):
    duration: int | Duration | None = None


class _Step(_Strict):
    setWeight: int | None = Field(None, ge=0, le=100)
    pause: _Pause | None = None
    setCanaryScale: Anything = None
    analysis: Anything = None
    experiment: Anything = None
    setHeaderRoute: Anything = None
    setMirrorRoute: Anything = None
    plugin: Anything = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("a step does one thing")
        return self


class _Canary(_Strict):
    canaryService: str = ""
    stableService: str = ""
    steps: list[_Step] = Field(default_factory=list)
    maxSurge: IntOrPercent | None = None
    maxUnavailable: IntOrPercent | None = None
    trafficRouting: _TrafficRouting | None = None
    analysis: Anything = None
    antiAffinity: Anything = None
    canaryMetadata: Anything = None
    stableMetadata: Anything = None
    scaleDownDelaySeconds: int | None = None
    abortScaleDownDelaySeconds: int | None = None
    dynamicStableScale: bool = False


class _Strategy(_Strict):
    canary: _Canary


class _Selector(_Strict):
    matchLabels: Mapping[str, str]


class _RolloutSpec(_Strict):
    replicas: int | None = Field(None, ge=0)
    selector: _Selector
    template: Mapping[str, Any]
    minReadySeconds: int = 0
    revisionHistoryLimit: int | None = None
    progressDeadlineSeconds: int | None = None
    progressDeadlineAbort: bool = False
    strategy: _Strategy


class ArgoRollout(_Strict):
    """Argo Rollouts 1.x."""

    apiVersion: Literal["argoproj.io/v1alpha1"]
    kind: Literal["Rollout"]
    metadata: ObjectMeta
    spec: _RolloutSpec


# KServe, kserve/kserve, pkg/apis/serving/v1alpha1/llm_inference_service_types.go; v1alpha2 has the
# same fields.


class _Model(_Strict):
    uri: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://.+$")]
    name: str = ""
    criticality: Literal["Critical", "Standard", "Sheddable"] | None = None
    lora: Anything = None


class _Initializer(_Strict):
    enabled: bool


class _GatewayRef(_Strict):
    name: str
    namespace: str = ""
    sectionName: str = ""


class _Gateway(_Strict):
    refs: list[_GatewayRef] = Field(default_factory=list)


class _Router(_Strict):
    route: Mapping[str, Any] | None = None
    gateway: _Gateway | None = None
    ingress: Anything = None
    scheduler: Anything = None


class _ServiceStrategy(_Strict):
    maxUnavailable: IntOrPercent | None = None
    maxSurge: IntOrPercent | None = None


class _InferenceSpec(_Strict):
    model: _Model
    runtime: str | None = None
    trustRemoteCode: bool = False
    storageInitializer: _Initializer | None = None
    replicas: int | None = Field(None, ge=0)
    scaling: Anything = None
    parallelism: Anything = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    template: Mapping[str, Any] | None = None
    worker: Anything = None
    rolloutStrategy: _ServiceStrategy | None = None
    router: _Router | None = None
    prefill: Anything = None
    tracing: Anything = None
    baseRefs: Anything = None

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.replicas is not None and self.scaling is not None:
            raise ValueError("replicas and scaling exclude each other")
        return self


class LLMInferenceService(_Strict):
    """KServe 0.16 and later."""

    apiVersion: Literal["serving.kserve.io/v1alpha1"]
    kind: Literal["LLMInferenceService"]
    metadata: ObjectMeta
    spec: _InferenceSpec


# SkyPilot, skypilot-org/skypilot, sky/utils/schemas.py: get_task_schema, get_service_schema and
# the schema of resources.


class _SkyResources(_Strict):
    infra: str = ""
    cpus: int | str | None = None
    memory: int | str | None = None
    accelerators: str | Mapping[str, float] | None = None
    disk_size: int | str | None = None
    image_id: str = ""
    ports: int | str | list[int | str] | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    use_spot: bool = False


class _SkyProbe(_Strict):
    path: str
    initial_delay_seconds: float | None = None
    timeout_seconds: float | None = None
    post_data: Anything = None
    headers: Mapping[str, str] = Field(default_factory=dict)


class _SkyService(_Strict):
    readiness_probe: _SkyProbe
    replicas: int | None = None
    replica_policy: Anything = None
    ports: int | None = None
    load_balancing_policy: str = ""
    tls: Anything = None


class SkyTask(_Strict):
    """SkyPilot's file of a task with a service."""

    name: str
    resources: _SkyResources
    service: _SkyService
    envs: dict[str, str | None] = Field(default_factory=dict)
    secrets: dict[str, str | None] = Field(default_factory=dict)
    setup: str = ""
    run: str


CUSTOM: Final[Mapping[tuple[str, str], type[BaseModel]]] = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTPRoute,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("argoproj.io/v1alpha1", "Rollout"): ArgoRollout,
    ("serving.kserve.io/v1alpha1", "LLMInferenceService"): LLMInferenceService,
}
"""The custom resources that we write, by apiVersion and kind."""


def pod_spec_in(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the pod that a custom resource has in it; None where it has none."""
    spec = manifest["spec"]
    if manifest["kind"] == "Rollout":
        pod: Mapping[str, Any] = spec["template"]["spec"]
        return pod
    return spec.get("template") if manifest["kind"] == "LLMInferenceService" else None
