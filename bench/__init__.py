"""What freeze-proxy costs, measured: ``python -m bench`` from the root of the repository."""
