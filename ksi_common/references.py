"""Where data is that is too large for an event or a row."""

from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, ValidationError

from ksi_common.errors import DataLoss
from ksi_common.messages import Message

_PART: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,191}"
_MAX_SIZE: Final = 2**53 - 1

OCTETS: Final = "application/octet-stream"

FilePath = Annotated[str, StringConstraints(pattern=f"^{_PART}(/{_PART})*$", max_length=512)]
"""A path below ``$KSI_HOME`` that cannot leave it: no empty part, none that begins with a dot."""


class Reference(Message):
    """Bytes of a file below ``$KSI_HOME``, and the hash by which a reader knows that they are right."""

    path: FilePath = Field(
        examples=["blobs/2c/f24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"]
    )
    offset: int = Field(0, ge=0, le=_MAX_SIZE)
    length: int = Field(ge=0, le=_MAX_SIZE)
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    media: Annotated[str, StringConstraints(min_length=1, max_length=128)] = OCTETS

    @classmethod
    def stored(
        cls, path: object, offset: object, length: object, sha256: object, media: str = OCTETS
    ) -> Self:
        """Make it of a row; raise DataLoss (``reference_corrupt``) where the row can never have said that."""
        facts = {"path": path, "offset": offset, "length": length, "sha256": sha256, "media": media}
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            what = str(error.errors()[0]["loc"][0])
            raise DataLoss(f"a row's reference is damaged: its {what}", reason="reference_corrupt") from None
