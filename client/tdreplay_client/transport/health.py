"""Whether a server serves: one call, and nothing heavier than gRPC to make it."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tdreplay.limits import check_seconds
from tdreplay_client.transport.access import OPEN, Access
from tdreplay_client.transport.channels import open_channel

__all__ = ["serves"]


def serves(address: str, timeout: float, service: str = "", access: Access = OPEN) -> tuple[bool, str]:
    """Asks grpc.health.v1 at `address`, for at most `timeout` seconds. Whether it serves, and what it said, or how it failed.

    Raises:
        InvalidArgumentError: address or timeout breaks its rule.
    """
    seconds = check_seconds(timeout, "timeout")
    with open_channel(address, access) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
    return answer.status == health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
