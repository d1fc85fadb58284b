"""Versions of resources; they are made where the records are, in ``model``."""

from xds_server.model.versions import content_version, make_resource, type_snapshot

__all__ = ["content_version", "make_resource", "type_snapshot"]
