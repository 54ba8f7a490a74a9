"""``freeze-proxy sidecar``: what stands in a pod between queue-proxy and the user container."""
