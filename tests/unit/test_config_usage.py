"""Who measures what instances and providers use, as mesh.yaml says it."""

import re
from pathlib import Path

import pytest

from tests.unit.test_config import SMALL, problems
from xds_server.config import inert_keys, parse_mesh
from xds_server.model.topology import UsageSource, UsedProcess

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
PROMETHEUS = "adapter: prometheus, url: 'http://a:9090'"
BANDS = "{cpu_ratio: [0, 1], memory_bytes: [0, 1]}"


def written(text: str) -> str:
    return f"{SMALL}usage: [{{{text}}}]\n"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (f"{PROMETHEUS}, cpu_query: up, node_label: pod",
         UsageSource("prometheus", 10.0,
                     {"url": "http://a:9090", "cpu_query": "up", "node_label": "pod"})),
        (f"{PROMETHEUS}, utilisation_query: up, provider_label: p, every_s: 5",
         UsageSource("prometheus", 5.0,
                     {"url": "http://a:9090", "utilisation_query": "up", "provider_label": "p"})),
        ("adapter: psutil, providers: [a, b]",
         UsageSource("psutil", 10.0, {"providers": ("a", "b")})),
        ("adapter: psutil, processes: {n1: {port: 80}, n2: {pid_file: a}, n3: {command: 'a.*b'}}",
         UsageSource("psutil", 10.0, {
             "providers": (),
             "processes": {
                 "n1": UsedProcess(port=80),
                 "n2": UsedProcess(pid_file="a"),
                 "n3": UsedProcess(command="a.*b"),
             },
         })),
    ],
)  # fmt: skip
def test_an_adapter_gets_its_own_options_alone(text: str, source: UsageSource) -> None:
    assert parse_mesh(written(text), "mesh.yaml").usage == (source,)


def test_the_example_in_the_documentation_is_accepted() -> None:
    (example,) = re.findall(r"```yaml\n(usage:.*?)```", PAGE, re.DOTALL)
    mesh = parse_mesh(SMALL + example.replace("search-east", "b"), "mesh.yaml")
    assert [source.adapter for source in mesh.usage] == ["prometheus", "psutil"]


@pytest.mark.parametrize(
    ("text", "key", "message", "remedy"),
    [
        ("adapter: cadvisor", ".adapter", "no usage adapter", "`prometheus`"),
        ("adapter: prometheus, cpu_query: up, node_label: pod", "", "has no url", ":9090"),
        ("adapter: prometheus, url: unix:///a, cpu_query: up, node_label: pod", ".url",
         "no unix://", "`http://`"),
        (f"{PROMETHEUS}, node_label: pod", "", "asks for nothing", "`cpu_query`"),
        (f"{PROMETHEUS}, cpu_query: up", "", "has no label", "`node_label`"),
        (f"{PROMETHEUS}, cpu_query: up, node_label: a, provider_label: b", "", "two labels",
         "`node_label`"),
        (f"{PROMETHEUS}, cpu_query: up, node_label: k8s-pod", ".node_label", "'k8s-pod'",
         "no digit first"),
        (f"{PROMETHEUS}, cpu_query: ' ', node_label: a", ".cpu_query", "no query", "PromQL"),
        (f"{PROMETHEUS}, utilisation_query: up, node_label: a", ".utilisation_query",
         "only providers", "`provider_label`"),
        (f"{PROMETHEUS}, cpu_query: up, node_label: a, providers: [b]", ".providers",
         "means nothing", "`cpu_query`"),
        (f"{PROMETHEUS}, cpu_query: up, node_label: a, every_s: 0", ".every_s", "0.1", "10"),
        ("adapter: psutil", "", "measures nobody", "pid_file"),
        ("adapter: psutil, providers: [zz]", ".providers.0", "'zz'", "`a`"),
        ("adapter: psutil, processes: {n1: {}}", ".processes.n1", "no way to find it", "`port`"),
        ("adapter: psutil, processes: {n1: {port: 1, command: a}}", ".processes.n1",
         "has port and command", "one of"),
        ("adapter: psutil, processes: {n1: {command: '('}}", ".processes.n1.command",
         "not a regular expression", "gunicorn"),
        (f"adapter: psutil, processes: {{n1: {{command: {'a' * 1001}}}}}",
         ".processes.n1.command", "longer than 1000", "shorten"),
        ("adapter: psutil, processes: {n1: {port: 0}}", ".processes.n1.port", "1", "8080"),
        ("adapter: psutil, url: 'http://a', providers: [b]", ".url", "means nothing", "`every_s`"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_work_is_named(text: str, key: str, message: str, remedy: str) -> None:
    (problem,) = problems(written(text))
    assert problem.key == f"usage.0{key}" or (not key and problem.key == "usage.0")
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.line


@pytest.mark.parametrize(
    ("usage", "lacking"),
    [
        ("", ["cpu_ratio", "memory_bytes"]),
        (f"{PROMETHEUS}, cpu_query: up, node_label: pod", ["memory_bytes"]),
        (f"{PROMETHEUS}, cpu_query: up, provider_label: p", ["cpu_ratio", "memory_bytes"]),
        ("adapter: psutil, providers: [b]", ["cpu_ratio", "memory_bytes"]),
        ("adapter: psutil, processes: {n1: {port: 80}}", []),
    ],
)
def test_bands_of_usage_are_inert_only_while_nothing_measures_instances(
    usage: str, lacking: list[str]
) -> None:
    text = written(usage) if usage else SMALL
    mesh = parse_mesh(text.replace("profiles:", f"behaviour: {BANDS}\n    profiles:"), "mesh.yaml")
    lines = inert_keys(mesh)
    assert [line.partition(":")[0].rpartition(".")[2] for line in lines] == lacking
    assert all("`usage`" in line for line in lines)
