import datetime
import socket
import ssl
import stat
from pathlib import Path

import pytest

from onedp_ros.teleop.devices.phone import certificate
from onedp_ros.teleop.devices.phone.certificate import addresses, configuration_folder, machine_certificate, names

pytestmark = pytest.mark.concurrent


def test_only_its_owner_can_read_the_key(tmp_path: Path) -> None:
    made = machine_certificate(names("127.0.0.1"), tmp_path / "deep" / "folder")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" in made.path.read_bytes()
    assert [path.name for path in made.path.parent.iterdir()] == ["certificate.pem"], "nothing partial stays"


def test_the_certificate_is_made_once(tmp_path: Path) -> None:
    needed = names("127.0.0.1")
    assert machine_certificate(needed, tmp_path) == machine_certificate(needed, tmp_path)


def test_a_browser_accepts_it_for_every_name_of_the_machine_and_no_other(tmp_path: Path) -> None:
    needed = [*names("0.0.0.0"), "10.9.8.7", "fe80::1", "robot.example"]
    made = machine_certificate(needed, tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.path)
    client = ssl.create_default_context(cafile=str(made.path))

    def handshake(name: str) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(to_client, to_server, server_hostname=name),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        while ends:
            end = ends.pop(0)
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                ends.append(end)

    for name in needed:
        handshake(name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake("10.9.8.6")


def test_the_machine_is_known_by_its_name_and_addresses() -> None:
    assert {socket.gethostname().lower(), "localhost", "127.0.0.1", "10.9.8.7"} <= set(names("10.9.8.7"))
    assert addresses("Robot.Example") == ["robot.example"]
    assert addresses("FE80:0::1") == ["fe80::1"]
    assert set(addresses("0.0.0.0")) <= set(names("0.0.0.0"))
    assert all(address != "127.0.0.1" for address in addresses("0.0.0.0")) or addresses("0.0.0.0") == ["127.0.0.1"]


def test_a_new_address_makes_a_new_certificate_which_keeps_the_machine_s_own(tmp_path: Path) -> None:
    first = machine_certificate(names("127.0.0.1"), tmp_path)
    second = machine_certificate(names("10.9.8.7"), tmp_path)
    assert first.fingerprint != second.fingerprint
    assert machine_certificate(names("127.0.0.1"), tmp_path) == second == machine_certificate(names("0.0.0.0"), tmp_path)


def test_a_certificate_about_to_expire_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "LIFE", datetime.timedelta(days=6))
        old = machine_certificate(["localhost"], tmp_path)
    assert machine_certificate(["localhost"], tmp_path).fingerprint != old.fingerprint


def test_a_damaged_or_exposed_certificate_is_made_anew(tmp_path: Path) -> None:
    old = machine_certificate(["localhost"], tmp_path)
    whole = old.path.read_bytes()
    for damaged in (b"", whole[:100], whole[: whole.index(b"-----BEGIN CERTIFICATE") + 100]):
        old.path.write_bytes(damaged)
        assert machine_certificate(["localhost"], tmp_path).fingerprint != old.fingerprint
    old = machine_certificate(["localhost"], tmp_path)
    old.path.chmod(0o640)
    new = machine_certificate(["localhost"], tmp_path)
    assert new.fingerprint != old.fingerprint
    assert stat.S_IMODE(new.path.stat().st_mode) == 0o600


def test_it_is_kept_where_the_desktop_keeps_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert configuration_folder() == tmp_path / "onedp_ros"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configuration_folder() == tmp_path / ".config" / "onedp_ros"
