"""What every section of mesh.yaml is."""

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """Strict: no unknown key, no text for a number, no true for 1, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False
    )


def keys_of(section: type[Section]) -> dict[str, FieldInfo]:
    """Return its fields by the keys that operators write; a word of Python's has an alias."""
    return {field.alias or name: field for name, field in section.model_fields.items()}
