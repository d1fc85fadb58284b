import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadStatsRequest(_message.Message):
    __slots__ = ("node", "cluster_stats")
    NODE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_STATS_FIELD_NUMBER: _ClassVar[int]
    node: bytes
    cluster_stats: _containers.RepeatedCompositeFieldContainer[ClusterStats]
    def __init__(self, node: _Optional[bytes] = ..., cluster_stats: _Optional[_Iterable[_Union[ClusterStats, _Mapping]]] = ...) -> None: ...

class ClusterStats(_message.Message):
    __slots__ = ("cluster_name", "upstream_locality_stats", "load_report_interval")
    CLUSTER_NAME_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_LOCALITY_STATS_FIELD_NUMBER: _ClassVar[int]
    LOAD_REPORT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    cluster_name: str
    upstream_locality_stats: _containers.RepeatedCompositeFieldContainer[UpstreamLocalityStats]
    load_report_interval: _duration_pb2.Duration
    def __init__(self, cluster_name: _Optional[str] = ..., upstream_locality_stats: _Optional[_Iterable[_Union[UpstreamLocalityStats, _Mapping]]] = ..., load_report_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UpstreamLocalityStats(_message.Message):
    __slots__ = ("total_successful_requests", "total_error_requests", "load_metric_stats", "cpu_utilization", "mem_utilization", "application_utilization")
    TOTAL_SUCCESSFUL_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_ERROR_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_METRIC_STATS_FIELD_NUMBER: _ClassVar[int]
    CPU_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    MEM_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    total_successful_requests: int
    total_error_requests: int
    load_metric_stats: _containers.RepeatedCompositeFieldContainer[EndpointLoadMetricStats]
    cpu_utilization: UnnamedEndpointLoadMetricStats
    mem_utilization: UnnamedEndpointLoadMetricStats
    application_utilization: UnnamedEndpointLoadMetricStats
    def __init__(self, total_successful_requests: _Optional[int] = ..., total_error_requests: _Optional[int] = ..., load_metric_stats: _Optional[_Iterable[_Union[EndpointLoadMetricStats, _Mapping]]] = ..., cpu_utilization: _Optional[_Union[UnnamedEndpointLoadMetricStats, _Mapping]] = ..., mem_utilization: _Optional[_Union[UnnamedEndpointLoadMetricStats, _Mapping]] = ..., application_utilization: _Optional[_Union[UnnamedEndpointLoadMetricStats, _Mapping]] = ...) -> None: ...

class EndpointLoadMetricStats(_message.Message):
    __slots__ = ("metric_name", "num_requests_finished_with_metric", "total_metric_value")
    METRIC_NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FINISHED_WITH_METRIC_FIELD_NUMBER: _ClassVar[int]
    TOTAL_METRIC_VALUE_FIELD_NUMBER: _ClassVar[int]
    metric_name: str
    num_requests_finished_with_metric: int
    total_metric_value: float
    def __init__(self, metric_name: _Optional[str] = ..., num_requests_finished_with_metric: _Optional[int] = ..., total_metric_value: _Optional[float] = ...) -> None: ...

class UnnamedEndpointLoadMetricStats(_message.Message):
    __slots__ = ("num_requests_finished_with_metric", "total_metric_value")
    NUM_REQUESTS_FINISHED_WITH_METRIC_FIELD_NUMBER: _ClassVar[int]
    TOTAL_METRIC_VALUE_FIELD_NUMBER: _ClassVar[int]
    num_requests_finished_with_metric: int
    total_metric_value: float
    def __init__(self, num_requests_finished_with_metric: _Optional[int] = ..., total_metric_value: _Optional[float] = ...) -> None: ...
