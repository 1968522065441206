"""Estimates with intervals: nothing here knows an image.

Every public function refuses, in one sentence, an argument that is not of its annotated kind.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from reprlib import repr as short
from types import FunctionType
from typing import TypeGuard

import lazy_loader

_MODULES = "double_sampling estimates imbalance misclassification simulation trends".split()
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_MODULES)
HUGE = 1e100  # no measured value is greater, and its square overflows
Fits = Callable[[object], bool]


def _is_number(value: object) -> bool:
    if not isinstance(value, Real):
        return False
    huge: bool = HUGE < abs(value) < float("inf")  # type: ignore[operator]  # typeshed's Real
    return not huge


def _is_whole(value: object, least: int = 0) -> bool:
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least <= int(value) < 2**53


def _is_positive(value: object) -> bool:
    return _is_whole(value, 1)


def _is_row(value: object) -> TypeGuard[Sequence[object]]:
    sized = hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
    return sized and not isinstance(value, bytes | Mapping | Set)


def _is_estimate(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(value, "low") and all(map(_is_number, value))


def _all(fits: Fits, length: int | None = None) -> Fits:
    return lambda r: _is_row(r) and (length is None or len(r) == length) and all(map(fits, r))


def _named(fits: Fits) -> Fits:
    return lambda value: isinstance(value, Mapping) and all(map(fits, value.values()))


def _is(kind: type) -> Fits:
    return lambda value: isinstance(value, kind)


# What an argument must be that is annotated so, and how that is called.
KINDS: dict[str, tuple[Fits, str]] = {
    "int": (_is_whole, "a whole number of 0 or more"),
    "Draws": (_is_positive, "a whole number of 1 or more"),
    "Design": (_all(_is_positive, 2), "two whole numbers of 1 or more"),
    "Limits": (_all(_is_number, 2), "two numbers"),
    "float": (_is_number, "a number"),
    "str": (_is(str), "a text"),
    "Values": (_is_row, "a list"),
    "np.ndarray": (_is_row, "an array"),
    "Sequence[float]": (_is_row, "a list"),
    "Sequence[str]": (_all(_is(str)), "a list of texts"),
    "Sequence[Values]": (_all(_is_row), "a list of lists"),
    "Sequence[np.ndarray]": (_all(_is_row), "a list of arrays"),
    "tuple[int, int]": (_all(_is_number, 2), "two numbers"),
    "Counts": (_named(_is_number), "numbers by their names"),
    "Shares": (_named(_is_number), "numbers by their names"),
    "Estimate": (_is_estimate, "an Estimate"),
    "SimulatedAudit": (lambda v: hasattr(v, "true"), "a simulated audit"),
    "Sequence[DoubleSample]": (_all(lambda v: hasattr(v, "labelled")), "double samples"),
    "dict[str, Estimate]": (_named(_is_estimate), "estimates by their names"),
    "Callable[[np.ndarray], float]": (callable, "a function"),
    "np.random.Generator": (lambda v: hasattr(v, "dirichlet"), "a generator of numpy"),
    "None": (lambda value: value is None, "None"),
}


def check_arguments(module: dict[str, object]) -> None:
    """Let a module's public functions refuse, by ValueError, what is not of its annotated kind."""
    for name, function in [*module.items()]:
        if isinstance(function, FunctionType) and name[0] != "_":
            if function.__module__ == module["__name__"]:
                module[name] = _checked(function)


def _checked(function: FunctionType) -> Callable[..., object]:
    signed = signature(function)
    kinds = {name: _kinds(parameter) for name, parameter in signed.parameters.items()}

    @wraps(function)
    def call(*values: object, **named: object) -> object:
        for name, value in signed.bind(*values, **named).arguments.items():
            known = kinds[name]
            if known and not any(fits(value) for fits, _ in known):
                what = known[0][1]
                raise ValueError(f"{function.__name__}: {name} is {short(value)}: give {what}.")
        return function(*values, **named)

    return call


def _kinds(parameter: Parameter) -> list[tuple[Fits, str]]:
    kinds = [KINDS[kind] for kind in parameter.annotation.split(" | ") if kind in KINDS]
    if parameter.kind is Parameter.VAR_KEYWORD:
        kinds = [(_named(fits), f"{what} for each") for fits, what in kinds]
    if parameter.kind is Parameter.VAR_POSITIONAL:
        kinds = [(_all(fits), f"{what} for each") for fits, what in kinds]
    return kinds
