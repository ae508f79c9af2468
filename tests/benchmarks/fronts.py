"""Bare fronts, the floor under every server: an answer that never changes, with no framework.

    python -m tests.benchmarks.fronts {uvicorn,granian-asgi,granian-rsgi} PORT

Granian is not among the requirements: it runs where it is installed.
"""

from __future__ import annotations

import sys
from typing import Any

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"2")]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The no-op as an ASGI application: reads the body, answers `ok`."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"ok"})


async def rsgi(scope: Any, protocol: Any) -> None:
    """The same for Granian's own interface."""
    await protocol()
    protocol.response_bytes(200, [("content-type", "text/plain")], b"ok")


def main() -> None:
    front, port = sys.argv[1], int(sys.argv[2])
    if front == "uvicorn":
        import uvicorn

        uvicorn.run(
            asgi,
            host="127.0.0.1",
            port=port,
            loop="uvloop",
            http="httptools",
            interface="asgi3",
            lifespan="off",
            log_level="warning",
            access_log=False,
        )
        return
    from granian import Granian  # type: ignore[import-not-found]
    from granian.constants import Interfaces  # type: ignore[import-not-found]

    interface = {"granian-asgi": Interfaces.ASGINL, "granian-rsgi": Interfaces.RSGI}[front]
    target = "tests.benchmarks.fronts:" + ("rsgi" if interface is Interfaces.RSGI else "asgi")
    Granian(target, address="127.0.0.1", port=port, interface=interface, log_enabled=False).serve()


if __name__ == "__main__":
    main()
