"""The services that tools expect of every gRPC server: health, and reflection."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc

# Imported for their descriptors, which reflection shows.
from envoy.service.accesslog.v3 import als_pb2  # noqa: F401
from envoy.service.cluster.v3 import cds_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2  # noqa: F401
from envoy.service.endpoint.v3 import eds_pb2  # noqa: F401
from envoy.service.extension.v3 import config_discovery_pb2  # noqa: F401
from envoy.service.listener.v3 import lds_pb2  # noqa: F401
from envoy.service.load_stats.v3 import lrs_pb2  # noqa: F401
from envoy.service.route.v3 import rds_pb2, srds_pb2  # noqa: F401
from envoy.service.runtime.v3 import rtds_pb2  # noqa: F401
from envoy.service.secret.v3 import sds_pb2  # noqa: F401
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from xds_server.generated import xds_server_otlp_pb2 as otlp_pb2
from xds_server.wire import (
    access_log_service,
    ads,
    client_status,
    load_stats,
    otlp_service,
    registry_service,
)

HEALTH = health.SERVICE_NAME
_MORE = (client_status.SERVICE, registry_service.SERVICE)
_TELEMETRY = (load_stats.SERVICE, access_log_service.SERVICE, otlp_service.SERVICE)
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
    _describe_otlp()
    names = (*ads.SERVICES, *_MORE, *_TELEMETRY, HEALTH)
    servicer = ReflectionServicer((*names, reflection.SERVICE_NAME))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
    )


def _describe_otlp() -> None:
    """Register OTLP's service with our messages: xds-protos has it as it was in 2021."""
    package, _, name = otlp_service.SERVICE.rpartition(".")
    messages = otlp_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="xds_server_otlp_service.proto",
        package=package,
        dependency=[messages.name],
        syntax="proto3",
    )
    file.service.add(name=name).method.add(
        name="Export",
        input_type=f".{messages.package}.ExportMetricsServiceRequest",
        output_type=f".{messages.package}.ExportMetricsServiceResponse",
    )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
