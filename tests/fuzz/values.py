"""Valid messages of every type, made from the types themselves, to begin with and to mutate."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

_NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,11}\Z")
_DIGESTS = st.from_regex(r"\A[0-9a-f]{64}\Z")
_TEXT = st.text(max_size=12)
_MOST_ITEMS = 3


@lru_cache(maxsize=512)
def values(type_: Any) -> st.SearchStrategy[Any]:
    """Instances of `type_`: a message, or whatever a field of one may be."""
    if dataclasses.is_dataclass(type_):
        hints = get_type_hints(type_, include_extras=True)
        fields = {field.name: values(hints[field.name]) for field in dataclasses.fields(type_)}
        return st.fixed_dictionaries(fields).map(_maker(type_))
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values(each) for each in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=_MOST_ITEMS)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=_MOST_ITEMS)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=_MOST_ITEMS).map(tuple)
        return st.tuples(*map(values, arguments))
    if isinstance(type_, type) and issubclass(type_, Enum):
        return st.sampled_from(list(type_))
    return _plain(type_)


def _plain(type_: Any) -> st.SearchStrategy[Any]:
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: _TEXT,
        int: st.integers(-(2**31), 2**40),
        float: st.floats(-1e9, 1e9),
        bool: st.booleans(),
        memoryview: st.binary(max_size=40).map(memoryview),
        bytes: st.binary(max_size=40),
        type(None): st.none(),
        UnsetType: st.just(UNSET),
        Any: st.none() | st.integers(0, 9) | st.lists(st.floats(0, 1), max_size=_MOST_ITEMS),
    }
    return simple[type_]


def _bounded(type_: Any, metas: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    meta = next(meta for meta in metas if isinstance(meta, Meta))
    if type_ is int:
        return st.integers(int(meta.ge or 0), min(int(meta.le or 2**40), 2**62))
    if type_ is float:
        least = meta.ge if meta.ge is not None else meta.gt
        return st.floats(
            least, min(meta.le or 1e9, 1e9), exclude_min=meta.gt is not None, allow_nan=False
        )
    if meta.pattern is not None:
        return _DIGESTS if "64" in meta.pattern and "f" in meta.pattern[:10] else _NAMES
    least = meta.min_length or 0
    if type_ is str:
        return st.text(min_size=least, max_size=12)
    return values(type_).filter(lambda made: len(made) >= least)


def _maker(type_: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda fields: type_(**fields)


def draw(strategy: st.SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """`count` values at most, the same for the same seed."""
    made: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(value: Any) -> None:
        made.append(value)

    collect()
    return made
