"""The services that tools expect of every gRPC server: health, and reflection."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc

# Imported for their descriptors, which reflection shows.
from envoy.service.cluster.v3 import cds_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2  # noqa: F401
from envoy.service.endpoint.v3 import eds_pb2  # noqa: F401
from envoy.service.extension.v3 import config_discovery_pb2  # noqa: F401
from envoy.service.listener.v3 import lds_pb2  # noqa: F401
from envoy.service.load_stats.v3 import lrs_pb2  # noqa: F401
from envoy.service.route.v3 import rds_pb2, srds_pb2  # noqa: F401
from envoy.service.runtime.v3 import rtds_pb2  # noqa: F401
from envoy.service.secret.v3 import sds_pb2  # noqa: F401
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from xds_server.wire import ads, client_status, load_stats, registry_service

HEALTH = health.SERVICE_NAME
_MORE = (client_status.SERVICE, registry_service.SERVICE)
Handler: TypeAlias = grpc.GenericRpcHandler


class Health:
    """``grpc.health.v1``: of the server as a whole, and of each of its services."""

    def __init__(self, services: Iterable[str] = (*ads.SERVICES, *_MORE)) -> None:
        self._services = ("", *services)
        self._servicer = health.aio.HealthServicer()

    async def set_serving(self, serving: bool) -> None:
        """Tell all who ask or watch."""
        status = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._servicer.set(service, status.SERVING if serving else status.NOT_SERVING)

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a grpc server registers."""
        codec: dict[str, Any] = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._servicer.Check, **codec),
                "Watch": grpc.unary_stream_rpc_method_handler(self._servicer.Watch, **codec),
            },
        )


def reflecting() -> grpc.GenericRpcHandler:
    """Return the reflection service: what is served, for grpcurl and its like."""
    names = (*ads.SERVICES, *_MORE, load_stats.SERVICE, HEALTH)
    servicer = ReflectionServicer((*names, reflection.SERVICE_NAME))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
    )
