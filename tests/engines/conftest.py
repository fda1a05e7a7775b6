"""One real vLLM engine for the whole session: it takes half a minute to start."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.vllm import VllmEngine
from pipeline.config import EngineSection

MODEL = Path(__file__).resolve().parents[2] / "models" / "chain-sums"


@pytest.fixture(scope="session")
def model_directory() -> Path:
    return MODEL


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(str(MODEL), EngineSection(slots=16, chunk_tokens=8))
    await engine.start()
    yield engine
    await engine.close()
