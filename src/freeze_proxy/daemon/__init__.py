"""``freeze-proxy daemon``: on every node, freezes the containers of the pod that asks, and of no other."""
