"""Recordings of xDS streams: written while serving, read by ``xds-server replay``."""
