"""A complete sidecar bootstrap for one node of one application."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from xds_server.model.telemetry import LATENCY_BUCKETS_MS
from xds_server.model.topology import Address, Mesh, StatsSink
from xds_server.resources.common import parse_address
from xds_server.resources.runtime import LAYER

Json: TypeAlias = dict[str, Any]

SETTINGS: Final[Mapping[str, str]] = {
    "admin.address": "where Envoy's admin interface listens; default 127.0.0.1:9901",
    "xds.address": "where this sidecar reaches the control plane; default server.xds.address",
    "api": "delta or sotw; default delta",
    "locality.region": "node.locality.region",
    "locality.zone": "node.locality.zone",
    "locality.sub_zone": "node.locality.sub_zone",
    "template": "a template instead of the application's own",
    "listeners.SERVICE": "where this sidecar listens for SERVICE, instead of the call's listener",
    "metadata.KEY": "any other key of node.metadata",
    "max_connections": "downstream connections before Envoy refuses more; default 50000",
    "tls.cert": "client certificate (PEM) for the control plane",
    "tls.key": "its private key (PEM)",
    "tls.ca": "authority (PEM) that signed the control plane's certificate",
    "tls.san": "DNS name that the control plane's certificate must have; default: not checked",
}
"""Keys of ``--set``, with what they do."""

CLUSTER: Final = "xds"
_UPSTREAM_STATS: Final = (
    "upstream_rq_total",
    "upstream_rq_time",
    "upstream_rq_active",
    "upstream_rq_5xx",
    "upstream_rq_retry",
    "upstream_rq_timeout",
    "upstream_rq_rx_reset",
    "upstream_rq_pending_failure_eject",
    "upstream_rq_cancelled",
    "upstream_cx_connect_fail",
    "upstream_cx_none_healthy",
    "upstream_cx_rx_bytes_total",
    "upstream_cx_tx_bytes_total",
    "membership_healthy",
)


def render_bootstrap(
    mesh: Mesh, application: str, node_id: str, settings: Mapping[str, str] | None = None
) -> Json:
    """Return the bootstrap as plain data, ready to be written as YAML or JSON.

    Raises ValueError for an unknown application, an unknown setting or an unusable value,
    with what would be right.
    """
    chosen = dict(settings or {})
    check_settings(mesh, application, node_id, chosen)
    xds = parse_address(chosen["xds.address"]) if "xds.address" in chosen else mesh.server.xds
    admin = parse_address(chosen.get("admin.address", "127.0.0.1:9901"))
    return {
        "node": node_of(application, node_id, chosen),
        "admin": {"address": _address(admin)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": {"delta": "DELTA_GRPC", "sotw": "GRPC"}[chosen.get("api", "delta")],
                "transport_api_version": "V3",
                # Without it every ACK repeats the node with its 500 extensions: 61 KB.
                "set_node_on_first_message_only": True,
                "grpc_services": [_fast_retry()],
            },
            "cds_config": _ads(),
            "lds_config": _ads(),
        },
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {}},
                {"name": LAYER, "rtds_layer": {"name": LAYER, "rtds_config": _ads()}},
                {"name": "admin", "admin_layer": {}},
            ]
        },
        "static_resources": {"clusters": [_xds_cluster(xds, chosen)]},
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [_grpc()],
            }
        },
        "stats_flush_interval": f"{mesh.telemetry.stats_flush_interval_s:g}s",
        "stats_config": _stats_config(),
        "stats_sinks": [_sink(mesh.telemetry.sink, application, node_id)],
        "overload_manager": _overload(int(chosen.get("max_connections", "50000"))),
    }


def check_settings(mesh: Mesh, application: str, node_id: str, settings: Mapping[str, str]) -> None:
    """Refuse what would be ignored or could not work. Raises ValueError."""
    if application not in mesh.applications:
        known_names = ", ".join(sorted(mesh.applications)) or "none"
        raise ValueError(
            f"application {application!r} is not configured; configured are: {known_names}"
        )
    if not node_id:
        raise ValueError("the node needs an id: --node N")
    if "template" in settings and settings["template"] not in mesh.templates:
        known_names = ", ".join(sorted(mesh.templates))
        raise ValueError(f"template {settings['template']!r}; configured are: {known_names}")
    template = mesh.applications[application].template
    if "template" in settings:
        template = mesh.templates[settings["template"]]
    services = {c.service for c in template.calls}
    for key, value in settings.items():
        prefix, _, rest = key.partition(".")
        known = key in SETTINGS or (prefix in ("listeners", "metadata") and rest)
        if not known or key in ("listeners.SERVICE", "metadata.KEY"):
            near = get_close_matches(key, SETTINGS, n=3) or sorted(SETTINGS)
            raise ValueError(f"unknown setting {key!r}; did you mean: {', '.join(near)}")
        if prefix == "listeners":
            if rest not in services:
                raise ValueError(
                    f"{key}: {application} does not call {rest!r}; it calls: "
                    + ", ".join(sorted(services))
                )
            parse_address(value)
    if settings.get("api", "delta") not in ("delta", "sotw"):
        raise ValueError(f"api is {settings['api']!r}; write delta or sotw")
    limit = settings.get("max_connections", "1")
    if not limit.isdigit() or int(limit) < 1:
        raise ValueError(f"max_connections is {limit!r}; write a whole number above 0")
    secured = any(key.startswith("tls.") for key in settings)
    if mesh.server.xds_tls is not None and "tls.ca" not in settings:
        raise ValueError("server.xds has tls: add --set tls.ca=... (and tls.cert, tls.key)")
    if mesh.server.xds_tls is None and secured:
        raise ValueError("server.xds has no tls: drop the tls.* settings or configure it")
    if ("tls.cert" in settings) != ("tls.key" in settings):
        raise ValueError("tls.cert and tls.key go together")


def node_of(application: str, node_id: str, settings: Mapping[str, str]) -> Json:
    """Return what the client is to say of itself."""
    locality = {
        level: settings[f"locality.{level}"]
        for level in ("region", "zone", "sub_zone")
        if f"locality.{level}" in settings
    }
    listeners = _below(settings, "listeners.")
    metadata: Json = dict(_below(settings, "metadata."))
    if listeners:
        metadata["listeners"] = listeners
    if "template" in settings:
        metadata["template"] = settings["template"]
    node: Json = {"id": node_id, "cluster": application}
    if locality:
        node["locality"] = locality
    if metadata:
        node["metadata"] = metadata
    return node


def _below(settings: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}


def _ads() -> Json:
    return {"resource_api_version": "V3", "ads": {}}


def _grpc() -> Json:
    return {"envoy_grpc": {"cluster_name": CLUSTER}}


def _fast_retry() -> Json:
    """Come back within a second, not within the default's half minute."""
    back_off = {"base_interval": "0.1s", "max_interval": "1s"}
    return {
        "envoy_grpc": {"cluster_name": CLUSTER, "retry_policy": {"retry_back_off": back_off}},
    }


def _address(address: Address) -> Json:
    if address.is_pipe:
        return {"pipe": {"path": address.host.removeprefix("unix:")}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _xds_cluster(address: Address, settings: Mapping[str, str]) -> Json:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    keepalive = {"interval": "5s", "timeout": "2s"}
    cluster: Json = {
        "name": CLUSTER,
        "type": "STATIC" if address.is_pipe or _is_ip(address.host) else "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": keepalive}
                },
            }
        },
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
    }
    if "tls.ca" in settings:
        cluster["transport_socket"] = _tls(settings)
    return cluster


def _is_ip(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _tls(settings: Mapping[str, str]) -> Json:
    validation: Json = {"trusted_ca": {"filename": settings["tls.ca"]}}
    if "tls.san" in settings:
        san = {"san_type": "DNS", "matcher": {"exact": settings["tls.san"]}}
        validation["match_typed_subject_alt_names"] = [san]
    context: Json = {"alpn_protocols": ["h2"], "validation_context": validation}
    if "tls.cert" in settings:
        context["tls_certificates"] = [
            {
                "certificate_chain": {"filename": settings["tls.cert"]},
                "private_key": {"filename": settings["tls.key"]},
            }
        ]
    tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    typed: Json = {"@type": f"type.googleapis.com/{tls}", "common_tls_context": context}
    if "tls.san" in settings:
        typed["sni"] = settings["tls.san"]
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def _stats_config() -> Json:
    """Keep what the control plane reads, and what an operator looks for first; no more.

    The matcher decides what exists at all: each kept upstream statistic costs its bytes
    once per flush, so the list is short.
    """
    upstream = "|".join(_UPSTREAM_STATS)
    return {
        "stats_matcher": {
            "inclusion_list": {
                "patterns": [
                    {"safe_regex": {"regex": rf"cluster\.[^.]+\.({upstream})"}},
                    {"safe_regex": {"regex": r"http\..*\.downstream_rq_(total|5xx)"}},
                    {"safe_regex": {"regex": r"http\..*\.no_(cluster|route)"}},
                    {"prefix": "control_plane."},
                    {"prefix": "runtime."},
                ]
            }
        },
        "histogram_bucket_settings": [
            {
                "match": {"safe_regex": {"regex": r"cluster\..*upstream_rq_time"}},
                "buckets": list(LATENCY_BUCKETS_MS),
            }
        ],
    }


def _sink(sink: StatsSink, application: str, node_id: str) -> Json:
    """Cumulative counters: what is lost with a message is in the next one."""
    if sink is StatsSink.OPEN_TELEMETRY:
        return _open_telemetry(application, node_id)
    kind = "envoy.config.metrics.v3.MetricsServiceConfig"
    return {
        "name": "envoy.stat_sinks.metrics_service",
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "transport_api_version": "V3",
            "grpc_service": _grpc(),
            "report_counters_as_deltas": False,
            "emit_tags_as_labels": True,
            "histogram_emit_mode": "HISTOGRAM",
        },
    }


def _open_telemetry(application: str, node_id: str) -> Json:
    """OTLP says nothing of the node by itself, so a resource attribute has its id."""
    kind = "envoy.extensions.stat_sinks.open_telemetry.v3.SinkConfig"
    detectors = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3"
    static = {
        "name": "envoy.tracers.opentelemetry.resource_detectors.static_config",
        "typed_config": {
            "@type": f"type.googleapis.com/{detectors}.StaticConfigResourceDetectorConfig",
            "attributes": {"service.name": application, "service.instance.id": node_id},
        },
    }
    return {
        "name": "envoy.stat_sinks.open_telemetry",
        "typed_config": {
            "@type": f"type.googleapis.com/{kind}",
            "grpc_service": _grpc(),
            "report_counters_as_deltas": False,
            "report_histograms_as_deltas": False,
            "emit_tags_as_attributes": True,
            "use_tag_extracted_name": True,
            "resource_detectors": [static],
        },
    }


def _overload(connections: int) -> Json:
    kind = (
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    )
    return {
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": f"type.googleapis.com/{kind}",
                    "max_active_downstream_connections": connections,
                },
            }
        ]
    }
