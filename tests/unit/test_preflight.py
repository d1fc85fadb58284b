"""What Envoy is asked to validate is all that a node would get; and how it is asked."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf import json_format
from typer.testing import CliRunner

from tests.unit.test_own_resources import (
    ADS,
    CDS,
    ECDS,
    EDS,
    EXTENSION,
    HCM,
    LDS,
    RDS,
    ROUTES,
    RTDS,
    SCOPED,
    SDS,
    SECRET_TLS,
    SRDS,
    VHDS,
    T,
    listener,
    load,
)
from xds_server.app.preflight import find_envoy
from xds_server.cli import app
from xds_server.resources.preflight import Preflight, preflights

ROUTER = f'{{"@type": {T}/envoy.extensions.filters.http.router.v3.Router}}'
EDS_CLUSTER = f"""\
- "@type": {CDS}
  name: c
  type: EDS
  eds_cluster_config: {{service_name: other, eds_config: {ADS}}}
- "@type": {EDS}
  cluster_name: other
  endpoints: [{{priority: 7}}]
"""


def shop(*found: Preflight) -> list[Preflight]:
    return [p for p in found if p.application == "shop"]


def static(preflight: Preflight) -> dict[str, Any]:
    boot = bootstrap_pb2.Bootstrap.FromString(preflight.render(None))
    data: dict[str, Any] = json_format.MessageToDict(boot, preserving_proto_field_name=True)
    assert len(data["static_resources"]["clusters"]) >= 2
    return data


def manager(data: dict[str, Any], name: str = "own") -> dict[str, Any]:
    (found,) = [x for x in data["static_resources"]["listeners"] if x["name"] == name]
    config: dict[str, Any] = found["filter_chains"][0]["filters"][0]["typed_config"]
    assert config["@type"] == HCM
    return config


def test_each_application_has_one_without_other_selectors(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(EDS_CLUSTER)
    mesh = load(tmp_path, entries="- {path: c.yaml, nodes: {cluster: ledger}}")
    found = list(preflights(mesh))
    assert [(p.application, p.nodes, len(p.own)) for p in found] == [
        ("shop", "every node", 0),
        ("ledger", "every node", 2),
    ]
    generated = manager(static(found[0]), "shop.search")
    assert generated["route_config"]["name"] == "shop.search"
    assert "rds" not in generated


def test_each_selector_is_a_combination_with_all_that_its_nodes_certainly_get(
    tmp_path: Path,
) -> None:
    cluster = f'{{"@type": {CDS}, name: %s, type: STATIC}}'
    entries = "\n".join(
        f"- {{path: own{i}.yaml, nodes: {s}}}"
        for i, s in enumerate(["{}", "{id: 'e-*'}", "{id: e-1}", "{cluster: ledger}"])
    )
    mesh = load(tmp_path, *(cluster % n for n in "abcd"), entries=entries)
    found = {p.nodes: [r.name for r in p.own] for p in shop(*preflights(mesh))}
    assert found == {"every node": ["a"], "id e-*": ["a", "b"], "id e-1": ["a", "b", "c"]}


def test_what_comes_by_discovery_stands_where_it_is_named(tmp_path: Path) -> None:
    scope = f'{{"@type": {SRDS}, name: s, route_configuration_name: r}}'
    texts = (
        listener(f"rds: {{config_source: {ADS}, route_config_name: r}}", EXTENSION, SECRET_TLS),
        listener(SCOPED).replace("name: own", "name: scoped"),
        ROUTES % "cluster: c" + f"vhds: {{config_source: {ADS}}}\n",
        EDS_CLUSTER,
        f'- {{"@type": {VHDS}, name: r/late, domains: [late.example]}}\n- {scope}',
        f'- {{"@type": {SDS}, name: cert}}\n- {{"@type": {RTDS}, name: layer, layer: {{a: 1}}}}',
        f'{{"@type": {ECDS}, name: ext, typed_config: {ROUTER}}}',
    )
    data = static(shop(*preflights(load(tmp_path, *texts)))[0])
    own = manager(data)
    assert [h["name"] for h in own["route_config"]["virtual_hosts"]] == ["all", "r/late"]
    assert "vhds" not in own["route_config"]
    assert own["http_filters"][0]["typed_config"]["@type"].endswith("Router")
    scoped = manager(data, "scoped")["scoped_routes"]["scoped_route_configurations_list"]
    (inline,) = scoped["scoped_route_configurations"]
    assert inline["route_configuration"]["name"] == "r"
    (cluster,) = [c for c in data["static_resources"]["clusters"] if c["name"] == "c"]
    assert cluster["load_assignment"]["endpoints"] == [{"priority": 7}]
    assert "eds_cluster_config" not in cluster
    text = json.dumps(data)
    assert '"sds_config"' not in text
    assert data["static_resources"]["secrets"] == [{"name": "cert"}]
    assert data["layered_runtime"]["layers"][0]["static_layer"] == {"a": 1.0}


def test_routes_that_no_listener_names_are_looked_at_too(tmp_path: Path) -> None:
    data = static(shop(*preflights(load(tmp_path, ROUTES % "cluster: xds")))[0])
    names = [found["name"] for found in data["static_resources"]["listeners"]]
    assert names == ["shop.search", "preflight: routes r"]


def test_one_resource_can_be_left_out(tmp_path: Path) -> None:
    (found, _) = preflights(load(tmp_path, ROUTES % "cluster: xds"))
    assert found.own[0].type_url == RDS
    boot = bootstrap_pb2.Bootstrap.FromString(found.render(found.own[0]))
    assert [x.name for x in boot.static_resources.listeners] == ["shop.search"]
    assert LDS.endswith(boot.static_resources.listeners[0].DESCRIPTOR.full_name)


# -- asking ----------------------------------------------------------------------------


def fake(folder: Path, script: str) -> Path:
    """A program in Envoy's place; what it says is its script's."""
    path = folder / "fake-envoy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run(folder: Path, *args: str, text: str = ROUTES % "cluster: xds") -> Any:
    load(folder, text)
    return CliRunner().invoke(app, ["validate", str(folder / "mesh.yaml"), *args])


def test_a_mesh_that_envoy_takes_is_ok(tmp_path: Path) -> None:
    result = run(tmp_path, "--envoy-binary", str(fake(tmp_path, "exit 0")))
    assert result.exit_code == 0, result.output
    assert "2 applications, 1 resource" in result.stdout


def test_what_envoy_says_is_printed_with_the_application_and_the_culprit(tmp_path: Path) -> None:
    said = "[2026-01-01 00:00:00.000][1][critical][main] [a.cc:1] bad '$4': regex"
    envoy = fake(tmp_path, f'grep -q "preflight: routes" "$4" || exit 0\necho "{said}" >&2; exit 1')
    result = run(tmp_path, "--envoy-binary", str(envoy))
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    place = f"{tmp_path / 'mesh.yaml'}: application shop, every node"
    assert first == f"{place}: Envoy refuses [RouteConfiguration r]: bad: regex"
    assert "application ledger" in second
    data = json.loads(run(tmp_path, "--envoy-binary", str(envoy), "--json").stdout)
    assert data["ok"] is False
    assert data["refused"][0]["culprits"] == ["RouteConfiguration r"]


def test_an_envoy_that_is_not_there_or_no_program_is_a_failure(tmp_path: Path) -> None:
    result = run(tmp_path, "--envoy-binary", str(tmp_path / "none"))
    assert (result.exit_code, "--envoy-binary" in result.stderr) == (1, True)
    broken = fake(tmp_path, "")
    broken.write_text("\x7fELF no")
    assert run(tmp_path, "--envoy-binary", str(broken)).exit_code == 1


def test_an_envoy_that_never_ends_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xds_server.app.preflight.WITHIN_S", 0.2)
    result = run(tmp_path, "--envoy-binary", str(fake(tmp_path, "exec sleep 30")))
    assert result.exit_code == 1
    assert "timed out" in result.stderr


def test_the_envoy_to_ask_is_found_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("ENVOY", raising=False)
    assert find_envoy(None) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/envoy").write_bytes(b"")
    (tmp_path / "bin/envoy").chmod(0o755)
    assert find_envoy(None) == tmp_path / "bin/envoy"
    tools = tmp_path / ".tools/envoy/_bin"
    tools.mkdir(parents=True)
    (tools / "envoy").write_bytes(b"")
    (tools / "envoy").chmod(0o755)
    assert find_envoy(None) == Path(".tools/envoy/_bin/envoy")
    monkeypatch.setenv("ENVOY", str(tmp_path / "bin/envoy"))
    assert find_envoy(None) == tmp_path / "bin/envoy"
    assert find_envoy(tools / "envoy") == tools / "envoy"
