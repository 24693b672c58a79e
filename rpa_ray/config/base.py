"""The base of every group of settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings group.

    Frozen; unknown keys, values of another type (a text where a number belongs) and numbers that
    are not finite are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
