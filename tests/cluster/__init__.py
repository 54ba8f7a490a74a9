"""End to end on a real Kubernetes with Knative Serving: ``make cluster-test``; see docs/cluster-test.md."""
