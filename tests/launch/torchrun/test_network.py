"""Which address the stage listens at."""

import pytest

from launch.torchrun.network import interface_towards, own_address
from pipeline.wire.keys import TransportError


def test_an_interface_an_address_or_what_torchrun_says_names_the_address():
    assert own_address("lo", "") == "127.0.0.1"
    assert own_address("127.0.0.1", "") == "127.0.0.1"
    assert own_address("", "localhost") == "127.0.0.1"


def test_what_is_no_address_of_this_machine_is_named_with_those_that_are():
    with pytest.raises(
        TransportError,
        match=r"192\.0\.2\.7: not an interface or address of this machine; it has .* ?lo",
    ):
        own_address("192.0.2.7", "")


def test_a_name_that_stands_for_the_loopback_here_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostbyname", lambda _: "127.0.1.1")  # as Debian's /etc/hosts
    with pytest.raises(
        TransportError, match=r"head1 is 127\.0\.1\.1 here, which no other .* nodes\.interface"
    ):
        own_address("", "head1")


def test_the_interface_towards_a_host_is_the_one_that_reaches_it():
    assert interface_towards("127.0.0.1") == "lo"
