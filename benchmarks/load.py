"""A load generator, a process of its own: `python -m benchmarks.load PORT PATH SECONDS CONNECTIONS`.

Keep-alive connections, each with one request in flight, on plain non-blocking sockets: several times cheaper
a request than the server, which so stays the one that is measured. Prints a line of JSON.
"""

import json
import selectors
import socket
import statistics
import sys
import time

__all__ = ["generate"]

LARGEST = 64 * 1024
OK = b"HTTP/1.1 200"


class _Client:
    """One connection and its request."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.answer = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self, size: int) -> bool:
        """Take what has come and return whether the answer is complete."""
        self.answer += self.socket.recv(LARGEST)
        if len(self.answer) < size and self.answer:
            return False
        if len(self.answer) != size or not self.answer.startswith(OK):
            msg = f"not the answer that was seen first: {self.answer[:200]!r}"
            raise RuntimeError(msg)
        return True

    def measure(self, request: bytes) -> int:
        """Return the size of an answer, the same for all that follow."""
        self.send(request)
        while b"\r\n\r\n" not in self.answer:
            self.answer += self.socket.recv(LARGEST)
        head, _, body = self.answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += self.socket.recv(LARGEST)
        return len(head) + 4 + length


def generate(port: int, path: str, seconds: float, connections: int) -> dict[str, float]:
    """Load the server, and return requests per second and latencies in milliseconds."""
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode()
    selector = selectors.DefaultSelector()
    clients = [_Client(port) for _ in range(connections)]
    size = clients[0].measure(request)
    for client in clients:
        client.socket.setblocking(False)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send(request)
    taken: list[float] = []
    began = time.perf_counter()
    until = began + seconds
    while (now := time.perf_counter()) < until:
        for key, _ in selector.select(1.0):
            client = key.data
            if client.receive(size):
                taken.append(time.perf_counter() - client.sent_at)
                client.send(request)
    elapsed = now - began
    for client in clients:
        client.socket.close()
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"rate": len(taken) / elapsed, "p50": cuts[49] * 1000, "p99": cuts[98] * 1000}


if __name__ == "__main__":
    print(json.dumps(generate(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
