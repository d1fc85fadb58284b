from collections.abc import Iterable as _Iterable
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar

from google.protobuf import any_pb2 as _any_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers

DESCRIPTOR: _descriptor.FileDescriptor

class SetStateRequest(_message.Message):
    __slots__ = ("node", "resources", "version")
    NODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    node: str
    version: str
    resources: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, node: str | None = ..., version: str | None = ..., resources: _Iterable[_any_pb2.Any | _Mapping] | None = ...) -> None: ...

class SetStateResponse(_message.Message):
    __slots__ = ("success",)
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    success: bool
    def __init__(self, success: bool | None = ...) -> None: ...

class clearStateRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: str | None = ...) -> None: ...

class clearStateResponse(_message.Message):
    __slots__ = ("response",)
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    response: str
    def __init__(self, response: str | None = ...) -> None: ...

class ResourceRequest(_message.Message):
    __slots__ = ("node", "resourceName", "typeUrl", "version")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TYPEURL_FIELD_NUMBER: _ClassVar[int]
    RESOURCENAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    node: str
    typeUrl: str
    resourceName: str
    version: str
    def __init__(self, node: str | None = ..., typeUrl: str | None = ..., resourceName: str | None = ..., version: str | None = ...) -> None: ...

class UpdateResourceResponse(_message.Message):
    __slots__ = ("success",)
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    success: bool
    def __init__(self, success: bool | None = ...) -> None: ...

class AddResourceResponse(_message.Message):
    __slots__ = ("success",)
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    success: bool
    def __init__(self, success: bool | None = ...) -> None: ...

class RemoveResourceResponse(_message.Message):
    __slots__ = ("success",)
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    success: bool
    def __init__(self, success: bool | None = ...) -> None: ...
