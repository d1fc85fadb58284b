"""The server's certificate, read again when its files change."""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import structlog

from xds_server.errors import ConfigError, Problem
from xds_server.model.topology import TlsSettings

log = structlog.get_logger()

Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


def credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Return credentials that follow the files. Raises ConfigError when one cannot be read now."""
    files = _Files(tls, asyncio.get_running_loop())
    return grpc.dynamic_ssl_server_credentials(
        files.first(),
        files.newer,  # type: ignore[arg-type]  # None means "no change"; its types forgot that
        require_client_authentication=tls.client_ca is not None,
    )


@dataclass(slots=True)
class _Files:
    """What was read last. gRPC asks at every handshake, in a thread of its own."""

    tls: TlsSettings
    loop: asyncio.AbstractEventLoop
    stamp: Stamp = ()

    def first(self) -> grpc.ServerCertificateConfiguration:
        """Read the files. Raises ConfigError for what is no certificate with its key."""
        for key in ("key", "cert", "client_ca"):
            path = getattr(self.tls, key)
            try:
                if path is not None:
                    Path(path).read_bytes()
            except OSError as error:
                raise ConfigError((_unreadable(path, key, error),)) from None
        try:
            self.stamp, found = self._stamp(), self._read()
        except ssl.SSLError as error:
            why = f"is no certificate with the key in {self.tls.key}: {error.reason}"
            where = Problem(self.tls.cert, 0, "server.xds.tls.cert", why, "name PEM files that fit")
            raise ConfigError((where,)) from None
        return found

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the files say now; None if that is known, or of no use.

        Files that do not fit together, since only one of them is new yet, are read again when
        the next one changes; what was read last stays in force.
        """
        try:
            stamp = self._stamp()
            if stamp == self.stamp:
                return None
            self.stamp = stamp
            found = self._read()
        except OSError as error:  # an ssl.SSLError too
            self._log("tls.files_unusable", reason=str(error))
            return None
        self._log("tls.files_read", cert=self.tls.cert)
        return found

    def _log(self, event: str, **facts: str) -> None:
        self.loop.call_soon_threadsafe(lambda: log.info(event, **facts))

    def _paths(self) -> tuple[str, ...]:
        paths = (self.tls.key, self.tls.cert, self.tls.client_ca)
        return tuple(path for path in paths if path is not None)

    def _stamp(self) -> Stamp:
        stats = [Path(path).stat() for path in self._paths()]
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls.cert, self.tls.key, password=lambda: "")
        key, cert, *authorities = (Path(path).read_bytes() for path in self._paths())
        return grpc.ssl_server_certificate_configuration(
            [(key, cert)], root_certificates=authorities[0] if authorities else None
        )


def _unreadable(path: str, key: str, error: OSError) -> Problem:
    why = f"cannot be read: {error.strerror}"
    return Problem(path, 0, f"server.xds.tls.{key}", why, "name a PEM file")
