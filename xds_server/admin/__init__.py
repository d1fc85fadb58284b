"""HTTP for operators: metrics, health, status and the reasons for every weight."""

from xds_server.admin.app import View, create_admin
from xds_server.admin.server import serve_admin

__all__ = ["View", "create_admin", "serve_admin"]
