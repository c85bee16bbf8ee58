"""The server of the demo: `python -m lro.demo.server FILE [PORT]`, a Service under uvicorn on loopback.

Prints `listening on PORT` once it takes connections; a free port is chosen if none is given.
"""

import logging
import socket
import sys

import uvicorn

from lro.demo.jobs import archive, digest
from lro.principal import AllowAnonymous
from lro.service import Service

__all__ = ["main"]


def main(database: str, port: int = 0) -> None:
    """Serve the demo's jobs from a database file until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    service = Service(f"sqlite:////{database.lstrip('/')}", jobs=[archive, digest], auth=AllowAnonymous())
    listener = socket.create_server(("127.0.0.1", port))
    sys.stdout.write(f"listening on {listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(service.app(), log_config=None)).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], *(int(port) for port in sys.argv[2:3]))
