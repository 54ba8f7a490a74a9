"""Freezing pods that are left as their owners wrote them: no sidecar, no webhook."""
