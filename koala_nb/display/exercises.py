"""The check of an exercise: friendly before an answer, clear after a wrong one."""

from __future__ import annotations

from collections.abc import Callable


class NotRightYet(AssertionError):
    """A wrong answer: shown in a notebook as one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        # IPython calls this in place of its own traceback.
        return [f"Not right yet: {self}"]


def check(answer: object, is_right: Callable[..., bool], hint: str) -> None:
    """Print what to do without an answer (None) and "Right." for a right one.

    Raises NotRightYet with the hint for a wrong answer, or for one of a kind that `is_right`
    cannot judge.
    """
    if answer is None:
        print("Not yet: replace None by your answer and run this cell again.")
        return
    try:
        right = bool(is_right(answer))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise NotRightYet(f"{answer!r} cannot be checked ({error}). Hint: {hint}") from None
    if not right:
        raise NotRightYet(f"{answer!r} is not the answer. Hint: {hint}")
    print("Right.")
