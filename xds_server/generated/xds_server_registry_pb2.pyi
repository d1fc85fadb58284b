from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Locality(_message.Message):
    __slots__ = ("region", "zone", "sub_zone")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    SUB_ZONE_FIELD_NUMBER: _ClassVar[int]
    region: str
    zone: str
    sub_zone: str
    def __init__(self, region: _Optional[str] = ..., zone: _Optional[str] = ..., sub_zone: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("utilisation_ratio", "price_per_million_requests_usd")
    UTILISATION_RATIO_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_MILLION_REQUESTS_USD_FIELD_NUMBER: _ClassVar[int]
    utilisation_ratio: float
    price_per_million_requests_usd: float
    def __init__(self, utilisation_ratio: _Optional[float] = ..., price_per_million_requests_usd: _Optional[float] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("provider", "address", "port", "locality", "capabilities", "capacity_rps", "load", "ttl_s")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_RPS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    provider: str
    address: str
    port: int
    locality: Locality
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    capacity_rps: float
    load: Load
    ttl_s: float
    def __init__(self, provider: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ..., locality: _Optional[_Union[Locality, _Mapping]] = ..., capabilities: _Optional[_Iterable[str]] = ..., capacity_rps: _Optional[float] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("lease_id", "ttl_s", "heartbeat_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    ttl_s: float
    heartbeat_s: float
    def __init__(self, lease_id: _Optional[str] = ..., ttl_s: _Optional[float] = ..., heartbeat_s: _Optional[float] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("lease_id", "load")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    load: Load
    def __init__(self, lease_id: _Optional[str] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("ttl_s", "heartbeat_s")
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    ttl_s: float
    heartbeat_s: float
    def __init__(self, ttl_s: _Optional[float] = ..., heartbeat_s: _Optional[float] = ...) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class DeregisterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("service", "provider")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    service: str
    provider: str
    def __init__(self, service: _Optional[str] = ..., provider: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("endpoints",)
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    def __init__(self, endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("service", "provider")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    service: str
    provider: str
    def __init__(self, service: _Optional[str] = ..., provider: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("full", "endpoints", "gone")
    FULL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    full: bool
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    gone: _containers.RepeatedCompositeFieldContainer[EndpointKey]
    def __init__(self, full: _Optional[bool] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., gone: _Optional[_Iterable[_Union[EndpointKey, _Mapping]]] = ...) -> None: ...

class EndpointKey(_message.Message):
    __slots__ = ("provider", "address", "port")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    provider: str
    address: str
    port: int
    def __init__(self, provider: _Optional[str] = ..., address: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("service", "key", "source", "locality", "capabilities", "capacity_rps", "load", "registered_s", "heard_s", "expires_in_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_RPS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_S_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    key: EndpointKey
    source: str
    locality: Locality
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    capacity_rps: float
    load: Load
    registered_s: float
    heard_s: float
    expires_in_s: float
    def __init__(self, service: _Optional[str] = ..., key: _Optional[_Union[EndpointKey, _Mapping]] = ..., source: _Optional[str] = ..., locality: _Optional[_Union[Locality, _Mapping]] = ..., capabilities: _Optional[_Iterable[str]] = ..., capacity_rps: _Optional[float] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., registered_s: _Optional[float] = ..., heard_s: _Optional[float] = ..., expires_in_s: _Optional[float] = ...) -> None: ...
