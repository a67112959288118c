"""Attributes that read otherwise for whoever said so, and as ever for everybody else.

What is changed on a model for one forward (the list of its blocks, a module's forward, a switch of its config) must not
be seen by other threads that use the model, nor by other tasks of an event loop. So nothing is written to it. As long
as somebody has something overridden on an object, its class is a subclass whose property looks up the context: who
entered it, and what is called from there, reads the new value; all others read, write, copy and save what is there.
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
    """A lock for what all threads share, that a forked process does not inherit from a thread it does not have."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class Override:
    """Context manager: inside, an attribute of an object reads as a value, for this context alone.

    Args:
        owner: any object that can be given a subclass. Where that cannot be (a scripted module, a `SimpleNamespace`),
            the value is set on the object itself, for everybody.
        name: of the attribute.
        value: what it reads as.

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
        # No token is reset: a generator may be closed in another context than the one it was entered in. What then
        # stays behind there is closed, and holds nothing.
        self.is_open = False
        _CONTEXT.set(tuple(other for other in _CONTEXT.get() if other.is_open))
        with _LOCK:
            others = [other for other in _OPEN.pop(id(self.owner), []) if other is not self]
            if others:
                _OPEN[id(self.owner)] = others
            _show(self.owner, self.name)
        self.value = None


class SharedSetting:
    """Context manager for a setting of the whole process: the first thread makes it, the last to leave undoes it.

    Args:
        change: makes a context manager that makes the setting and undoes it.
    """

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
_BEFORE: dict[tuple[int, str], Any] = {}  # what was there where a value had to be set on the object itself


def _read(owner: Any, name: str) -> Any:
    """What an attribute is overridden with in this context, or `_MISSING`."""
    for override in reversed(_CONTEXT.get()):
        if override.owner is owner and override.name == name:
            value = override.value
            if override.is_open:  # looked at last: another thread may be closing it
                return value
    return _MISSING


def _show(owner: Any, name: str) -> None:
    """Give an object the class that looks up what is overridden on it, or its own again if nothing is."""
    names = tuple(sorted({override.name for override in _OPEN.get(id(owner), ())}))
    kind = type(owner)
    plain = kind.__dict__.get("_plain", kind)
    # the class of a scripted module is bound to what was compiled
    if isinstance(owner, torch.jit.ScriptModule) or (id(owner), name) in _BEFORE:
        _set_for_all(owner, name)
        return
    try:
        wanted = _contextual(plain, names) if names else plain
        if wanted is not kind:
            owner.__class__ = wanted
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
    """First among the bases of the classes made here."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Not handed on: to the class that is subclassed (a config makes a dataclass of each) nothing has happened."""


@lru_cache(maxsize=256)
def _contextual(plain: type, names: tuple[str, ...]) -> type:
    """A class like this one, some of whose attributes look up the context.

    What it adds never asks for an object's class: another thread may be giving the object its own again.
    """
    base: Any = plain

    def reduce(self: Any, protocol: Any) -> Any:
        """A copy or a pickle is of the object's own class, and holds what this context sees."""
        reduced = base.__reduce_ex__(self, min(protocol, 1))  # later ones insist on the class that the object shows
        if isinstance(reduced, str):
            return reduced
        make, args, *rest = reduced
        if rest and isinstance(rest[0], dict):
            seen = {name: value for name in rest[0] if (value := _read(self, name)) is not _MISSING}
            rest[0] = {**rest[0], **seen}
        return (make, tuple(plain if arg is kind else arg for arg in args), *rest)

    space = {name: _looked_up(plain, name) for name in names}
    space |= {"_plain": plain, "__reduce_ex__": reduce}
    space |= {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    kind: type = type(plain)(plain.__name__, (_Contextual, plain), space)
    return kind


def _looked_up(plain: type, name: str) -> Any:
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
