"""This machine's certificate, made by itself: what https needs where nobody runs an authority."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
import socket
from collections.abc import Collection
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from onedp_ros.files import write_atomically

LIFE = datetime.timedelta(days=365)  # phones refuse what lives longer than 825 days
RENEWAL = datetime.timedelta(days=7)  # what expires within this is made anew
ANY = "0.0.0.0"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A PEM file that holds a certificate and its key, readable by its owner alone, and the certificate's SHA-256."""

    path: Path
    fingerprint: str


def addresses(host: str) -> list[str]:
    """Where a server bound to ``host`` is reached: that name or address; for 0.0.0.0 all this machine's IPv4 addresses."""
    if host != ANY:
        return [_canonical(host)]
    found = [a.address for interface in psutil.net_if_addrs().values() for a in interface if a.family == socket.AF_INET]
    return [a for a in found if not ipaddress.ip_address(a).is_loopback] or ["127.0.0.1"]


def names(host: str) -> list[str]:
    """Every name and address under which a server bound to ``host`` is itself, as browsers write them."""
    machine = socket.gethostname().lower()
    return list(dict.fromkeys([*addresses(host), machine, f"{machine}.local", "localhost", "127.0.0.1", "::1"]))


def configuration_folder() -> Path:
    """``$XDG_CONFIG_HOME/onedp_ros``, by default ``~/.config/onedp_ros``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "onedp_ros"


def machine_certificate(needed: Collection[str], folder: Path) -> Certificate:
    """The certificate in ``folder``, made at first use for the ``needed`` :func:`names` and all this machine's addresses.

    It is made anew, with a new key, when it is about to expire, lacks a needed name, is damaged, or when others may read its
    key. OSError when the folder cannot be written.
    """
    path = folder / "certificate.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        serialization.load_pem_private_key(path.read_bytes(), None)
        private = path.stat().st_mode & 0o077 == 0
        covered = {str(name.value) for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}
        fresh = certificate.not_valid_after_utc - RENEWAL > datetime.datetime.now(datetime.timezone.utc)
        usable = private and fresh and covered >= set(needed)
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        usable = False
    if not usable:
        certificate = _make(list(dict.fromkeys([*needed, *names(ANY)])), path)
    return Certificate(path, certificate.fingerprint(hashes.SHA256()).hex(":").upper())


def _make(names: Collection[str], path: Path) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "onedp_ros teleoperation")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # the phone's clock may be behind
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    write_atomically(path, text, 0o600)
    return certificate


def _canonical(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
