"""Overrides of an object's attributes that only the current thread or task sees.

Changes to a model for one forward (the list of its blocks, a module's forward, a flag of its config) must not be seen
by other threads that use the model, nor by other tasks of an event loop. So nothing is written to it. While an override
is open on an object, its class is a subclass whose property looks up the context variable: code inside the override
reads the new value; all other code reads, writes, copies and saves the object's own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from functools import lru_cache
from inspect import getattr_static
from typing import Any

import torch

_MISSING = object()


def shared_lock() -> threading.RLock:
    """A lock that is free in a forked process, even if a thread of the parent holds it."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class Override:
    """Context manager: inside, attribute `name` of `owner` reads as `value`, in this context alone.

    Where the owner's class cannot be replaced (a scripted module, a `SimpleNamespace`), the value is set on the object
    itself, for all threads.

    Example:
        >>> from torch import nn
        >>> module = nn.ReLU()
        >>> with Override(module, "inplace", True):
        ...     module.inplace, type(module).__name__
        (True, 'ReLU')
        >>> module.inplace, type(module) is nn.ReLU
        (False, True)
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self.owner, self.name, self.value = owner, name, value
        self.is_open = True

    def __enter__(self) -> None:
        try:
            with _LOCK:
                _OPEN.setdefault(id(self.owner), []).append(self)
                _show(self.owner, self.name)
            _CONTEXT.set((*_CONTEXT.get(), self))
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: Any) -> None:
        # No token is reset: a generator may be closed in another context than the one it was entered in. The override
        # that then stays in that context is closed, and holds no value.
        self.is_open = False
        _CONTEXT.set(tuple(other for other in _CONTEXT.get() if other.is_open))
        with _LOCK:
            others = [other for other in _OPEN.pop(id(self.owner), []) if other is not self]
            if others:
                _OPEN[id(self.owner)] = others
            _show(self.owner, self.name)
        self.value = None


class SharedSetting:
    """Context manager for a setting of the whole process: the first thread enters `change()`, the last one exits it."""

    def __init__(self, change: Callable[[], AbstractContextManager[Any]]) -> None:
        self._change, self._lock = change, shared_lock()
        self._inside, self._undo = 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo.enter_context(self._change())
            self._inside += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo.close()


_LOCK = shared_lock()
_CONTEXT: ContextVar[tuple[Override, ...]] = ContextVar("anydepth overrides", default=())
_OPEN: dict[int, list[Override]] = {}  # of all contexts, by the id of the object
_BEFORE: dict[tuple[int, str], Any] = {}  # earlier values, where one had to be set on the object itself


def _read(owner: Any, name: str) -> Any:
    """The value that overrides an attribute in this context, or `_MISSING`."""
    for override in reversed(_CONTEXT.get()):
        if override.owner is owner and override.name == name:
            value = override.value
            if override.is_open:  # checked last: another thread may be closing it
                return value
    return _MISSING


def _show(owner: Any, name: str) -> None:
    """Give an object the class that looks up its overrides, or its own class if it has none."""
    names = tuple(sorted({override.name for override in _OPEN.get(id(owner), ())}))
    kind = type(owner)
    plain = kind.__dict__.get("_plain", kind)
    # the class of a scripted module is bound to what was compiled
    if isinstance(owner, torch.jit.ScriptModule) or (id(owner), name) in _BEFORE:
        _set_for_all(owner, name)
        return
    try:
        target = _contextual(plain, names) if names else plain
        if target is not kind:
            owner.__class__ = target
    except TypeError:
        _set_for_all(owner, name)


def _set_for_all(owner: Any, name: str) -> None:
    values = [override.value for override in _OPEN.get(id(owner), ()) if override.name == name]
    key, own = (id(owner), name), vars(owner)
    if values:
        _BEFORE.setdefault(key, own.get(name, _MISSING))
        own[name] = values[-1]
    elif key in _BEFORE and (before := _BEFORE.pop(key)) is not _MISSING:
        own[name] = before
    else:
        own.pop(name, None)


class _Contextual:
    """The first base of the classes made here."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Do not call the hook of the plain class: a config's makes a dataclass of each subclass."""


@lru_cache(maxsize=256)
def _contextual(plain: type, names: tuple[str, ...]) -> type:
    """A subclass whose attributes `names` look up the context.

    Its methods never use an object's class: another thread may be setting it back at the same time.
    """
    base: Any = plain

    def reduce(self: Any, protocol: Any) -> Any:
        """Copies and pickles are of the plain class, and hold the values that this context reads."""
        reduced = base.__reduce_ex__(self, min(protocol, 1))  # later protocols store the object's current class
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        if rest and isinstance(rest[0], dict):
            values = {name: value for name in rest[0] if (value := _read(self, name)) is not _MISSING}
            rest[0] = {**rest[0], **values}
        return (make, tuple(plain if arg is kind else arg for arg in args), *rest)

    space = {name: _property(plain, name) for name in names}
    space |= {"_plain": plain, "__reduce_ex__": reduce}
    space |= {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    kind: type = type(plain)(plain.__name__, (_Contextual, plain), space)
    return kind


def _property(plain: type, name: str) -> Any:
    inherited = getattr_static(plain, name, _MISSING)
    bind = getattr(type(inherited), "__get__", None)
    assign = getattr(type(inherited), "__set__", None)

    def read(self: Any) -> Any:
        value = _read(self, name)
        if value is not _MISSING:
            return value
        own = self.__dict__
        if name in own and assign is None:
            return own[name]
        if inherited is _MISSING:
            raise AttributeError(name)
        return inherited if bind is None else bind(inherited, self, plain)

    def write(self: Any, value: Any) -> None:
        if assign is None:
            self.__dict__[name] = value
        else:
            assign(inherited, self, value)

    def remove(self: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self.__dict__[name]

    return property(read, write, remove)
