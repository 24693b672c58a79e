"""Base of every plug-in's nested ``Config``."""

from pydantic import BaseModel, ConfigDict


class PluginConfig(BaseModel):
    """Settings of one plug-in, nested in its class as ``Config``.

    Unknown keys, values of another type (a text where a number belongs) and numbers that are not
    finite are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    """The registry id of the plug-in."""
