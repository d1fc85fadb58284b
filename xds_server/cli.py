"""The command line: parse, call, print.

Exit codes: 0 it worked; 1 it failed while running; 2 a person can mend it (configuration,
names, options). What a command needs is imported inside it, so that ``--help`` and
``validate`` answer at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from xds_server.cli_what_if import replay_decisions, what_if
from xds_server.errors import ConfigError, XdsServerError
from xds_server.terminal import (
    DEFAULT_ADMIN,
    FAILED,
    MISTAKE,
    AdminOption,
    JsonOption,
    MeshOption,
    Resolution,
    ask,
    check_url,
    fail,
    fields_of,
    print_json,
    print_rich,
    print_yaml,
    since_s_of,
)

if TYPE_CHECKING:
    from xds_server.model.topology import Mesh

DEMO_DURATION_S = 81.0  # as in demo.options, which is slow to import; a test compares them
RECORD_MAX_MIB = 256

app = typer.Typer(
    name="xds-server",
    help="An Envoy-native xDS control plane for applications that come and go.",
    epilog="Start with: xds-server demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogFormat(StrEnum):
    """How log lines look."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ExportFormat(StrEnum):
    """How rows of history are written."""

    CSV = "csv"
    PARQUET = "parquet"


class DataFormat(StrEnum):
    """How a bootstrap is written. Envoy takes both."""

    YAML = "yaml"
    JSON = "json"


class Client(StrEnum):
    """Whose bootstrap is written."""

    ENVOY = "envoy"
    GRPC = "grpc"


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _main(
    *,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: xds-server validate mesh.yaml --envoy")
def validate(
    file: Annotated[Path, typer.Argument(help="The mesh to check.")],
    *,
    envoy: Annotated[
        bool, typer.Option("--envoy", help="Also ask Envoy whether it would take everything.")
    ] = False,
    envoy_binary: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The Envoy to ask; else $ENVOY, .tools/envoy/_bin/envoy, or envoy on PATH.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a mesh, and the files that it names, without serving it.

    Every problem is one line with its file, line, key and remedy; exit 2 if there is any.
    Keys that are accepted but have no effect yet are noted. With --envoy, Envoy itself
    validates what the nodes of each application would get: exit 2 if it refuses, with its
    own words; exit 1 if it cannot be asked.
    """
    from xds_server.config import inert_keys, load_mesh

    try:
        mesh = load_mesh(file)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "problems": [fields_of(p) for p in error.problems]})
            raise typer.Exit(MISTAKE) from None
        fail(MISTAKE, map(str, error.problems))
    counts = {
        "services": len(mesh.services),
        "providers": len(mesh.providers),
        "applications": len(mesh.applications),
    }
    if mesh.resources:
        counts["resources"] = sum(len(r) for s in mesh.resources for r in s.resources.values())
    if envoy or envoy_binary is not None:
        _ask_envoy(mesh, file, envoy_binary, as_json=as_json)
    inert = inert_keys(mesh)
    if as_json:
        print_json({"ok": True, "mesh": mesh.name, **counts, "inert_keys": inert})
        return
    counted = ", ".join(f"{n} {name if n != 1 else name[:-1]}" for name, n in counts.items())
    typer.echo(f"{file}: OK: {counted}")
    for key in inert:
        typer.echo(f"{file}: note: no effect yet: {key}")


def _ask_envoy(mesh: "Mesh", file: Path, binary: Path | None, *, as_json: bool) -> None:
    """Let Envoy validate the mesh; exit if it refuses or cannot be asked."""
    from subprocess import TimeoutExpired

    from xds_server.app.preflight import ask_envoy, find_envoy

    found = find_envoy(binary)
    if found is None:
        where = str(binary) if binary else "$ENVOY, .tools/envoy/_bin/envoy and PATH"
        fail(FAILED, [f"no Envoy at {where}: name it with --envoy-binary PATH"])
    try:
        refused = [v for v in ask_envoy(mesh, found) if not v.accepted]
    except (OSError, TimeoutExpired) as error:
        fail(FAILED, [f"{found}: {error}"])
    if refused and as_json:
        print_json({"ok": False, "problems": [], "refused": [fields_of(v) for v in refused]})
        raise typer.Exit(MISTAKE)
    lines = []
    for verdict in refused:
        blame = f" [{' or '.join(verdict.culprits)}]" if verdict.culprits else ""
        where = f"application {verdict.application}, {verdict.nodes}"
        lines.append(f"{file}: {where}: Envoy refuses{blame}: {verdict.text}")
    if lines:
        fail(MISTAKE, lines)


@app.command(epilog="Example: xds-server serve -c mesh.yaml --log-format console")
def serve(
    *,
    config: MeshOption = Path("mesh.yaml"),
    log_format: Annotated[LogFormat, typer.Option(help="How log lines look.")] = LogFormat.JSON,
    log_level: Annotated[
        LogLevel, typer.Option(help="The least severe line that is written.")
    ] = LogLevel.INFO,
    record: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep every xDS stream there, for `xds-server replay`."),
    ] = None,
    record_max_mib: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Stop recording when DIR is that large.")
    ] = RECORD_MAX_MIB,
) -> None:
    """Run the control plane until SIGTERM or SIGINT.

    Reloads the mesh when its file changes; a change that is wrong is refused and logged, and
    the mesh before it stays in force. Logs go to stderr.
    """
    from xds_server.observability import configure_logging

    _load(config)  # say what is wrong with it before the slow imports
    configure_logging(log_format.value, log_level.value)
    from xds_server.app import serve as run

    try:
        code = run(config, record, record_max_mib)
    except ConfigError as error:
        fail(MISTAKE, map(str, error.problems))
    except XdsServerError as error:
        fail(FAILED, [str(error)])
    raise typer.Exit(code)


@app.command(
    epilog="Example: xds-server bootstrap --application checkout --node checkout-1 "
    "--set locality.region=us-east-1 > envoy.yaml"
)
def bootstrap(
    *,
    application: Annotated[str, typer.Option(help="The application beside this sidecar.")],
    node: Annotated[str, typer.Option(help="A name that no other sidecar has.")],
    config: MeshOption = Path("mesh.yaml"),
    client: Annotated[
        Client,
        typer.Option(
            "--for", help="A sidecar, or the application's own gRPC library instead of one."
        ),
    ] = Client.ENVOY,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting; may be repeated; see --settings."
        ),
    ] = None,
    output: Annotated[
        DataFormat | None,
        typer.Option(
            "--format", help="How it is written; YAML, for gRPC JSON.", show_default=False
        ),
    ] = None,
    show_settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            callback=lambda wanted: _show_settings() if wanted else None,
            is_eager=True,
            help="List the keys of --set and exit.",
        ),
    ] = False,
) -> None:
    """Write a sidecar's Envoy bootstrap to stdout.

    The bootstrap is complete: ADS, statistics to the control plane, load reports, limits.
    With --for grpc it is that of an application without a sidecar, which calls
    xds:///APPLICATION.SERVICE: put it into a file, and its name into GRPC_XDS_BOOTSTRAP.
    """
    from xds_server.resources.bootstrap import render_bootstrap
    from xds_server.resources.grpc_bootstrap import render_grpc_bootstrap

    chosen: dict[str, str] = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key:
            fail(MISTAKE, [f"--set {setting}: write it as key=value"])
        if key in chosen:
            fail(MISTAKE, [f"--set {setting}: {key} is set twice; keep one"])
        chosen[key] = value
    grpc = client is Client.GRPC
    if grpc and output is DataFormat.YAML:
        fail(MISTAKE, ["bootstrap: gRPC reads JSON alone: drop --format yaml"])
    mesh = _load(config)
    try:
        render = render_grpc_bootstrap if grpc else render_bootstrap
        data = render(mesh, application, node, chosen)
    except ValueError as error:
        fail(MISTAKE, [f"bootstrap: {error}"])
    if grpc or output is DataFormat.JSON:
        print_json(data)
    else:
        print_yaml(data)


def _show_settings() -> NoReturn:
    from xds_server.resources.bootstrap import SETTINGS

    width = max(map(len, SETTINGS))
    for key, text in SETTINGS.items():
        typer.echo(f"{key:{width}}  {text}")
    raise typer.Exit


@app.command(epilog="Example: xds-server status --admin http://127.0.0.1:18001")
def status(*, admin: AdminOption = DEFAULT_ADMIN, as_json: JsonOption = False) -> None:
    """Show a running control plane: nodes, routes, providers, bottlenecks."""
    data = ask(admin, "/v1/status")
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render import render_status

    print_rich(render_status(data))


@app.command(epilog="Example: xds-server explain checkout search --why-not search-west")
def explain(
    application: Annotated[str, typer.Argument(help="Who calls.")],
    service: Annotated[str, typer.Argument(help="What is called.")],
    *,
    why_not: Annotated[
        str, typer.Option(metavar="PROVIDER", help="Say what keeps this provider from more.")
    ] = "",
    admin: AdminOption = DEFAULT_ADMIN,
    as_json: JsonOption = False,
) -> None:
    """Show why an application's calls to a service are split as they are.

    Per route: the gain of the last decision by its terms, the plan that was second, a table of
    what a request costs at each provider (milliseconds, and what is worth as much), and what
    each would have to improve to get more.
    """
    from urllib.parse import urlencode

    asked = urlencode({"application": application, "service": service})
    data = ask(admin, f"/v1/explain?{asked}")
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_explain import render_explanation

    try:
        print_rich(render_explanation(data, why_not))
    except KeyError as error:
        fail(MISTAKE, [f"--why-not: {error.args[0]}"])


@app.command(epilog="Example: xds-server services search")
def services(
    name: Annotated[str, typer.Argument(help="One service; else all.")] = "",
    *,
    admin: AdminOption = DEFAULT_ADMIN,
    as_json: JsonOption = False,
) -> None:
    """Show who provides each service: endpoints, load, latency, errors, price, cost.

    Values older than 10 s are shown with their age; --json has the age and the source of each.
    """
    from urllib.parse import quote

    data = ask(admin, f"/v1/services/{quote(name, safe='')}" if name else "/v1/services")
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_services import render_services

    print_rich(render_services(data))


@app.command(epilog="Example: xds-server instances --json")
def instances(*, admin: AdminOption = DEFAULT_ADMIN, as_json: JsonOption = False) -> None:
    """Show every running instance: its phase, what it calls, how that goes and what it costs."""
    data = ask(admin, "/v1/instances")
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_services import render_instances

    print_rich(render_instances(data))


@app.command(epilog="Example: xds-server history search --since 2h --provider search-east")
def history(
    service: Annotated[str, typer.Argument(help="What was called.")],
    *,
    since: Annotated[
        str, typer.Option(metavar="DURATION", help="How far back, like 90s, 15m, 2h, 7d.")
    ] = "1h",
    provider: Annotated[str, typer.Option(help="Only this provider.")] = "",
    application: Annotated[str, typer.Option(help="Only what this application called.")] = "",
    resolution: Annotated[
        Resolution, typer.Option(help="One row per tick, minute or hour.")
    ] = Resolution.AUTO,
    decisions: Annotated[bool, typer.Option("--decisions", help="List what was decided.")] = False,
    anomalies: Annotated[
        bool, typer.Option("--anomalies", help="List breaches of expected behaviour.")
    ] = False,
    export: Annotated[
        ExportFormat | None, typer.Option(help="Write the rows behind it, in this format.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to export to; CSV goes to stdout without it.")
    ] = None,
    admin: AdminOption = DEFAULT_ADMIN,
    config: MeshOption = Path("mesh.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Show what the providers of a service did over time: a table and plots.

    Asks the running server; if none answers, reads the file that `history.path` of --config
    names. Times are UTC.
    """
    from xds_server.app.history_view import Source, run_export

    since_s = since_s_of(since)
    check_url(admin)
    if (decisions + anomalies + (export is not None)) > 1:
        fail(MISTAKE, ["--decisions, --anomalies, --export: choose one"])
    names = {"service": service, "provider": provider, "application": application}
    params = {key: value for key, value in names.items() if value}
    params |= {"since_s": f"{since_s:g}", "resolution": resolution.value}
    source = Source(admin, config)
    try:
        if export is not None:
            run_export(source, params | {"format": export.value}, output)
            return
        question = "decisions" if decisions else "anomalies" if anomalies else "points"
        data = source.ask(question, params)
    except ConfigError as error:
        fail(MISTAKE, map(str, error.problems))
    except ValueError as error:
        fail(MISTAKE, [f"history: {error}"])
    except (XdsServerError, OSError) as error:
        fail(FAILED, [f"history: {error}"])
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_history import render_history

    print_rich(render_history(question, data, color=sys.stdout.isatty()))


app.command(
    "what-if",
    epilog="Example: xds-server what-if --application checkout --service search "
    "--set search-east.price=0.9 --set demand=x1.8",
)(what_if)
app.command(
    "replay-decisions",
    epilog="Example: xds-server replay-decisions --since 1h --profile maintenance",
)(replay_decisions)


@app.command(epilog="Example: xds-server demo --duration 60 --report report.json")
def demo(
    *,
    duration: Annotated[
        float, typer.Option(metavar="S", help="How long each of its two runs takes, in seconds.")
    ] = DEMO_DURATION_S,
    report: Annotated[
        Path | None, typer.Option(help="Write what happened to this file, as JSON.")
    ] = None,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="Draw it live.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 7,
) -> None:
    """Watch real Envoys, providers and load being re-planned, on this machine.

    Plays the same story twice and compares. Exit 1 if what it claims did not come true.
    """
    from xds_server.demo import DemoOptions, run_demo

    try:
        code = run_demo(DemoOptions(duration_s=duration, report=report, ui=ui, seed=seed))
    except XdsServerError as error:
        fail(FAILED, [str(error)])
    raise typer.Exit(code)


@app.command(epilog="Example: xds-server replay recording --stream 3")
def replay(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What `serve --record DIR` has written.")
    ],
    *,
    stream: Annotated[
        int | None, typer.Option(metavar="N", help="Only the stream of that number.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run recorded xDS streams against this version and compare.

    Shows the first difference of each stream, with what came before it. Exit 0 if every
    response is the same, byte for byte; 1 if one is not; 2 if a recording cannot be read.
    """
    from xds_server.app.replay import replay as run
    from xds_server.app.replay_report import exit_code, render, to_json

    try:
        outcomes = run(folder, only=stream)
    except XdsServerError as error:
        fail(MISTAKE, [str(error)])
    if as_json:
        print_json([to_json(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            typer.echo("\n".join(render(outcome)))
    raise typer.Exit(exit_code(outcomes))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"xds-server {installed('xds-server')}")


def main() -> None:
    """Run the command line. Ctrl-C exits 130; a reader that went away is no error."""
    app(prog_name="xds-server")


def _load(path: Path) -> "Mesh":
    from xds_server.config import load_mesh

    try:
        return load_mesh(path)
    except ConfigError as error:
        fail(MISTAKE, map(str, error.problems))
