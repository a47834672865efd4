# SPDX-License-Identifier: Apache-2.0
"""What a run can be made of, by name: methods, tasks, devices, metrics, payload codecs and rules that combine updates,
ours and those of packages that are installed beside.

A registry is filled by a decorator. Our own entries are in modules that it names; an outside package names its module
in an entry point of the registry's group, so that agent, worker and coordinator all find it:

    [project.entry-points."fedkrso.methods"]
    sign-average = "my_package.light"

The module is imported at the first look-up that our own entries do not answer. The agent, which has neither NumPy nor
torch, imports modules of the groups `fedkrso.methods`, `fedkrso.tasks` and `fedkrso.devices`: they must do without, and
name what is heavy by `package.module:name`, which `resolve` imports where it is needed."""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final, Generic, Literal, TypeVar

from fedcore.errors import ConfigError

__all__ = [
    "CODECS",
    "DEVICES",
    "METHODS",
    "METRICS",
    "RULES",
    "TASKS",
    "MetricKind",
    "Registry",
    "metric_kind",
    "register_device",
    "register_metric",
    "register_payload_codec",
    "register_rule",
    "resolve",
]

T = TypeVar("T")
_Entry = TypeVar("_Entry")
# One for all: a module may register in several, and a look-up of one registry import the modules of another.
_LOADING: Final = threading.RLock()
_MOST_CHARACTERS: Final = 64


class Registry(Generic[T]):
    """Named entries of one kind, in the order in which they were registered.

    Args:
        kind: What an entry is, for errors: `method`.
        group: Of entry points, each of which names a module that registers.
        own: Modules that register our own entries; imported at the first look-up.

    Example:
        >>> colours: Registry[int] = Registry("colour", "example.colours")
        >>> colours.register("red")(0xFF0000) == colours.get("red")
        True
        >>> colours.get("rad", place="paint")
        Traceback (most recent call last):
        fedcore.errors.ConfigError: paint: no colour 'rad' (did you mean 'red'?)
    """

    def __init__(self, kind: str, group: str, own: Iterable[str] = ()) -> None:
        self.kind, self.group = kind, group
        self._own = tuple(own)
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}
        self._own_loaded = self._all_loaded = False
        self._closed = ""

    def register(self, name: str) -> Callable[[_Entry], _Entry]:
        """A decorator that registers what it decorates, and gives it back as it is.

        Raises:
            ConfigError: The name is taken, or the registry is closed.
        """

        def add(entry: _Entry) -> _Entry:
            self.add(name, entry)  # type: ignore[arg-type]
            return entry

        return add

    def add(self, name: str, entry: T, *, written: object = None) -> None:
        """Register an entry.

        Args:
            name: Its name.
            entry: What is looked up.
            written: Class or function that the entry was made of, for errors; the entry itself by default.

        Raises:
            ConfigError: The name is taken, or the registry is closed.
        """
        made = entry if written is None else written
        place = _place_of(made)
        with _LOADING:
            # Our own modules may build on each other, and are not loaded all at once by whichever is first.
            if getattr(made, "__module__", "") not in self._own:
                self._load_own()
            if name in self._entries:
                raise ConfigError(
                    f"two {self.kind}s are named {name!r}: the first is {self._places[name]}",
                    place=place,
                    remedy="give one of them another name",
                )
            if self._closed:
                raise ConfigError(
                    f"{self.kind} {name!r} is registered too late: {self._closed}",
                    place=place,
                    remedy="register it where the program begins",
                )
            self._entries[name], self._places[name] = entry, place

    def get(self, name: str, *, place: str = "") -> T:
        """The entry of a name.

        Args:
            name: As a job, plan or file says it.
            place: Where it says so, for the error.

        Raises:
            ConfigError: There is none; the remedy is the nearest name that there is.
        """
        with _LOADING:
            self._load_own()
            if name not in self._entries:
                self._load_outside()
            if name in self._entries:
                return self._entries[name]
        # A name from elsewhere may be as long as a message.
        shown = name if len(name) <= _MOST_CHARACTERS else f"{name[:_MOST_CHARACTERS]}..."
        near = difflib.get_close_matches(shown, self._entries, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(self._entries)}"
        raise ConfigError(f"no {self.kind} {shown!r}", place=place, remedy=remedy)

    def registered(self) -> tuple[T, ...]:
        """Every entry until now, ours first; for checks of one that is just registered."""
        with _LOADING:
            self._load_own()
            return tuple(self._entries.values())

    def items(self) -> tuple[tuple[str, T], ...]:
        """Every entry with its name, ours first."""
        with _LOADING:
            self._load_own()
            self._load_outside()
            return tuple(self._entries.items())

    def names(self) -> tuple[str, ...]:
        """Every name, ours first."""
        return tuple(name for name, _ in self.items())

    def close(self, why: str) -> tuple[tuple[str, T], ...]:
        """Every entry, the last time that there may be new ones.

        Args:
            why: What was built from them and cannot grow, for who comes later.
        """
        found = self.items()
        self._closed = why
        return found

    def _load_own(self) -> None:
        # First, since these modules register too.
        if not self._own_loaded:
            self._own_loaded = True
            for module in self._own:
                importlib.import_module(module)

    def _load_outside(self) -> None:
        if self._all_loaded:
            return
        self._all_loaded = True
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, point.value)):
            try:
                importlib.import_module(point.module)
            except ConfigError:
                raise
            except Exception as error:
                # Whatever a foreign module raises: the user must learn which package it is.
                package = point.dist.name if point.dist is not None else point.module
                first = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise ConfigError(
                    f"package {package} cannot be loaded: {first}",
                    place=f"{self.group}: {point.name} = {point.value}",
                    remedy=f"repair or uninstall {package}",
                ) from error


def resolve(name: str, *, place: str = "") -> Any:
    """What `package.module:name` names.

    Raises:
        ConfigError: No such module, or nothing of that name in it.

    Example:
        >>> resolve("math:floor")(2.5)
        2
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported: {error}", place=place, remedy="install it") from None
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, dir(module), 1)
        remedy = f"did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{module_name} has no {attribute!r}", place=place, remedy=remedy)
    return found


def _place_of(entry: object) -> str:
    """For errors."""
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}:{named.__qualname__}"


# What is in each says the module that registers ours: this one imports nobody.
METHODS: Registry[Any] = Registry("method", "fedkrso.methods", ("fedcore.round.methods",))
"""Of `fedcore.round.methods.Method`."""
TASKS: Registry[Any] = Registry("task", "fedkrso.tasks", ("fedcore.config.tasks",))
"""Of `fedcore.config.tasks.Task` classes."""
METRICS: Registry[Any] = Registry("metric", "fedkrso.metrics", ("fedcore.numbers.metrics", "fedcore.numbers.texts"))
"""Of functions from what a model says and what is right to a number, or to one of each example (`MetricKind`)."""
CODECS: Registry[Any] = Registry("payload codec", "fedkrso.codecs", ("fedcore.numbers.codecs",))
"""Of `fedcore.numbers.codecs.Codec` objects."""
RULES: Registry[Any] = Registry("rule", "fedkrso.rules", ("fedcore.numbers.rules", "fedcore.numbers.choosing"))
"""Of `fedcore.numbers.rules.Rule` classes."""
DEVICES: Registry[Any] = Registry("device", "fedkrso.devices", ("devices.detection",))
"""Of functions from a `devices.base.Host` to a device, or None where it is another machine."""


def register_device(name: str) -> Callable[[_Entry], _Entry]:
    """A decorator of a device's `detect`: a function from a `devices.base.Host` to a `Device`, or None where this is
    another machine. It is asked before ours are.

    Raises:
        ConfigError: The name is taken.
    """
    return DEVICES.register(name)


@dataclass(frozen=True)
class MetricKind:
    """What a metric is, beside its function.

    Attributes:
        compares: `numbers`: arrays of what the model says and of what is right (`WorkerTask.predictions`). `texts`:
            generated answers and right ones, as lists of str.
        each: It gives a number of each example, float64 (rows,), whose mean is the metric; otherwise one number of all.
        better: Whether a higher or a lower number is better.
    """

    compares: Literal["numbers", "texts"] = "numbers"
    each: bool = False
    better: Literal["higher", "lower"] = "higher"


_KIND: Final = "fedkrso_metric_kind"


def register_metric(
    name: str,
    *,
    compares: Literal["numbers", "texts"] = "numbers",
    each: bool = False,
    better: Literal["higher", "lower"] = "higher",
) -> Callable[[_Entry], _Entry]:
    """A decorator of a metric: a function of what the model says and what is right, equally many rows of both. A job
    asks for it in `[evaluation] metrics`.

    Args:
        name: In jobs and reports.
        compares: Arrays of numbers, or generated answers as lists of str.
        each: The function gives a finite number of each example; otherwise one finite number of all. A metric whose
            number is a mean over examples should: then what nodes measure adds up to exactly the mean over all rows.
        better: Which numbers are better: for the best round, and for stopping early.

    Raises:
        ConfigError: The name is taken.

    Example:
        >>> @register_metric("share-of-ones")
        ... def share_of_ones(predictions, targets):
        ...     return float((predictions == 1).mean())
        >>> METRICS.get("share-of-ones") is share_of_ones, metric_kind(share_of_ones).better
        (True, 'higher')
    """

    def add(metric: _Entry) -> _Entry:
        METRICS.add(name, metric)
        setattr(metric, _KIND, MetricKind(compares, each, better))
        return metric

    return add


def metric_kind(metric: object) -> MetricKind:
    """What a metric is; of a function that is not registered, the plain kind."""
    found: MetricKind = getattr(metric, _KIND, MetricKind())
    return found


def register_payload_codec(name: str) -> Callable[[_Entry], _Entry]:
    """A decorator of a `fedcore.numbers.codecs.Codec` class, which is made once, without arguments. A method's training
    asks for it by its kind: `Coding(name, bits)`.

    Raises:
        ConfigError: The name is taken.
    """

    def add(kind: _Entry) -> _Entry:
        CODECS.add(name, kind(), written=kind)  # type: ignore[operator]
        return kind

    return add


def register_rule(name: str) -> Callable[[_Entry], _Entry]:
    """A decorator of a `fedcore.numbers.rules.Rule` class: what becomes of the numbers that a round's participants say
    of one coordinate. A job asks for it in `[safety] rule`.

    Raises:
        ConfigError: The name is taken.
    """
    return RULES.register(name)
