"""Envoy resources of people's own: what is read, and what is refused with which words."""

from pathlib import Path

import pytest

from xds_server.config import load_mesh
from xds_server.config.own.checks import CONTROL_PLANE, RUNTIME_LAYER
from xds_server.errors import ConfigError, Problem
from xds_server.model.extra import NodeSelector
from xds_server.model.ids import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SRDS, VHDS
from xds_server.model.snapshot import Resource
from xds_server.model.topology import Mesh
from xds_server.resources import bootstrap, runtime
from xds_server.resources.mesh import MeshResources

MESH = """\
mesh: m
services:
  search: {providers: {search-a: {endpoints: [{address: 127.0.0.1, port: 9001}]}}}
  pay: {providers: {pay-a: {endpoints: [{address: 127.0.0.1, port: 9002}]}}}
templates:
  web: {calls: {search: {}}, profiles: {steady: {}}}
  back: {calls: {pay: {}}, profiles: {steady: {}}}
applications: {shop: {template: web}, ledger: {template: back}}
"""
T = "type.googleapis.com"
HCM = f"{T}/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ADS = "{resource_api_version: V3, ads: {}}"
CLUSTER = f'{{"@type": "{CDS}", name: %s, type: STATIC}}'
ROUTES = f"""\
"@type": {RDS}
name: r
virtual_hosts:
- name: all
  domains: ["*"]
  routes:
  - match: {{prefix: /}}
    route: {{%s}}
"""


def listener(routes: str = "route_config: {name: inline}", filters: str = "", tls: str = "") -> str:
    return f"""\
"@type": {LDS}
name: own
address: {{socket_address: {{address: 127.0.0.1, port_value: 15999}}}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": {HCM}
      stat_prefix: own
      {routes}
      http_filters: [{filters}]
  {tls}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, *texts: str, entries: str = "", mesh: str = MESH) -> Mesh:
    """Write one file per text, each in an entry of its own unless told otherwise."""
    for i, text in enumerate(texts):
        (folder / f"own{i}.yaml").write_text(text)
    listed = entries or "\n".join(f"- path: own{i}.yaml" for i in range(len(texts)))
    (folder / "mesh.yaml").write_text(f"{mesh}resources:\n{listed}\n")
    return load_mesh(folder / "mesh.yaml")


def refused(folder: Path, *texts: str, entries: str = "", mesh: str = MESH) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, *texts, entries=entries, mesh=mesh)
    return caught.value.problems


def only(problems: tuple[Problem, ...], key: str, message: str, remedy: str = "") -> Problem:
    (problem,) = problems
    assert key in problem.key, problem
    assert message in problem.message, problem
    assert remedy in problem.remedy, problem
    return problem


def resources(mesh: Mesh) -> dict[tuple[str, str], Resource]:
    return {(url, r.name): r for s in mesh.resources for url, rs in s.resources.items() for r in rs}


@pytest.mark.parametrize(
    "text",
    [
        CLUSTER % "c",
        f"- {CLUSTER % 'c'}",
        f"resources: [{CLUSTER % 'c'}]",
        f"version_info: '1'\nresources:\n- {CLUSTER % 'c'}",
        "static_resources: {clusters: [{name: c, type: STATIC}]}",
        f"---\n{CLUSTER % 'c'}\n---\n",
        f'{{"@type": "{CDS}",\n\t"name": "c",\n\t"type": "STATIC", "connectTimeout": "1s"}}',
    ],
    ids=["one", "list", "discovery", "version", "bootstrap", "documents", "json"],
)
def test_every_shape_that_envoy_users_have_is_read(folder: Path, text: str) -> None:
    (folder / "own.json").write_text(text)
    mesh = load(folder, entries="- path: own.json")
    assert list(resources(mesh)) == [(CDS, "c")]


def test_all_nine_types_are_read_with_their_names(folder: Path) -> None:
    mesh = load(
        folder,
        f"""\
- {CLUSTER % "c"}
- {{"@type": {EDS}, cluster_name: c2}}
- {{"@type": {LDS}, name: l}}
- {{"@type": {RDS}, name: r, vhds: {{config_source: {ADS}}}}}
- {{"@type": {SRDS}, name: s, route_configuration_name: r}}
- {{"@type": {VHDS}, name: r/v, domains: [a.example, "*.example"]}}
- {{"@type": {SDS}, name: secret, generic_secret: {{secret: {{inline_string: x}}}}}}
- {{"@type": {RTDS}, name: layer, layer: {{a.b: 1}}}}
- "@type": {ECDS}
  name: e
  typed_config: {{"@type": {T}/envoy.extensions.filters.http.router.v3.Router}}
""",
    )
    found = resources(mesh)
    assert set(found) == {
        (CDS, "c"), (EDS, "c2"), (LDS, "l"), (RDS, "r"), (SRDS, "s"), (VHDS, "r/v"),
        (SDS, "secret"), (RTDS, "layer"), (ECDS, "e"),
    }  # fmt: skip
    assert found[VHDS, "r/v"].aliases == ("r/a.example", "r/*.example")


def test_a_cluster_says_which_assignments_it_needs(folder: Path) -> None:
    text = f"""\
- {{"@type": {CDS}, name: a, type: EDS, eds_cluster_config: {{eds_config: {ADS}}}}}
- "@type": {CDS}
  name: b
  type: EDS
  eds_cluster_config: {{service_name: other, eds_config: {ADS}}}
- {{"@type": {EDS}, cluster_name: a}}
- {{"@type": {EDS}, cluster_name: other}}
"""
    found = resources(load(folder, text))
    assert found[CDS, "a"].needs == ()
    assert found[CDS, "b"].needs == ("other",)


def test_a_folder_is_read_sorted_without_hidden_files_and_other_kinds(folder: Path) -> None:
    (folder / "own" / "sub").mkdir(parents=True)
    for name in ("b.yaml", "a.json", "c.yml"):
        (folder / "own" / name).write_text(CLUSTER % name[0])
    for name in (".d.yaml", "e.txt", "sub/f.yaml"):
        (folder / "own" / name).write_text("not: read")
    mesh = load(folder, entries="- path: ./own")
    assert [name for _, name in resources(mesh)] == ["a", "b", "c"]


def test_a_selector_and_on_demand_come_from_the_entry(folder: Path) -> None:
    entry = (
        "- {path: own0.yaml, on_demand: true, nodes: {id: 'edge-*', cluster: shop,"
        " locality: {region: here}, metadata: {tier: gold, a: {b: 1}}}}"
    )
    mesh = load(folder, CLUSTER % "c", entries=entry)
    assert mesh.resources[0].selector == NodeSelector(
        "edge-*", "shop", "here", metadata={"tier": "gold", "a": {"b": 1}}
    )
    assert resources(mesh)[CDS, "c"].on_demand


FORM = [
    ("", "(file)", "is empty", "write a resource"),
    ("a: [", "(file)", "not YAML", ""),
    ("5", "(file)", "no resource", "@type"),
    ("name: c", "(file)", "no @type", "static_resources"),
    ("- name: c", "0", "no @type", ""),
    ("resources: {}", "resources", "not a list", ""),
    ("resources: []\nnode: {}", "node", "no place", "remove"),
    ("static_resources: {}\nadmin: {}", "admin", "no place", "bootstrap"),
    ("static_resources: {cluster: []}", "static_resources.cluster", "no key", "`clusters`"),
    ('"@type": envoy.config.cluster.v3.Cluster', "@type", "not a type URL", T),
    (f'"@type": {T}/envoy.api.v2.Cluster', "@type", "no message", "v3"),
    (f'"@type": {CDS}r', "@type", "no message", "Cluster`"),
    (f'"@type": {T}/envoy.config.cluster.v3.Filter', "@type", "no type of resource", ""),
    (f'"@type": {T}/os.path', "@type", "no message", "spelling"),
    (f'"@type": {CDS}', "name", "is missing", "name the resource"),
    (f'"@type": {CDS}\nname: a\nlb_polciy: RANDOM', "lb_polciy", "no field", "`lb_policy`"),
    (f'"@type": {CDS}\nname: a\nlb_policy: RANDON', "lb_policy", "enum", "`RANDOM`"),
    (f'"@type": {CDS}\nname: a\nconnect_timeout: 1m', "connect_timeout", "Duration", "0.25s"),
    (f'"@type": {CDS}\nname: 1', "name", "string", '"1"'),
    (f'"@type": {CDS}\nname: a\nhealth_checks: {{}}', "health_checks", "not a list", ""),
    (f'"@type": {CDS}\nname: a\ntype: EDS', "eds_cluster_config", "no eds_config", "ads"),
    (f'"@type": {VHDS}\nname: v\ndomains: [a]', "name", "after its RouteConf", ">/v`"),
    (f'"@type": {SRDS}\nname: s', "(file)", "route_configuration_name", ""),
    (listener("rds: {config_source: {ads: {}}}"), "rds.route_config_name", "is missing", ""),
    (listener().replace("stat_prefix", "stat_prefx"), "stat_prefx", "no field", "stat_prefix"),
    (listener(filters="{name: a, typed_config: {x: 1}}"), "typed_config", "no @type", ""),
    (
        listener(filters=f'{{name: a, typed_config: {{"@type": {T}/envoy.api.v2.Cluster}}}}'),
        "typed_config.@type", "no message", "v3",
    ),
    (
        listener(filters=f'{{name: a, typed_config: {{"@type": {T}/envoy.extensions.filters.http.'
                 "router.v3.Route}}"),
        "typed_config.@type", "no message", "Router`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "message", "remedy"), FORM)
def test_a_fault_of_form_names_key_and_remedy(
    folder: Path, text: str, key: str, message: str, remedy: str
) -> None:
    problem = only(refused(folder, text), key, message, remedy)
    assert problem.path == str(folder / "own0.yaml")


def test_every_fault_of_a_file_is_named_with_its_line(folder: Path) -> None:
    text = listener().replace("stat_prefix: own", "stat_prefix: 5").replace("15999", "x")
    found = refused(folder, text, CLUSTER % "5")
    assert [(Path(p.path).name, p.line) for p in found] == [
        ("own0.yaml", 3), ("own0.yaml", 9), ("own1.yaml", 1),
    ]  # fmt: skip


def test_what_is_wrong_in_mesh_yaml_and_in_its_files_is_said_together(folder: Path) -> None:
    mesh = MESH.replace("search: {}", "search: {timeout_ms: 1}")
    paths = [Path(p.path).name for p in refused(folder, CLUSTER % "5", mesh=mesh)]
    assert paths == ["mesh.yaml", "own0.yaml"]


ENTRY = [
    ("- path: none.yaml", "resources.0.path", "No such file", "relative"),
    ("- path: empty", "resources.0.path", "no resources", "*.yaml"),
    ("- {}", "resources.0.path", "missing", "./envoy"),
    ("- {path: own0.yaml, nodes: {cluster: shp}}", "nodes.cluster", "no application", "`shop`"),
    ("- {path: own0.yaml, nodes: {cluster: 'x*'}}", "nodes.cluster", "no application", ""),
    ("- {path: own0.yaml, nodes: {region: a}}", "nodes.region", "not a known key", "locality"),
    ("- {path: own0.yaml, nodes: {metadata: {a: [1]}}}", "metadata", "is (1,)", "text"),
    ("- {path: own0.yaml, on_demand: 1}", "on_demand", "true", ""),
]


@pytest.mark.parametrize(("entry", "key", "message", "remedy"), ENTRY)
def test_a_fault_of_an_entry_is_named_in_mesh_yaml(
    folder: Path, entry: str, key: str, message: str, remedy: str
) -> None:
    (folder / "empty").mkdir()
    problems = refused(folder, CLUSTER % "c", entries=entry)
    assert any(
        key in p.key and message in p.message + p.remedy and remedy in p.remedy for p in problems
    ), problems
    assert all(Path(p.path).name == "mesh.yaml" for p in problems)


# -- names that meet -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (CLUSTER % "search-a", "shop"),
        (f'{{"@type": {EDS}, cluster_name: pay-a}}', "ledger"),
        (f'{{"@type": {LDS}, name: shop.search}}', "shop"),
        (f'{{"@type": {RDS}, name: ledger.pay}}', "ledger"),
        (f'{{"@type": {RTDS}, name: weights}}', "engine's weights"),
        (CLUSTER % "xds", "bootstrap"),
    ],
)
def test_a_generated_name_is_refused_for_whomever_it_is(
    folder: Path, text: str, owner: str
) -> None:
    entry = "- {path: own0.yaml, nodes: {id: nobody}}"
    only(refused(folder, text, entries=entry), "", owner, "rename")


def test_the_generated_names_are_those_that_are_generated(folder: Path) -> None:
    mesh = load(folder, CLUSTER % "c")
    built = MeshResources(mesh, {}).of("shop", "web")
    assert set(built.clusters.resources) == {"search-a"}
    assert set(built.baseline_routes.resources) == {"shop.search"}
    assert (runtime.LAYER, bootstrap.CLUSTER) == (RUNTIME_LAYER, CONTROL_PLANE)


@pytest.mark.parametrize(
    ("one", "two"),
    [("{}", "{}"), ("{}", "{id: a}"), ("{cluster: shop}", "{cluster: shop}"),
     ("{id: 'edge-*'}", "{id: edge-1}"), ("{metadata: {a: 1}}", "{metadata: {a: 1, b: 2}}")],
)  # fmt: skip
def test_one_name_twice_is_refused_where_a_node_certainly_gets_both(
    folder: Path, one: str, two: str
) -> None:
    entries = f"- {{path: own0.yaml, nodes: {one}}}\n- {{path: own1.yaml, nodes: {two}}}"
    problem = only(refused(folder, CLUSTER % "c", CLUSTER % "c", entries=entries), "", "also in")
    assert str(folder / "own0.yaml") + ":1" in problem.message
    assert Path(problem.path).name == "own1.yaml"


@pytest.mark.parametrize(
    ("one", "two"),
    [("{id: 'a-*'}", "{id: '*-b'}"), ("{cluster: shop}", "{cluster: ledger}"),
     ("{locality: {region: a}}", "{locality: {region: b}}"), ("{id: a}", "{cluster: shop}")],
)  # fmt: skip
def test_one_name_twice_is_accepted_where_nodes_may_be_apart(
    folder: Path, one: str, two: str
) -> None:
    entries = f"- {{path: own0.yaml, nodes: {one}}}\n- {{path: own1.yaml, nodes: {two}}}"
    assert len(load(folder, CLUSTER % "c", CLUSTER % "c", entries=entries).resources) == 2


def test_one_name_twice_in_a_file_is_refused(folder: Path) -> None:
    only(refused(folder, f"[{CLUSTER % 'c'},\n{CLUSTER % 'c'}]"), "1", "also in")


def test_one_domain_of_two_hosts_of_the_same_routes_is_refused(folder: Path) -> None:
    text = f"""\
- {{"@type": {RDS}, name: r}}
- {{"@type": {VHDS}, name: r/a, domains: [x.example]}}
- {{"@type": {VHDS}, name: r/b, domains: [y.example, x.example]}}
"""
    only(refused(folder, text), "2", "'r/x.example' is also in")


# -- names that nothing has ----------------------------------------------------------

SECRET_TLS = f"""transport_socket:
    name: tls
    typed_config:
      "@type": {T}/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context:
        tls_certificate_sds_secret_configs: [{{name: cert, sds_config: {ADS}}}]
"""
EXTENSION = f"{{name: ext, config_discovery: {{config_source: {ADS}, type_urls: [a]}}}}"
SCOPED = f"""scoped_routes:
        name: s
        scope_key_builder: {{}}
        rds_config_source: {ADS}
        scoped_rds: {{scoped_rds_config_source: {ADS}}}
"""
SCOPE = f"""\
- {{"@type": {SRDS}, name: s, route_configuration_name: r}}
- {{"@type": {RDS}, name: r}}
"""
AGGREGATE = f"""\
"@type": {CDS}
name: a
cluster_type:
  name: envoy.clusters.aggregate
  typed_config:
    "@type": {T}/envoy.extensions.clusters.aggregate.v3.ClusterConfig
    clusters: [c]
"""
DANGLING = [
    (ROUTES % "cluster: c", "route.cluster", "no Cluster 'c'", "known_clusters"),
    (ROUTES % "cluster: search-b", "route.cluster", "'search-b'", "`search-a`"),
    (ROUTES % "weighted_clusters: {clusters: [{name: c, weight: 1}]}", "clusters.0.name", "", ""),
    (ROUTES % "cluster: xds, request_mirror_policies: [{cluster: c}]", "policies.0.cluster",
     "'c'", ""),
    (listener(f"rds: {{config_source: {ADS}, route_config_name: r}}"), "route_config_name",
     "no RouteConfiguration 'r'", ""),
    (listener(f"rds: {{configSource: {ADS}, routeConfigName: r}}"), "rds.routeConfigName",
     "no RouteConfiguration 'r'", ""),
    (listener(SCOPED), "scoped_rds", "no ScopedRouteConfiguration", ""),
    (listener(filters=EXTENSION), "http_filters.0.name", "no TypedExtensionConfig 'ext'", ""),
    (listener(tls=SECRET_TLS), "secret_configs.0.name", "no Secret 'cert'", ""),
    (f'"@type": {CDS}\nname: a\ntype: EDS\neds_cluster_config: {{eds_config: {ADS}}}',
     "eds_cluster_config", "no ClusterLoadAssignment 'a'", ""),
    (f'"@type": {SRDS}\nname: s\nroute_configuration_name: r', "route_configuration_name",
     "no RouteConfiguration 'r'", ""),
    (f'"@type": {VHDS}\nname: r/v\ndomains: [a]', "name", "no RouteConfiguration 'r'", ""),
    (AGGREGATE,
     "typed_config.clusters.0", "no Cluster 'c'", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "message", "remedy"), DANGLING)
def test_a_name_that_nothing_has_is_refused_where_it_is_written(
    folder: Path, text: str, key: str, message: str, remedy: str
) -> None:
    only(refused(folder, text), key, message, remedy)


SERVED = [
    (ROUTES % "cluster: c", CLUSTER % "c"),
    (ROUTES % "weighted_clusters: {clusters: [{name: c, weight: 1}, {name: xds, weight: 0}]}",
     CLUSTER % "c"),
    (listener(f"rds: {{config_source: {ADS}, route_config_name: r}}"), ROUTES % "cluster: xds"),
    (listener(SCOPED), SCOPE),
    (listener(filters=EXTENSION), f'{{"@type": {ECDS}, name: ext}}'),
    (listener(tls=SECRET_TLS), f'{{"@type": {SDS}, name: cert}}'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "other"), SERVED)
def test_a_name_may_be_in_any_file(folder: Path, text: str, other: str) -> None:
    assert len(load(folder, text, other).resources) == 2


def test_what_comes_by_another_way_than_ads_is_no_reference(folder: Path) -> None:
    file = "{path_config_source: {path: /x.yaml}}"
    load(folder, listener(f"rds: {{config_source: {file}, route_config_name: r}}"))


def test_a_provider_may_be_named_where_every_application_has_it(folder: Path) -> None:
    text = ROUTES % "cluster: search-a"
    only(refused(folder, text), "route.cluster", "`ledger` have no", "cluster: shop")
    load(folder, text, entries="- {path: own0.yaml, nodes: {cluster: shop}}")


def test_a_cluster_of_the_bootstrap_may_be_named_when_it_is_known(folder: Path) -> None:
    entry = "- {path: own0.yaml, known_clusters: [local_app]}"
    load(folder, ROUTES % "cluster: local_app", entries=entry)


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        (["{}", "{id: a}"], "only nodes with id a"),
        (["{cluster: shop}", "{cluster: ledger}"], "only for nodes with cluster ledger"),
        (["{cluster: shop}", "{id: a}"], "only nodes with id a"),
    ],
)
def test_a_name_that_only_other_nodes_get_is_refused(
    folder: Path, selectors: list[str], message: str
) -> None:
    entries = "\n".join(f"- {{path: own{i}.yaml, nodes: {s}}}" for i, s in enumerate(selectors))
    problems = refused(folder, ROUTES % "cluster: c", CLUSTER % "c", entries=entries)
    only(problems, "route.cluster", message, "same `nodes`")


def test_a_name_that_several_entries_share_out_is_accepted(folder: Path) -> None:
    entries = "\n".join(
        f"- {{path: own{i}.yaml, nodes: {s}}}"
        for i, s in enumerate(["{}", "{locality: {region: a}}", "{locality: {region: b}}"])
    )
    load(folder, ROUTES % "cluster: c", CLUSTER % "c", CLUSTER % "c", entries=entries)


def test_the_example_is_good() -> None:
    mesh = load_mesh(Path(__file__).parents[2] / "envoy-configs/mesh-own.yaml")
    assert sorted(name for _, name in resources(mesh)) == [
        "ingress", "ingress", "local-application", "request-limit",
    ]  # fmt: skip


WEIGHTS = [
    ("[{name: xds, weight: 0}]", "clusters", "sum up to 0"),
    ("[{name: xds, weight: 4294967295}, {name: xds, weight: 1}]", "clusters", "4294967296"),
    ("[{name: xds}, {name: xds, weight: 1}]", "clusters.0", "no weight"),
    ("[{weight: 1}]", "clusters.0", "no name"),
]


@pytest.mark.parametrize(("clusters", "key", "message"), WEIGHTS)
def test_weights_that_envoy_would_refuse_are_refused(
    folder: Path, clusters: str, key: str, message: str
) -> None:
    text = ROUTES % f"weighted_clusters: {{clusters: {clusters}}}"
    only(refused(folder, text), f"weighted_clusters.{key}", message)
