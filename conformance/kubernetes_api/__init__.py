"""A small stand-in for a Kubernetes cluster: an API server, its controllers, nodes and pods.

Made for whatever talks to a cluster as target `kubernetes` does: `Cluster` starts one in this
process, `Cluster.kubeconfig` leads any client to it. A pod is a small HTTP server at an address of
its own (127.x.y.z), so clients reach it as they would reach a pod.

What it does: GET, LIST, WATCH, POST, PUT, server-side apply with field managers and conflicts,
JSON merge patches, DELETE with preconditions, `resourceVersion` conflicts, 403 by the rules of a
Role, SelfSubjectAccessReview; Deployments that keep as many pods as they say, scheduling by
requests and allocatable resources, image pulls that fail, probes, crashes, preStop and grace,
PodDisruptionBudgets, cordon and drain; logs, and the proxy of pods and services.

What it does not do: ReplicaSets (a Deployment owns its pods itself), foreground deletion,
finalizers, admission, validation and defaults, quotas, autoscalers,
NetworkPolicies (they are stored and not enforced), TLS, logins but for one token. A gateway is a
row of weights that clients of `Cluster.backend` draw from; it refuses a route to a Service that is
not there. Probes are looked at every few milliseconds, whatever their period says, so that a test
takes seconds.
"""
