"""Certificates that the webhook makes itself: an authority and what it signs, once. Pure but for randomness.

The authority's key signs one certificate and is forgotten, so nobody can ever sign another. A renewal makes a new
authority; the one before stays trusted beside it, since other replicas still serve what it signed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LEFT = 1 / 3
"""The share of a certificate's lifetime that is left when it is renewed."""
SKEW = timedelta(hours=1)
"""A certificate is valid from this long before its making on: clocks differ."""
_PEM = serialization.Encoding.PEM
_MOST_AUTHORITIES = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """All in PEM. ``authorities``: whom clients are to trust, the newest first."""

    authorities: bytes
    certificate: bytes
    key: bytes


def made(service: str, namespace: str, lifetime: timedelta, now: datetime, before: bytes = b"") -> Bundle:
    """A new bundle; of the authorities ``before``, those that have not ended stay trusted."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # The serial number keeps the names of two authorities apart: clients choose by name.
    authority_name = _name(f"freeze-proxy webhook authority {x509.random_serial_number():x}"[:64])
    names = hosts(service, namespace)
    end = now + lifetime
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(_name(names[0][:64]), authority_name, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    older = [each for each in _read_all(before) if each.not_valid_after_utc > now][: _MOST_AUTHORITIES - 1]
    return Bundle(
        b"".join(each.public_bytes(_PEM) for each in [authority, *older]),
        certificate.public_bytes(_PEM),
        key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def hosts(service: str, namespace: str) -> list[str]:
    """The names that the API server calls the service by."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]


def trouble(bundle: Bundle, service: str, namespace: str, now: datetime) -> str:
    """Why this bundle must be replaced, or nothing."""
    try:
        certificate = x509.load_pem_x509_certificate(bundle.certificate)
        key = serialization.load_pem_private_key(bundle.key, None)
        authorities = x509.load_pem_x509_certificates(bundle.authorities)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        said = names.get_values_for_type(x509.DNSName)
        certificate.verify_directly_issued_by(authorities[0])
    except Exception as error:  # of all kinds, for PEM that is none, another key's signature, another algorithm
        return f"it cannot be used ({type(error).__name__})"
    if key.public_key() != certificate.public_key():
        return "its key is another certificate's"
    if not set(hosts(service, namespace)) <= set(said):
        return f"it is not for {service}.{namespace}.svc"
    if now < certificate.not_valid_before_utc:
        return "it is not valid yet"
    if now >= renewal(certificate):
        return f"it ends at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    return ""


def renewal(certificate: x509.Certificate) -> datetime:
    """When it is to be replaced."""
    end = certificate.not_valid_after_utc
    return end - (end - certificate.not_valid_before_utc - SKEW) * LEFT


def end(pem: bytes) -> datetime:
    """When the first certificate of this PEM ends. Raises ``ValueError``."""
    return x509.load_pem_x509_certificates(pem)[0].not_valid_after_utc


def _read_all(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:  # also of none at all
        return []


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
