"""The kinds of values a config holds, and the base of its sections.

Pydantic's lax mode is kept for text (a command line gives nothing else) and refused where it would
surprise: true is no number, 1 is no switch. Whole numbers may be written 10_000_000 or 1e7. Times
are kept in UTC.
"""

from __future__ import annotations

import operator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from pydantic_core import PydanticCustomError

_LONGEST_NUMBER = 40  # characters; Python and Decimal take their time over longer ones


def _not(kind: str) -> PydanticCustomError:
    """The fault of a value that is not of this kind."""
    return PydanticCustomError("wrong_kind", "should be {kind}", {"kind": kind})


def _read_whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise _not("a whole number")
    if not isinstance(value, str):
        # numpy's whole numbers are no int, but say that they are as good as one
        try:
            return operator.index(value) if hasattr(value, "__index__") else value
        except TypeError:  # an array of them says so too
            raise _not("a whole number") from None
    text = value.strip().replace("_", "")
    try:
        if len(text) > _LONGEST_NUMBER or not text.isascii():
            raise InvalidOperation
        number = Decimal(text)
        if not number.is_finite() or number.adjusted() > _LONGEST_NUMBER or number != int(number):
            raise InvalidOperation
    except InvalidOperation:
        raise _not("a whole number") from None
    return int(number)


def _read_real(value: Any) -> Any:
    if isinstance(value, bool):
        raise _not("a number")
    return value


def _read_switch(value: Any) -> Any:
    if not isinstance(value, bool | str):
        raise _not("true or false")
    return value


def _read_moment(value: Any) -> Any:
    if not isinstance(value, str | datetime):
        raise _not("a date and time")
    return value


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, as Python reads bytes that are no UTF-8
        raise PydanticCustomError("fault", "text that can be written in UTF-8") from None
    return text


def _to_utc(moment: datetime) -> datetime:
    try:
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except OverflowError:
        pass  # the year 1 or 9999, moved out of the calendar: no date anybody means
    raise _not("a date and time with its zone")


def _write_moment(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


Whole = Annotated[int, BeforeValidator(_read_whole)]
Real = Annotated[float, BeforeValidator(_read_real)]
Switch = Annotated[bool, BeforeValidator(_read_switch)]
Text = Annotated[str, AfterValidator(_check_text)]
Moment = Annotated[
    datetime,
    BeforeValidator(_read_moment),
    AfterValidator(_to_utc),
    PlainSerializer(_write_moment, return_type=str),
]


class FrozenModel(BaseModel):
    """Unchangeable, without unknown fields, without NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
    )
