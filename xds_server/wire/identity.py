"""Who a client is by its certificate; gRPC has verified that before."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID

from xds_server.model.ids import NodeId

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """What one certificate says."""

    names: frozenset[str]
    expires_at_s: float  # seconds since the epoch

    def may_be(self, node_id: NodeId) -> bool:
        """Whether this is the certificate of that node."""
        return node_id in self.names


def read_identity(auth: Mapping[str, Iterable[bytes]]) -> Identity | None:
    """Return the identity in gRPC's auth context; None for a client without a certificate.

    A certificate that the TLS stack took and this one can not read has no name.
    """
    pem = next(iter(auth.get("x509_pem_cert", ())), None)
    if not pem:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = frozenset(_names(certificate))
    except ValueError as error:
        log.warning("xds.certificate_unreadable", reason=str(error)[:500])
        return Identity(frozenset(), math.inf)
    return Identity(names, certificate.not_valid_after_utc.timestamp())


def _names(certificate: x509.Certificate) -> Iterable[str]:
    """SPIFFE ids by their last segment (``.../ns/shop/sa/checkout-1``), DNS names, common names."""
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        yield str(attribute.value)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    yield from found.get_values_for_type(x509.DNSName)
    for uri in found.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith("spiffe://"):
            _, _, path = uri.removeprefix("spiffe://").partition("/")
            if last := path.rpartition("/")[2]:
                yield last
