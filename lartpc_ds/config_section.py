"""What every section of the run configuration is: frozen, strict, inert, each field documented where it stands."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """Base of the sections; a key that does not exist, or a value of another type, is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
