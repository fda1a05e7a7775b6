"""What settings are made of: sections, a plug-in's name with its options, and the types whose rule
needs a pattern or words of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pipeline.plugins.ranges import NonEmpty, zero_or


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections."""


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """A named plug-in: `selector: dual_end` or `selector: {dual_end: {longest: 2}}`."""

    name: str
    options: dict[str, Any] = {}
    """Every option with its value, defaults included, once the configuration is loaded."""


_FIELD = "the name of a field, with dots for one inside another"
FieldName = Annotated[str, Meta(pattern=r"^[^.]+(\.[^.]+)*$", description=_FIELD)]
OptionalFieldName = Annotated[
    str, Meta(pattern=r"^([^.]+(\.[^.]+)*)?$", description=f"{_FIELD}, or nothing")
]
Beta = Annotated[float, Meta(ge=0, lt=1)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
Port = Annotated[int, zero_or(1024, 65535)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
DataPath = Annotated[str, Meta(min_length=1, description="a task, a file, a folder or a pattern")]
ZeroStage = Annotated[int, Meta(ge=0, le=3, description="a stage from 0 to 3")]
NoDropout = Annotated[
    float,
    Meta(
        ge=0,
        le=0,
        description="0: with dropout the learner's logprobs are not those of what the engines "
        "serve",
    ),
]
LayerNames = Annotated[
    tuple[NonEmpty, ...],
    Meta(min_length=1, description="names of linear layers, or all-linear"),
]
CpuCores = Annotated[
    str,
    Meta(
        pattern=r"^(auto|\d+(-\d+)?(,\d+(-\d+)?)*)$",
        description='auto, or cores such as "0" or "0-3"',
    ),
]
HeartbeatSeconds = Annotated[
    float, Meta(ge=2, description="at least 2: peers are heard once a second")
]
NetworkInterface = Annotated[
    str,
    Meta(
        pattern=r"^[^ /:]*$",
        description="a network interface (eth1), an IPv4 address, or nothing",
    ),
]
SystemGroup = Annotated[
    str,
    Meta(pattern=r"^([A-Za-z_][\w.-]{0,31}|\d{1,9})?$", description="a group's name or number"),
]
WandbProject = Annotated[
    str,
    Meta(pattern=r"^[^/\\#?%:]*$", description="a project's name, without / \\ # ? % :"),
]
MlflowExperiment = Annotated[
    str, Meta(pattern=r"^(\S(.*\S)?)?$", description="an experiment's name")
]
TrackioProject = Annotated[
    str, Meta(pattern=r"^[^/\\]*$", description="a project's name, without / \\")
]
MinLr = Annotated[float, Meta(ge=0, le=1, description="a share of learner.lr, from 0 to 1")]
Attention = Literal[
    "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
]
