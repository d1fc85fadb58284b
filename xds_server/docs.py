"""Writes docs/metrics.md and docs/cli.md from the code: ``python -m xds_server.docs``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer
from prometheus_client.metrics import MetricWrapperBase

from xds_server import cli
from xds_server.observability import Metrics

WIDTH: Final = 88
_GENERATED: Final = "<!-- Written by `make generate`; change the code, not this file. -->"


def declared(metrics: Metrics) -> tuple[MetricWrapperBase, ...]:
    """Return every metric of our own, in the order of declaration."""
    found = (getattr(metrics, name) for name in vars(metrics))
    return tuple(m for m in found if isinstance(m, MetricWrapperBase))


def exposed_name(metric: MetricWrapperBase) -> str:
    """Return the name that a scrape shows, with the suffix that Prometheus adds."""
    (family,) = metric.describe()
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name + suffix


def metrics_page() -> str:
    """Return docs/metrics.md."""
    rows = [
        f"| `{exposed_name(m)}` | {family.type} | {_labels(m)} | {family.documentation} |"
        for m in declared(Metrics())
        for family in m.describe()
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            _GENERATED,
            "",
            "`GET /metrics` of the admin API, in the format that the scraper asks for. Label sets",
            "are bounded: names come from mesh.yaml, a route's series go when the route goes, and",
            "nothing is labelled with a node, a version or an address. `type` is CDS, EDS, LDS,",
            "RDS, SRDS, VHDS, SDS, RTDS, ECDS or other. The process's own `process_*` metrics are",
            "exposed too.",
            "",
            "| name | type | labels | what it says |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _labels(metric: MetricWrapperBase) -> str:
    """Return a metric's label names as Markdown."""
    return ", ".join(f"`{name}`" for name in metric._labelnames)  # noqa: SLF001 - no public way


def cli_page() -> str:
    """Return docs/cli.md."""
    intro = [
        "# Command line",
        "",
        _GENERATED,
        "",
        "Exit codes: 0 it worked; 1 it failed while running; 2 a person can mend it (the mesh, a",
        "name, an option); 130 it was interrupted. Errors go to stderr, one line per problem.",
        "",
    ]
    parts = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in _helps()]
    return "\n".join([*intro, *parts])


def _helps() -> Iterator[tuple[str, str]]:
    command: Any = typer.main.get_command(cli.app)
    size = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    root = command.make_context("xds-server", [], resilient_parsing=True, **size)
    yield "xds-server", _help(command, root)
    for name, sub in command.commands.items():
        context = sub.make_context(name, [], parent=root, resilient_parsing=True, **size)
        yield f"xds-server {name}", _help(sub, context)


def _help(command: Any, context: Any) -> str:
    text = str(command.get_help(context))
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


PAGES: Final = {"metrics.md": metrics_page, "cli.md": cli_page}


def write(folder: Path) -> None:
    """Write every page into ``folder``."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent.parent / "docs")
