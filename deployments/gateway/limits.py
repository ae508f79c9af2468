"""What a gateway lets one client take from the others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from planner.errors import BadCard


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one gateway process, for HTTP and gRPC alike unless said otherwise.

    `read_timeout_s` (HTTP) bounds three things: from the first byte of a request to the end of its headers, each
    pause within a body, and how long a client may leave a written answer untouched. `min_body_bytes_per_s` (HTTP)
    is the slowest a body may come on average, so that a client that drips bytes cannot hold its place for hours.
    """

    max_body_bytes: int = 64 * 1024 * 1024
    max_rows: int = 16_384
    max_header_bytes: int = 64 * 1024
    max_concurrent: int = 4_096
    read_timeout_s: float = 10.0
    min_body_bytes_per_s: float = 16_384.0
    keep_alive_s: float = 75.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise BadCard(f"limit {field.name} is above 0, not {getattr(self, field.name)}.")


@dataclass(slots=True)
class Load:
    """How many requests a gateway's HTTP side has under way, however they came in, of how many at most."""

    most: int
    running: int = 0

    def full(self) -> bool:
        return self.running >= self.most
