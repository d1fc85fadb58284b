import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from tests.unit.admin_records import EXPLANATION, STATUS
from xds_server.admin.encode import dumps
from xds_server.cli import DEMO_DURATION_S, app
from xds_server.terminal import NO_ADMIN

MESH = Path(__file__).parent.parent / "mesh_reference.yaml"
SLOW = ("grpc", "envoy_data_plane", "uvicorn", "starlette")
COMMANDS = (
    "validate",
    "serve",
    "bootstrap",
    "status",
    "explain",
    "services",
    "instances",
    "demo",
    "version",
)


def run(*args: object):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def broken(tmp_path) -> Path:
    path = tmp_path / "mesh.yaml"
    path.write_text(MESH.read_text().replace("mode: enforce ", "mode: enfroce ", 1))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout or command == "version"


def test_the_version_is_that_of_the_package():
    expected = f"xds-server {version('xds-server')}\n"
    assert run("version").stdout == run("--version").stdout == expected


def test_a_good_mesh_is_ok_and_its_inert_keys_are_notes():
    result = run("validate", MESH)
    assert result.exit_code == 0
    first, *notes = result.stdout.splitlines()
    assert first.endswith("OK: 2 services, 4 providers, 1 application")
    assert all(": note: no effect yet: " in note for note in notes)
    assert any(".scale" in note for note in notes)


def test_a_good_mesh_as_json():
    data = json.loads(run("validate", MESH, "--json").stdout)
    assert (data["ok"], data["providers"]) == (True, 4)
    assert data["inert_keys"]


def test_each_problem_of_a_bad_mesh_is_a_line_with_its_place(broken):
    result = run("validate", broken)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    number = next(i for i, t in enumerate(broken.read_text().splitlines(), 1) if "enfroce" in t)
    assert line.startswith(f"{broken}:{number}: mode: ")


def test_the_problems_of_a_bad_mesh_as_json(broken):
    result = run("validate", broken, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (data["ok"], data["problems"][0]["key"]) == (False, "mode")


def test_a_mesh_that_is_not_there_is_a_mistake(tmp_path):
    result = run("validate", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml: (file): cannot be read" in result.stderr


def test_serve_refuses_a_bad_mesh_before_it_starts(broken):
    result = run("serve", "-c", broken)
    assert result.exit_code == 2
    assert ": mode: " in result.stderr


def test_the_demo_is_as_long_as_the_help_says():
    from xds_server.demo import DemoOptions

    assert DemoOptions().duration_s == DEMO_DURATION_S


def test_a_demo_that_is_too_short_is_a_mistake():
    result = run("demo", "--no-ui", "--duration", "1")
    assert result.exit_code == 2


def test_an_option_that_does_not_exist_is_a_mistake():
    assert run("serve", "--log-format", "xml").exit_code == 2
    assert run("serve", "--nope").exit_code == 2


def bootstrap(*args: object):
    return run("bootstrap", "-c", MESH, "--node", "checkout-1", *args)


def test_a_bootstrap_is_yaml_with_the_settings_applied():
    result = bootstrap("--application", "checkout", "--set", "locality.region=us-east-1")
    assert result.exit_code == 0
    data = YAML(typ="safe", pure=True).load(result.stdout)
    assert data["node"] == {
        "id": "checkout-1",
        "cluster": "checkout",
        "locality": {"region": "us-east-1"},
    }


def test_a_bootstrap_is_the_same_as_json():
    as_yaml = bootstrap("--application", "checkout").stdout
    as_json = bootstrap("--application", "checkout", "--format", "json").stdout
    assert YAML(typ="safe", pure=True).load(as_yaml) == json.loads(as_json)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--application", "orders"), "configured are: checkout"),
        (("--application", "checkout", "--set", "zone=x"), "unknown setting 'zone'"),
        (("--application", "checkout", "--set", "locality.region"), "write it as key=value"),
        (("--application", "checkout", "--set", "api=sotw", "--set", "api=delta"), "set twice"),
    ],
)
def test_a_mistake_in_a_bootstrap_is_one_line(args, message):
    result = bootstrap(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_a_bootstrap_for_grpc_is_json():
    result = bootstrap("--application", "checkout", "--for", "grpc")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["node"] == {"id": "checkout-1", "cluster": "checkout"}
    refused = bootstrap("--application", "checkout", "--for", "grpc", "--format", "yaml")
    assert refused.exit_code == 2
    assert refused.stderr == "bootstrap: gRPC reads JSON alone: drop --format yaml\n"


def test_the_settings_of_a_bootstrap_can_be_listed():
    result = run("bootstrap", "--settings")
    assert result.exit_code == 0
    assert any(line.startswith("locality.region ") for line in result.stdout.splitlines())


class _Admin(BaseHTTPRequestHandler):
    """Answers as the admin API does, on a thread of its own."""

    def do_GET(self) -> None:
        status, body = {
            "/v1/status": (200, dumps(STATUS)),
            "/v1/explain?application=checkout&service=search": (200, dumps([EXPLANATION])),
            "/broken/v1/status": (500, b"oops"),
            "/html/v1/status": (200, b"<html>"),
            "/html/v1/replay-decisions?profile=p&since_s=3600&resolution=auto": (200, b"<html>"),
        }.get(self.path, (404, dumps({"detail": f"no route {self.path}; known: a/b"})))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def admin() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Admin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_status_is_drawn_for_people(admin):
    result = run("status", "--admin", admin)
    assert result.exit_code == 0
    assert "checkout-1" in result.stdout
    assert "LDS NACK (2): duplicate listener" in result.stdout


def test_status_is_json_for_programs(admin):
    assert json.loads(run("status", "--admin", admin, "--json").stdout) == json.loads(dumps(STATUS))


def test_explain_is_drawn_for_people_and_json_for_programs(admin):
    drawn = run("explain", "checkout", "search", "--admin", admin)
    assert drawn.exit_code == 0
    assert "runner-up" in drawn.stdout
    asked = run("explain", "checkout", "search", "--why-not", "search-far", "--admin", admin)
    assert "search-far would have to be 4.2 ms faster" in asked.stdout
    unknown = run("explain", "checkout", "search", "--why-not", "nobody", "--admin", admin)
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("--why-not: no provider nobody; known: search-east")
    (data,) = json.loads(run("explain", "checkout", "search", "--admin", admin, "--json").stdout)
    assert data["move"] == "reweight"


def test_an_unknown_application_is_a_mistake_that_names_the_known(admin):
    result = run("explain", "a b", "search", "--admin", admin)
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"{admin}: no route /v1/explain?application=a+b&service=search; known: a/b\n"
    )


@pytest.mark.parametrize("path", ["/broken", "/html"])
def test_an_answer_that_makes_no_sense_is_a_failure(admin, path):
    result = run("status", "--admin", admin + path)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("status",), ("replay-decisions", "--profile", "p")])
def test_what_is_no_admin_api_is_said_to_be_none(admin, command):
    result = run(*command, "--admin", f"{admin}/html")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{admin}/html: {NO_ADMIN}\n"


def test_an_admin_api_that_does_not_answer_is_a_failure():
    result = run("status", "--admin", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "Connection refused; is xds-server running?" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:18001", "http://[", "http://127.0.0.1:port"])
def test_an_admin_url_that_is_none_is_a_mistake(url):
    result = run("status", "--admin", url)
    assert result.exit_code == 2
    assert "not a URL" in result.stderr


@pytest.mark.parametrize("args", [["--help"], ["validate", str(MESH)]])
def test_what_should_answer_at_once_imports_nothing_slow(args):
    code = (
        "import sys\nfrom xds_server.cli import app\n"
        f"app({args!r}, standalone_mode=False)\n"
        f"print([m for m in {SLOW!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "xds_server", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("xds-server ")


def test_a_reader_that_goes_away_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m xds_server bootstrap -c {MESH} --application checkout --node c1"
        " | true",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
