"""The section `timeouts`: how long each kind of wait may last, and what happens then."""

from __future__ import annotations

from pipeline.config import setting_types as allowed
from pipeline.config.setting_types import Section
from pipeline.plugins.ranges import PositiveFloat


class TimeoutsConfig(Section, frozen=True, kw_only=True):
    log_wait_s: PositiveFloat = 20.0
    """Seconds after which a wait prints one line that names what it waits for."""
    heartbeat_s: allowed.HeartbeatSeconds = 5.0
    """Seconds without a heartbeat after which a peer is lost."""
    join_s: PositiveFloat = 600.0
    """Seconds that engines and learner may take to join; then the run stops and names who is
    missing. Also the time that it continues without any engine."""
    load_s: PositiveFloat = 300.0
    """Seconds that an engine may take to load new weights; then it is restarted."""
    abort_s: PositiveFloat = 30.0
    """Seconds that an engine may take to confirm an abort; then it is restarted."""
    sampling_s: PositiveFloat = 120.0
    """Seconds that a sampling engine may send nothing at all; then it is restarted."""
    no_token_s: PositiveFloat = 300.0
    """Seconds without a new token after which a trajectory is aborted and continues on another
    engine. Also the time after which the run stops, and says what it waits for, when nothing moves
    and nothing is under way."""
    reward_s: PositiveFloat = 180.0
    """Seconds without any reward, beyond two calls of `workers.limit_s`, after which the rewards
    that are waited for count as missing; the same for answers of the environment."""
    learner_s: PositiveFloat = 900.0
    """Seconds that a learner rank may take to answer; then the run ends, as if it had died."""
    checkpoint_s: PositiveFloat = 300.0
    """Seconds that a checkpoint may take to be on disk; then it is given up."""
    stop_s: PositiveFloat = 10.0
    """Seconds from Ctrl-C to the end of every process, a checkpoint included; one that is being
    written then is waited for, up to `timeouts.checkpoint_s`."""
