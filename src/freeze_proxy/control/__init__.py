"""The wire between a sidecar and the daemon of its node: what is said, and how each side says it."""
