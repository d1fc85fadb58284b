"""An Envoy-native xDS control plane for applications that come and go."""

__version__ = "0.1.0"
