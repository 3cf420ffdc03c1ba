"""Amounts of a transform as a job file gives them: a list, or even steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_serializer, model_validator

MOST = 10_000
"""Amounts of one transform."""
DIGITS = 9
"""Decimals of an amount: 1 + 3 * 0.1 is to be 1.3."""

Number = Annotated[float, Field(allow_inf_nan=False)]


class Steps(BaseModel, frozen=True, extra="forbid"):
    """`from`, `from` + `step` and so on, not beyond `to`."""

    start: Number = Field(alias="from", description="First amount.")
    stop: Number = Field(alias="to", description="No amount is larger.")
    step: Number = Field(gt=0, description="From one amount to the next.")

    @model_validator(mode="after")
    def _some_but_not_too_many(self) -> Steps:
        if self.stop < self.start:
            raise ValueError(f"to: {self.stop:g} is less than from: {self.start:g}")
        if (self.stop - self.start) / self.step > MOST - 1:
            raise ValueError(f"step: {self.step:g} makes more than {MOST:,} amounts")
        return self

    @model_serializer
    def _as_given(self) -> dict[str, float]:
        return {"from": self.start, "to": self.stop, "step": self.step}


def _form(amounts: Any) -> str | None:
    """Which form is meant, so that an error is about that one."""
    match amounts:
        case dict() | Steps():
            return "steps"
        case list() | tuple():
            return "list"
        case "auto":
            return "auto"
    return None


def _by_form(expected: str) -> Discriminator:
    return Discriminator(
        _form, custom_error_type="amounts", custom_error_message=f"expected {expected}"
    )


_FORMS = "[AMOUNT, ...] or {from: A, to: B, step: S}"
_List = Annotated[tuple[Number, ...], Field(max_length=MOST), Tag("list")]
_Steps = Annotated[Steps, Tag("steps")]
_Auto = Annotated[Literal["auto"], Tag("auto")]
Amounts = Annotated[_List | _Steps, _by_form(_FORMS)]
Shifts = Annotated[_List | _Steps | _Auto, _by_form(f"auto, {_FORMS}")]
DESCRIPTION = f"{_FORMS}; null leaves it out."


def listed(amounts: Amounts) -> tuple[float, ...]:
    """The amounts one by one."""
    if not isinstance(amounts, Steps):
        return amounts
    count = int((amounts.stop - amounts.start) / amounts.step + 10**-DIGITS) + 1
    return tuple(round(amounts.start + at * amounts.step, DIGITS) for at in range(count))


def with_neutral(amounts: tuple[float, ...], neutral: float) -> tuple[float, ...]:
    """The amounts and that of no change, each once, in their order."""
    return tuple(sorted({amount + 0.0 for amount in (*amounts, neutral)}))  # + 0.0: no -0.0


def spread(side: int) -> tuple[float, ...]:
    """Shifts as in Figure 5: whole pixels up to 60/224 of the side either way, 12 steps if there
    is room for them.
    """
    there = {int(60 * side * step / (224 * 12) + 0.5) for step in range(13)}
    return tuple(float(pixels) for pixels in sorted({-pixels for pixels in there} | there))
