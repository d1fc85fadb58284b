"""Each rule over more than one key: what breaks it is named where it is written."""

import pytest

from tests.unit.test_config import problems
from xds_server.config import parse_mesh

MESH = """\
mesh: m
engine: {tick_s: 1.0}
services:
  search:
    providers:
      east: {locality: {region: e}, endpoints: [{address: 127.0.0.1, port: 1}], ...EAST}
      west: {locality: {region: w}, endpoints: [{address: 127.0.0.1, port: 2}], ...WEST}
  pay:
    providers:
      main: {...MAIN}
templates:
  web:
    calls:
      search: {...SEARCH}
      pay: {...PAY}
    profiles:
      busy: {when: '...WHEN'}
      steady: {...STEADY}
    behaviour: {...BEHAVIOUR}
    flags: {promo: {default: true}, ...FLAGS}
applications: {shop: {template: web}}
server: {...SERVER}
history: {path: h.db, ...HISTORY}
"""
DEFAULTS = {
    "EAST": "capabilities: [facets]",
    "WEST": "",
    "MAIN": "endpoints: [{address: 127.0.0.1, port: 3}]",
    "SEARCH": "",
    "PAY": "",
    "WHEN": "instance.rps > 1.0",
    "STEADY": "",
    "BEHAVIOUR": "",
    "FLAGS": "",
    "SERVER": "",
    "HISTORY": "",
}


def mesh(**parts: str) -> str:
    text = MESH
    for name, default in DEFAULTS.items():
        part = parts.get(name, default).replace("'", "''" if name == "WHEN" else "'")
        text = text.replace(f"...{name}", part)
    return text


def test_the_mesh_of_these_tests_is_good() -> None:
    assert parse_mesh(mesh(), "mesh.yaml").name == "m"


DNS = "discovery: {adapter: dns, "
E1 = "[{address: 127.0.0.1, port: 3}]"
TOPOLOGY = [
    ("MAIN", "baseline_weight: 1", "main", "neither endpoints nor discovery"),
    ("MAIN", f"endpoints: {E1}, {DNS}name: a.b, port: 1}}", "main", "both"),
    ("MAIN", "endpoints: []", "endpoints", "no entry"),
    ("MAIN", "endpoints: [{address: 127.0.0.1}]", "endpoints.0", "no port"),
    ("MAIN", "endpoints: [{address: a.example, port: 1}]", "endpoints.0.address", "not resolve"),
    ("MAIN", "endpoints: [{address: 'unix:/a', port: 1}]", "endpoints.0.port", "no port"),
    ("MAIN", "endpoints: [{address: 'unix:a'}]", "endpoints.0.address", "unix socket"),
    ("MAIN", f"endpoints: [{E1[1:-1]}, {E1[1:-1]}]", "endpoints.1", "same"),
    ("MAIN", "discovery: {adapter: consul}", "discovery.adapter", "consul"),
    ("MAIN", "discovery: {adapter: static}", "discovery.adapter", "endpoints"),
    ("MAIN", f"{DNS}port: 1}}", "discovery", "no name"),
    ("MAIN", f"{DNS}name: a.b}}", "discovery", "no port"),
    ("MAIN", f"{DNS}name: _h._tcp.b, port: 1}}", "discovery.port", "SRV"),
    ("MAIN", f"{DNS}name: 'a b', port: 1}}", "discovery.name", "DNS name"),
    ("MAIN", f"{DNS}name: a.b, port: 1, nameserver: ns.b:53}}", "nameserver", "IP address"),
    ("MAIN", f"endpoints: {E1}, scale: {{adapter: k8s, max: 1}}", "scale.adapter", "k8s"),
    ("MAIN", f"endpoints: {E1}, scale: {{adapter: process, min: 3, max: 2}}", "scale.min", "above"),
    ("MAIN", f"endpoints: {E1}, scale: {{adapter: process}}", "scale.max", "missing"),
    ("MAIN", f"endpoints: {E1}, baseline_weight: 10001", "baseline_weight", "out of bounds"),
    ("MAIN", f"endpoints: {E1}, baseline_weight: 0.5", "baseline_weight", "whole number"),
    ("MAIN", f"endpoints: {E1}, baseline_weight: 0", "calls.pay", "never be served"),
    ("MAIN", f"endpoints: {E1}, standby: true", "calls.pay", "never be served"),
    ("EAST", "standby: true, baseline_weight: 5", "east.baseline_weight", "standby"),
    ("EAST", "price: {per_million_requests_usd: -1}", "per_million_requests_usd", "out of bounds"),
    ("EAST", "price: {per_million_requests_usd: .inf}", "per_million_requests_usd", "finite"),
    ("EAST", "price: {per_million_requests_usd: true}", "per_million_requests_usd", "number"),
    ("EAST", "standby: 0", "east.standby", "true"),
    ("SERVER", "xds: {address: 'h:7'}, admin: {address: 'h:7'}", "server.admin.address", "both"),
    ("SERVER", "xds: {address: 127.0.0.1:18001}", "server.xds.address", "both"),
    ("SERVER", "xds: {address: '::1:5'}", "server.xds.address", "with a port"),
    ("SERVER", "xds: {address: 127.0.0.1:70000}", "server.xds.address", "70000"),
    ("SERVER", "xds: {address: 1.2.3.400:7}", "server.xds.address", "no host"),
    ("SERVER", "xds: {tls: {cert: a}}", "server.xds.tls.key", "missing"),
    (
        "SERVER",
        "xds: {tls: {cert: a, key: b, bind_node_id: true}}",
        "server.xds.tls.bind_node_id",
        "no certificate",
    ),
    ("SERVER", "xds: {streams_per_s: 0}", "server.xds.streams_per_s", "0.1"),
    ("HISTORY", "keep: {1s: 3600}", "history.keep.1s", "unit"),
    ("HISTORY", "keep: {often: 1h}", "history.keep.often", "resolution"),
    ("HISTORY", "keep: {1h: 1m}", "history.keep.1h", "less than one step"),
    ("HISTORY", "keep: {60s: 1h, 1m: 1h}", "history.keep.60s", "resolution"),
    ("HISTORY", "max_bytes: 1000", "history.max_bytes", "at least"),
    ("HISTORY", "keep: {}", "history.keep", "no entry"),
]


TEMPLATES = [
    ("SEARCH", "requires: [facetz]", "calls.search.requires.0", "facetz"),
    ("SEARCH", "listener: 127.0.0.1:80", "", ""),
    ("SEARCH", "listener: localhost:80", "calls.search.listener", "IP address"),
    ("SEARCH", "listener: 127.0.0.1:0", "calls.search.listener", "any port"),
    ("SEARCH", "timeout_s: 0", "calls.search.timeout_s", "at least 0.001"),
    ("STEADY", "when: 'true'", "steady.when", "last profile"),
    ("STEADY", "weights: {performance: 0, cost: 0}", "steady.weights", "both 0"),
    ("STEADY", "survive_loss: true", "steady.survive_loss", "no objective"),
    ("STEADY", "weights: {cost: 1.5}", "weights.cost", "at most 1"),
    ("STEADY", "geography: {require: [mars]}", "geography.require.0", "mars"),
    ("STEADY", "geography: {prefer: [mars]}", "geography.prefer.0", "mars"),
    ("STEADY", "geography: {require: [e]}", "geography.require", "`pay`"),
    ("STEADY", "latency_p95_ms: 300", "steady.latency_p95_ms", "known key"),
    ("BEHAVIOUR", "error_ratio: [0.5, 0.1]", "behaviour.error_ratio", "above"),
    ("BEHAVIOUR", "error_ratio: [0.5]", "behaviour.error_ratio", "two numbers"),
    ("BEHAVIOUR", "error_ratio: [0, 0, 0]", "behaviour.error_ratio", "too many"),
    ("BEHAVIOUR", "error_ratio: [0, 2]", "behaviour.error_ratio.1", "at most 1"),
    ("BEHAVIOUR", "call_mix: {search: 0.5}", "behaviour.call_mix", "sums to 0.5"),
    ("BEHAVIOUR", "call_mix: {search: 0.5, pay: 0.51}", "", ""),
    ("BEHAVIOUR", "call_rate_rps: {mail: [0, 1]}", "call_rate_rps.mail", "mail"),
    ("FLAGS", "b: {default: true, saves: {mail: 0.1}}", "flags.b.saves.mail", "mail"),
    ("FLAGS", "b: {default: true, saves: {pay: 1.1}}", "flags.b.saves.pay", "at most 1"),
    ("FLAGS", "b: {default: 1}", "flags.b.default", "true"),
    ("FLAGS", "b: {default: true, owner: me}", "flags.b.owner", "not one of"),
    ("FLAGS", "b: {default: true, owner: operator, worth_usd_per_h: 1}", "worth_usd", "never"),
]


@pytest.mark.parametrize(("part", "text", "key", "message"), TOPOLOGY + TEMPLATES)
def test_a_broken_rule_is_one_problem_at_its_key(
    part: str, text: str, key: str, message: str
) -> None:
    if not key:
        parse_mesh(mesh(**{part: text}), "mesh.yaml")
        return
    (problem,) = problems(mesh(**{part: text}))
    assert problem.key.endswith(key) or key in problem.key
    assert message in problem.message
    assert (
        problem.line
        == next(i for i, line in enumerate(MESH.splitlines(), 1) if f"...{part}" in line)
        or "calls.pay" in key
    )


WHEN = [
    ("instance.rps >", "not CEL"),
    ("instance.rps + 1.0", "no true or false"),
    ("instance.rps + 1 > 2.0", "mixes types"),
    ("instance.speed > 1.0", "no `speed`"),
    ("load > 1.0", "named `load`"),
    ("rising(instance.rps)", "`rising()`"),
    ('flag("sale")', "'sale'"),
    ("flag(instance.node_id)", "flag() is not used"),
    ('schedule("0 25 * * *", "1h")', "not a cron"),
    ('schedule("0 3 * * *", "an hour")', "not a duration"),
    ('schedule("0 3 * * *")', "schedule() is not used"),
    ('trend(instance.rps, "fast") > 1.0', "not a duration"),
    ('trend(instance.rps * 2.0, "30s") > 1.0', "trend() is not used"),
    ('trend(instance.node_id, "30s") > 1.0', "no number"),
    ("true || " * 400 + "true", "longer than"),
]


@pytest.mark.parametrize(("when", "message"), WHEN)
def test_a_when_that_cannot_work_is_refused(when: str, message: str) -> None:
    found = problems(mesh(WHEN=when))
    assert any(message in p.message for p in found), [str(p) for p in found]
    assert {p.key for p in found} == {"templates.web.profiles.busy.when"}


@pytest.mark.parametrize(
    "when",
    [
        "instance.age_s < 30.0",
        "instance.age_s < 30",
        "flag(\"promo\") || !flag('promo')",
        'schedule("0 3 * * MON-FRI", "1h30m")',
        'trend( instance.rps , "30s" ) > 2.0',
        'instance.rps_by_service["search"] > 1.0',
        '"search" in instance.rps_by_service',
        '["a", "b"].exists(name, name == instance.node_id)',
        'instance.node_id.startsWith("flag(") && instance.rps > 1.0',
    ],
)
def test_a_when_that_can_work_is_accepted(when: str) -> None:
    template = parse_mesh(mesh(WHEN=when), "mesh.yaml").templates["web"]
    assert template.profile("busy").when == when


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        (("{tick_s: 1.0}", "{weights_ttl_s: 2}"), "engine.weights_ttl_s", "expire"),
        (("{tick_s: 1.0}", "{tick_s: 20, weights_ttl_s: 60}"), "engine.slow_tick_s", "shorter"),
        (("{tick_s: 1.0}", "{tick_s: 0.5}"), "engine.tick_s", "between two reports of a sidecar"),
        (("{tick_s: 1.0}", "{max_shift_ratio: 0}"), "engine.max_shift_ratio", "above 0"),
        (("{tick_s: 1.0}", "{min_share_ratio: 0.2}"), "engine.min_share_ratio", "at most 0.1"),
        (("main: ", "east: "), "services.pay.providers.east", "also a provider"),
        (("shop:", "Shop_1:"), "applications.Shop_1", "no name for an application"),
        (("busy:", "_busy:"), "templates.web.profiles._busy", "no name for a profile"),
        (("busy: {when: '...WHEN'}", "busy: {}"), "templates.web.profiles.busy", "no `when`"),
        (("search: {...SEARCH}", "search: {listener: 127.0.0.1:9}"), "", ""),
        (("mesh: m", "mesh: ''"), "mesh", "no name for a mesh"),
        (("{shop: {template: web}}", "{}"), "applications", "no entry"),
        (("promo:", "night_sale:"), "", ""),
        (("busy:", "peak_usage:"), "", ""),
    ],
)
def test_a_rule_of_the_whole_mesh_is_one_problem_at_its_key(
    change: tuple[str, str], key: str, message: str
) -> None:
    assert change[0] in MESH
    text = MESH.replace(change[0], change[1], 1)
    for name, default in DEFAULTS.items():
        text = text.replace(f"...{name}", default)
    if not key:
        parse_mesh(text, "mesh.yaml")
        return
    (problem,) = problems(text)
    assert problem.key == key
    assert message in problem.message


def test_two_calls_cannot_share_a_listener() -> None:
    text = mesh(SEARCH="listener: 127.0.0.1:9", PAY="listener: 127.0.0.1:9")
    (problem,) = problems(text)
    assert problem.key == "templates.web.calls.pay.listener"
    assert "`search`" in problem.message


def test_shares_kept_for_many_providers_leave_something_to_decide() -> None:
    many = "".join(
        f"      p{i}: {{endpoints: [{{address: 127.0.0.1, port: {i + 10}}}]}}\n" for i in range(10)
    )
    text = mesh().replace("tick_s: 1.0", "min_share_ratio: 0.1")
    (problem,) = problems(text.replace("    providers:\n", "    providers:\n" + many, 1))
    assert problem.key == "engine.min_share_ratio"
    assert "12 providers" in problem.message


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("timeout_ms: 1500", "`timeout_s: 1.5`"),
        ("timeout: 3", "`timeout_s`"),
        ("timeout_minutes: 2", "`timeout_s: 120`"),
        ("retry: 1", "`retries`"),
        ("retries: '1'", "without quotes"),
        ("retries: 1.0", "without a point"),
        ("idempotent: maybe", "`true` or `false`"),
        ("min_dwell_s: 3", "templates.<name>.phases.min_dwell_s"),
        ("qqq: 3", "remove it"),
    ],
)
def test_the_remedy_says_what_was_meant(text: str, remedy: str) -> None:
    (problem,) = problems(mesh(SEARCH=text))
    assert remedy in problem.remedy


@pytest.mark.parametrize("tick_s", ["0.1", "0.2", "0.3", "0.7"])
def test_the_least_that_a_remedy_names_is_accepted(tick_s: str) -> None:
    ttl_s = f"{3 * float(tick_s):g}"
    text = mesh().replace("{tick_s: 1.0}", f"{{tick_s: {tick_s}, weights_ttl_s: {ttl_s}}}")
    text = f"{text}telemetry: {{stats_flush_interval_s: {tick_s}}}\n"
    assert parse_mesh(text, "mesh.yaml").engine.tick_s == float(tick_s)


def test_a_timeout_that_envoy_would_take_for_none_is_refused() -> None:
    (found,) = problems(mesh(SEARCH="timeout_s: 0.0005"))
    assert "templates.web.calls.search.timeout_s" in str(found)
    assert parse_mesh(mesh(SEARCH="timeout_s: 0.001"), "mesh.yaml")
