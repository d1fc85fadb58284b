"""The commands that suppose: `what-if` and `replay-decisions`. They change nothing."""

import json
from pathlib import Path
from typing import Annotated

import typer

from xds_server.errors import ConfigError, XdsServerError
from xds_server.terminal import (
    DEFAULT_ADMIN,
    FAILED,
    MISTAKE,
    NO_ADMIN,
    AdminOption,
    JsonOption,
    MeshOption,
    Resolution,
    ask,
    check_url,
    fail,
    print_json,
    print_rich,
    since_s_of,
)

TIMEOUT_S = 30.0  # a large mesh takes seconds, and others may ask as well


def what_if(
    *,
    application: Annotated[str, typer.Option(help="Who calls.")],
    service: Annotated[str, typer.Option(help="What is called.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="CHANGE", help="What is supposed; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="Ask no server: go by this mesh and its history.",
            show_default=False,
        ),
    ] = None,
    admin: AdminOption = DEFAULT_ADMIN,
    as_json: JsonOption = False,
) -> None:
    """Show what the mesh would do, and gain, if something changed. Nothing is changed.

    A CHANGE is PROVIDER.price=USD (per million requests), PROVIDER.capacity=RPS (of all its
    endpoints), PROVIDER.latency=xFACTOR, PROVIDER.endpoints=N, PROVIDER.down, or demand=RPS (of
    the application's calls to the service). A number may be a factor on what is, like x0.5.

    Compares now, the change with the shares of now, and the optimum then, by the models of the
    running server.
    """
    from urllib.parse import urlencode

    changes = settings or []
    if config is None:
        query = [("application", application), ("service", service), *(("set", c) for c in changes)]
        data = ask(admin, f"/v1/what-if?{urlencode(query)}", TIMEOUT_S)
    else:
        from xds_server.admin.encode import to_json
        from xds_server.app.what_if import ask_offline

        try:
            data = to_json(ask_offline(config, application, service, changes))
        except ConfigError as error:
            fail(MISTAKE, map(str, error.problems))
        except (KeyError, ValueError) as error:
            fail(MISTAKE, [f"what-if: {error.args[0]}"])
        except XdsServerError as error:
            fail(FAILED, [f"what-if: {error}"])
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_what_if import render_what_if

    print_rich(render_what_if(data))


def replay_decisions(
    *,
    profile: Annotated[str, typer.Option(help="Whose objectives are tried.")],
    since: Annotated[
        str, typer.Option(metavar="DURATION", help="How far back from the newest row, like 2h.")
    ] = "1h",
    application: Annotated[str, typer.Option(help="Only this application's calls.")] = "",
    resolution: Annotated[
        Resolution, typer.Option(help="One step per tick, minute or hour.")
    ] = Resolution.AUTO,
    admin: AdminOption = DEFAULT_ADMIN,
    config: MeshOption = Path("mesh.yaml"),
    history: Annotated[
        Path | None,
        typer.Option(help="Ask no server: read this history file.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would have been decided with another profile. Nothing is changed.

    Asks the running server; if none answers, reads the file that `history.path` of --config
    names. The profile and the providers are those of the mesh as it is configured now.
    """
    since_s = since_s_of(since)
    check_url(admin)
    from xds_server.admin.encode import to_json
    from xds_server.app.history_view import Source
    from xds_server.app.what_if import replay_file

    params = {"profile": profile, "since_s": f"{since_s:g}", "resolution": resolution.value}
    params |= {"application": application} if application else {}
    try:
        response = None
        if history is None:
            response = Source(admin, config).get("/v1/replay-decisions", params)
        if response is not None:
            with response:
                data = json.load(response)
        else:
            data = to_json(
                replay_file(config, history, profile, application, since_s, resolution.value)
            )
    except ConfigError as error:
        fail(MISTAKE, map(str, error.problems))
    except (json.JSONDecodeError, UnicodeDecodeError):
        fail(FAILED, [f"{admin}: {NO_ADMIN}"])
    except ValueError as error:
        fail(MISTAKE, [f"replay-decisions: {error}"])
    except (XdsServerError, OSError) as error:
        fail(FAILED, [f"replay-decisions: {error}"])
    if as_json:
        print_json(data)
        return
    from xds_server.admin.render_what_if import render_replay

    print_rich(render_replay(data))
