"""freeze-proxy keeps servers warm without letting them burn CPU between requests."""

__version__ = "0.1.0"
