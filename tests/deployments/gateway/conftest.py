"""One HTTP and one gRPC server for the tests that leave the limits alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deployments.gateway.engines import Served, served_grpc, served_http


@pytest.fixture(scope="module")
def http() -> Iterator[Served]:
    with served_http() as served:
        yield served


@pytest.fixture(scope="module")
def grpc_served() -> Iterator[Served]:
    with served_grpc() as served:
        yield served
