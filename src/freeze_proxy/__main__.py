"""``python -m freeze_proxy``."""

from freeze_proxy.cli import main

main(prog_name="freeze-proxy")
