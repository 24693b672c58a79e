"""Base of every plug-in's nested ``Config``."""

from pydantic import BaseModel, ConfigDict


class PluginConfig(BaseModel):
    """Settings of one plug-in, nested in its class as ``Config``; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The registry id of the plug-in."""
