"""Echoes WebSocket messages; on the path /talk it speaks first and now and then. Listens on ``$PORT``."""

import os
import time

from websockets.sync.server import ServerConnection, serve


def handle(connection: ServerConnection) -> None:
    if connection.request is not None and connection.request.path == "/talk":
        for number in range(3):
            connection.send(f"word {number}")
            time.sleep(0.2)
        return
    for message in connection:
        connection.send(message)


if __name__ == "__main__":
    with serve(handle, "127.0.0.1", int(os.environ["PORT"]), ping_interval=None) as server:
        server.serve_forever()
