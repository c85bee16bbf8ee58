"""Serves tests.apps.shared:draining, and notes in the file `threads` which there are when the server is through, and
when Python itself ends, which it does once no thread but daemons is left."""

import atexit
import json
import signal
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from tests.apps.shared import draining


def look(when: str) -> None:
    with Path("threads").open("a") as threads:
        threads.write(json.dumps([when, [thread.name for thread in threading.enumerate()]]) + "\n")


def end(number: int, frame: FrameType | None) -> None:
    """Handle the signal as uvicorn found it, which raises it again after it has shut down in good order."""
    del frame
    look("served")
    raise SystemExit(128 + number)


if __name__ == "__main__":
    atexit.register(look, "ended")
    signal.signal(signal.SIGTERM, end)
    uvicorn.run(draining, port=0, access_log=False)
