"""The webhook: puts the sidecar into pods as they are created. ``inject`` decides, purely."""
