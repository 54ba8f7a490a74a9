"""Certificates: what is made is good, and what is not good is found out."""

import dataclasses
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from freeze_proxy.webhook import certs
from freeze_proxy.webhook.certs import Bundle

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LIFETIME = timedelta(days=90)


def made(now: datetime = NOW, lifetime: timedelta = LIFETIME, before: bytes = b"") -> Bundle:
    return certs.made("hook", "away", lifetime, now, before)


def trouble(bundle: Bundle, now: datetime = NOW) -> str:
    return certs.trouble(bundle, "hook", "away", now)


def verified(bundle: Bundle, authorities: bytes, name: str = "hook.away.svc", now: datetime = NOW) -> None:
    """By an X.509 path validation of its own (RFC 5280), as strict as the web's. Raises ``VerificationError``."""
    store = Store(x509.load_pem_x509_certificates(authorities))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(name))
    verifier.verify(x509.load_pem_x509_certificate(bundle.certificate), [])


@pytest.mark.parametrize("name", ["hook.away.svc", "hook.away.svc.cluster.local"])
def test_clients_accept_it(name: str) -> None:
    bundle = made()
    assert trouble(bundle) == ""
    verified(bundle, bundle.authorities, name)


@pytest.mark.parametrize("name", ["hook.other.svc", "hook", "away.svc"])
def test_not_for_other_names(name: str) -> None:
    bundle = made()
    with pytest.raises(VerificationError):
        verified(bundle, bundle.authorities, name)


def test_not_by_another_authority() -> None:
    with pytest.raises(VerificationError):
        verified(made(), made().authorities)


def test_it_is_good_from_an_hour_before_to_its_end() -> None:
    bundle = made()
    for now in (NOW - timedelta(minutes=59), NOW + LIFETIME - timedelta(seconds=1)):
        verified(bundle, bundle.authorities, now=now)
    for now in (NOW - timedelta(minutes=61), NOW + LIFETIME + timedelta(seconds=1)):
        with pytest.raises(VerificationError):
            verified(bundle, bundle.authorities, now=now)


def test_it_is_renewed_when_a_third_is_left() -> None:
    bundle = made()
    assert trouble(bundle, NOW + timedelta(days=59, hours=23)) == ""
    assert "it ends at 2027-02-22T12:00:00Z" in trouble(bundle, NOW + timedelta(days=60, hours=1))
    assert trouble(bundle, NOW - timedelta(hours=2)) == "it is not valid yet"


def test_renewed_ones_and_old_ones_are_both_trusted() -> None:
    first = made()
    later = NOW + timedelta(days=61)
    second = made(now=later, before=first.authorities)
    for one in (first, second):
        verified(one, second.authorities, now=later)
    third = made(now=NOW + timedelta(days=122), before=second.authorities)
    assert len(x509.load_pem_x509_certificates(third.authorities)) == 2  # the first has ended


def test_authorities_do_not_grow_without_end() -> None:
    bundle = made()
    for _ in range(9):
        bundle = made(before=bundle.authorities)
    assert len(x509.load_pem_x509_certificates(bundle.authorities)) == 3
    verified(bundle, bundle.authorities)


def test_what_is_wrong_is_found() -> None:
    bundle, other = made(), made()
    assert trouble(dataclasses.replace(bundle, key=other.key)) == "its key is another certificate's"
    assert "cannot be used" in trouble(dataclasses.replace(bundle, authorities=other.authorities))
    assert certs.trouble(bundle, "hook", "elsewhere", NOW) == "it is not for hook.elsewhere.svc"
    for part in ("authorities", "certificate", "key"):
        for junk in (b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            assert "cannot be used" in trouble(dataclasses.replace(bundle, **{part: junk}))


def test_junk_before_is_forgotten() -> None:
    assert len(x509.load_pem_x509_certificates(made(before=b"junk").authorities)) == 1


def test_the_authority_signs_nothing_else() -> None:
    bundle = made()
    authority = x509.load_pem_x509_certificate(bundle.authorities)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    key = serialization.load_pem_private_key(bundle.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() != authority.public_key()  # whose key is nowhere


def test_openssl_takes_it() -> None:
    context = ssl.create_default_context(cadata=made().authorities.decode())
    assert len(context.get_ca_certs()) == 1
