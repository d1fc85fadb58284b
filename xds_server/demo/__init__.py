"""The demo: real Envoys, real providers and real load, re-planned every second, twice."""

from xds_server.demo.options import DemoOptions
from xds_server.demo.run import run_demo

__all__ = ["DemoOptions", "run_demo"]
