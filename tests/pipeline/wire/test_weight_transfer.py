"""A published file crosses a socket whole, also when the connection breaks on the way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import xxhash

from engines.weights import WeightsError
from engines.weights_fetch import FetchingReceiver
from pipeline.wire import weight_transfer
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import KeyOwner, ListenKeys, PeerKeys, TransportError
from pipeline.wire.messages import Manifest
from pipeline.wire.server import StageServer
from pipeline.wire.weight_transfer import FILE, PIECE_BYTES, fetch_weights
from tests.pipeline.wire.test_curve_auth import free_endpoints, served, slow_to_send

SERVER, E0, STRANGER = new_pair(), new_pair(), new_pair()
CONTENT = os.urandom(5 * PIECE_BYTES // 2)  # two pieces and a half


@pytest.fixture
async def peer_keys(tmp_path: Path) -> AsyncIterator[PeerKeys]:
    published = tmp_path / "published" / "v3"
    published.mkdir(parents=True)
    (published / FILE).write_bytes(CONTENT)
    control, data, weights = free_endpoints(3)
    listen_keys = ListenKeys(
        control=control,
        data=data,
        weights=weights,
        keys=SERVER,
        allowed={E0.public: KeyOwner("engine", "e0")},
    )
    async with served(StageServer(tmp_path / "s", listen_keys, [published.parent])):
        yield PeerKeys(control=control, data=data, weights=weights, server=SERVER.public, keys=E0)


def whole(peer_keys: PeerKeys, version: int = 3, total: int = len(CONTENT)) -> bytes:
    return b"".join(fetch_weights(peer_keys, version, total, patience_s=1.0))


def manifest_of(content: bytes = CONTENT, version: int = 3) -> Manifest:
    digest = xxhash.xxh3_128_hexdigest(content)
    return Manifest(
        version=version,
        directory="elsewhere",
        bytes=len(content),
        checksum=digest,
        probe=[],
        logprobs={},
    )


async def test_the_file_comes_whole_and_in_order(peer_keys: PeerKeys) -> None:
    assert await asyncio.to_thread(whole, peer_keys) == CONTENT


@pytest.mark.fault(
    "weights are gone, or of another size, when they are fetched", part="network", by="socket"
)
async def test_a_version_that_is_gone_or_of_another_size_is_named(peer_keys: PeerKeys) -> None:
    """Promise: it is an error that names the version, or the byte.
    Bound: at the first piece.
    """
    with pytest.raises(TransportError, match="version 4 is no longer published"):
        await asyncio.to_thread(whole, peer_keys, 4)
    with pytest.raises(TransportError, match="not the 7 bytes of its manifest, at byte 0"):
        await asyncio.to_thread(whole, peer_keys, 3, 7)


@pytest.mark.fault("somebody without a key asks for weights", part="network", by="socket")
@pytest.mark.parametrize("slow", [False, True], ids=["", "denied while it asks"])
@pytest.mark.timeout(30)
async def test_weights_are_for_bearers_of_a_key(
    peer_keys: PeerKeys, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Promise: nothing is sent, and the error names the reason.
    Bound: the patience of the fetch (here 1 s).
    """
    monkeypatch.setattr(weight_transfer, "RETRY_S", 0.3)
    if slow:
        slow_to_send(monkeypatch, weight_transfer, "_encode")
    other = PeerKeys(
        control=peer_keys.control,
        data=peer_keys.data,
        weights=peer_keys.weights,
        server=SERVER.public,
        keys=STRANGER,
    )
    with pytest.raises(
        TransportError, match=r"nothing arrived .* the stage does not know this key"
    ):
        await asyncio.to_thread(whole, other)


@pytest.mark.fault("another stage listens where weights are fetched", part="network", by="socket")
@pytest.mark.timeout(30)
async def test_a_stage_with_another_key_is_not_asked_for_ever(
    peer_keys: PeerKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: attempts that fail, several a second, are no news: the error names the reason.
    Bound: the patience of the fetch (here 1 s).
    """
    monkeypatch.setattr(weight_transfer, "RETRY_S", 0.5)
    other = msgspec.structs.replace(peer_keys, server=STRANGER.public)
    with pytest.raises(TransportError, match=r"nothing arrived .* the stage there has another key"):
        await asyncio.to_thread(whole, other)


async def test_engines_of_a_machine_fetch_once_and_keep_two_versions(
    peer_keys: PeerKeys, tmp_path: Path
) -> None:
    first, second = (FetchingReceiver(peer_keys, tmp_path / "here") for _ in range(2))
    found = await asyncio.gather(
        *(asyncio.to_thread(one.receive, manifest_of()) for one in (first, second))
    )
    assert found == [tmp_path / "here" / "v3"] * 2
    assert (found[0] / FILE).read_bytes() == CONTENT
    assert first.fetched_bytes + second.fetched_bytes == len(CONTENT)
    for version in (4, 5):
        content = bytes([version]) * 100
        (tmp_path / "published" / f"v{version}").mkdir()
        (tmp_path / "published" / f"v{version}" / FILE).write_bytes(content)
        await asyncio.to_thread(first.receive, manifest_of(content, version))
    assert {path.name for path in (tmp_path / "here").glob("v*")} == {"v4", "v5"}


async def test_a_version_published_anew_is_fetched_anew(
    peer_keys: PeerKeys, tmp_path: Path
) -> None:
    receiver = FetchingReceiver(peer_keys, tmp_path / "here")
    await asyncio.to_thread(receiver.receive, manifest_of())
    changed = CONTENT[::-1]
    published = tmp_path / "published" / "v3" / FILE
    (published.parent / "new").write_bytes(changed)
    (published.parent / "new").rename(published)
    found = await asyncio.to_thread(receiver.receive, manifest_of(changed))
    assert (found / FILE).read_bytes() == changed


@pytest.mark.fault("weights are damaged on the way to another machine", part="network", by="socket")
async def test_a_damaged_file_is_refused_and_leaves_nothing(
    peer_keys: PeerKeys, tmp_path: Path
) -> None:
    """Promise: they are refused before an engine sees them, and nothing of them is left on the
    disk.
    Bound: before the load.
    """
    receiver = FetchingReceiver(peer_keys, tmp_path / "here")
    wrong = manifest_of(CONTENT[::-1])
    with pytest.raises(WeightsError, match="damaged in transit"):
        await asyncio.to_thread(receiver.receive, wrong)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["lock"]
