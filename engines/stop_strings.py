"""Ends a turn at a stop string, for every engine: finds it in the sampled tokens.

Turns deltas into deltas that end with the token which completes a stop string. That token
and all before it stay as they were sampled; tokens that the engine sampled after it are
thrown away and counted nowhere. Knows no socket and no leg.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from engines.base import Delta, Engine, Sampling
from engines.text_search import TextSearch


async def generate_until_stop(
    stops: TextSearch, engine: Engine, sampling: Sampling
) -> AsyncGenerator[Delta, None]:
    """Stream the engine's deltas up to a stop string, which is a finish like a stop token.

    The engine itself can stop at tokens that hold one.
    """
    asked = msgspec.structs.replace(sampling, stop_tokens=tuple(sorted(stops.tokens)))
    before = stops.last_tokens(sampling.tokens)
    deltas = engine.generate(asked)
    async for delta in deltas:
        kept = stops.completed_after(before, delta.tokens)
        if not kept:
            yield delta
            before = stops.last_tokens(before, delta.tokens)
            continue
        if not delta.finish:  # before the yield: the caller stops reading at a finish
            await engine.abort([sampling.id])
        yield msgspec.structs.replace(
            delta,
            tokens=delta.tokens[:kept],
            logprobs=delta.logprobs[:kept],
            finish="stop",
            remaining=None,
        )
        return
