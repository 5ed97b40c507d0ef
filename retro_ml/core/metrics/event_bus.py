"""Events of a run and the bus that hands them to subscribers, in the driver's process.

The bus lives where the user's program lives. Training runs in other processes, which record plain
data; the driver turns those records into events and emits them here. A bus therefore refuses to be
pickled: a copy in another process would look alive and reach nobody.

Standard library only.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

logger = logging.getLogger("retro_ml.events")


class EventType(str, Enum):
    """What an event tells; the values are the `type` found in a run's files."""

    RUN_STARTED = "run_started"
    TRAINING_STEP = "training_step"
    EPISODE_FINISHED = "episode_finished"
    EVALUATION_FINISHED = "evaluation_finished"
    CHECKPOINT_SAVED = "checkpoint_saved"
    HYPERPARAMETERS_CHANGED = "hyperparameters_changed"
    RUN_COMPLETED = "run_completed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class MetricEvent:
    """One thing that happened in one experiment, at an aware UTC time."""

    event_type: EventType
    experiment_id: str
    timestamp: datetime
    data: dict[str, Any]

    def __post_init__(self) -> None:
        if self.timestamp.tzinfo is not UTC:
            object.__setattr__(self, "timestamp", _utc(self.timestamp, what="timestamp"))

    @classmethod
    def now(
        cls, event_type: EventType, experiment_id: str, data: dict[str, Any] | None = None
    ) -> "MetricEvent":
        """An event of this instant."""
        return cls(event_type, experiment_id, datetime.now(UTC), {} if data is None else data)

    def to_dict(self) -> dict[str, Any]:
        """Plain types; the timestamp as ISO 8601 with microseconds and +00:00."""
        return {
            "event_type": self.event_type.value,
            "experiment_id": self.experiment_id,
            "timestamp": self.timestamp.isoformat(timespec="microseconds"),
            "data": dict(self.data),
        }


Subscriber = Callable[[MetricEvent], object]
_Subscription = tuple[int, EventType | None, Subscriber]
_Listeners = dict[EventType, tuple[Subscriber, ...]]


class MetricEventBus:
    """Hands each event to its subscribers, in the order in which they subscribed.

    Safe to use from many threads. Events emitted by one thread reach every subscriber in the order
    of emission: what a subscriber emits while it is called is handed out after the event in hand
    has reached everybody, so `emit` called inside a subscriber returns before that. A subscriber
    that raises is logged with its traceback and harms no other. `history_limit` bounds the number
    of events remembered; the oldest are forgotten first.

    Whoever wants one experiment's events says so when subscribing: an event then costs the same
    whether one experiment is running or a thousand.
    """

    def __init__(self, history_limit: int = 10_000) -> None:
        if history_limit < 0:
            raise ValueError(f"history_limit: {history_limit} -> 0 or more events")
        self._history: deque[MetricEvent] = deque(maxlen=history_limit)
        self._lock = threading.Lock()
        self._number = 0
        # By experiment; those to all experiments under None, and in everybody's listeners.
        self._subscriptions: dict[str | None, tuple[_Subscription, ...]] = {None: ()}
        self._listeners: dict[str | None, _Listeners] = {None: dict.fromkeys(EventType, ())}
        self._waiting = threading.local()

    def subscribe(
        self,
        event_type: EventType | None,
        callback: Subscriber,
        *,
        experiment_id: str | None = None,
    ) -> None:
        """Call `callback(event)` for every event of this type, or of any type when it is None.

        With `experiment_id` for that experiment's events only. Raises ValueError for an unknown
        type, TypeError for a callback that cannot be called.
        """
        if not callable(callback):
            raise TypeError(f"callback: {callback!r} -> a function of one event")
        wanted = None if event_type is None else EventType(event_type)
        with self._lock:
            self._number += 1
            before = self._subscriptions.get(experiment_id, ())
            self._replace(experiment_id, (*before, (self._number, wanted, callback)))

    def unsubscribe(
        self,
        event_type: EventType | None,
        callback: Subscriber,
        *,
        experiment_id: str | None = None,
    ) -> bool:
        """Undo one `subscribe` with the same arguments; False when there was none."""
        wanted = None if event_type is None else EventType(event_type)
        with self._lock:
            before = self._subscriptions.get(experiment_id, ())
            for index, (_, kind, call) in enumerate(before):
                if kind is wanted and call == callback:
                    self._replace(experiment_id, before[:index] + before[index + 1 :])
                    return True
            return False

    def emit(self, event: MetricEvent) -> None:
        """Remember the event and hand it to its subscribers. Raises TypeError for anything else."""
        if not isinstance(event, MetricEvent):
            raise TypeError(f"event: {event!r} -> a MetricEvent")
        with self._lock:
            self._history.append(event)
        waiting = self._waiting.__dict__
        if "events" in waiting:
            waiting["events"].append(event)
            return
        waiting["events"] = pending = deque((event,))
        try:
            while pending:
                self._hand_out(pending.popleft())
        finally:
            del waiting["events"]

    def history(
        self,
        event_type: EventType | None = None,
        experiment_id: str | None = None,
        since: datetime | None = None,
    ) -> list[MetricEvent]:
        """The remembered events, oldest first; `since` (aware): those at or after that time."""
        wanted = None if event_type is None else EventType(event_type)
        earliest = None if since is None else _utc(since, what="since")
        with self._lock:
            events = list(self._history)
        return [
            event
            for event in events
            if (wanted is None or event.event_type is wanted)
            and (experiment_id is None or event.experiment_id == experiment_id)
            and (earliest is None or event.timestamp >= earliest)
        ]

    def __reduce__(self) -> str:
        raise TypeError(
            "a MetricEventBus stays in the process that made it: record plain data elsewhere "
            "and emit it here"
        )

    def _hand_out(self, event: MetricEvent) -> None:
        listeners = self._listeners.get(event.experiment_id) or self._listeners[None]
        for callback in listeners[event.event_type]:
            try:
                callback(event)
            except Exception:
                logger.exception("subscriber %r failed on %s", callback, event.event_type.value)

    def _replace(self, experiment_id: str | None, subscriptions: tuple[_Subscription, ...]) -> None:
        # New tuples each time: an emit under way keeps the ones it began with, and needs no lock.
        if subscriptions or experiment_id is None:
            self._subscriptions[experiment_id] = subscriptions
        else:
            del self._subscriptions[experiment_id]
            del self._listeners[experiment_id]
            return
        changed = self._subscriptions if experiment_id is None else (experiment_id,)
        for one in changed:
            self._listeners[one] = self._build_listeners(one)

    def _build_listeners(self, experiment_id: str | None) -> _Listeners:
        own = self._subscriptions[experiment_id] if experiment_id is not None else ()
        ordered = sorted((*self._subscriptions[None], *own), key=lambda one: one[0])
        return {
            kind: tuple(call for _, wanted, call in ordered if wanted in (None, kind))
            for kind in EventType
        }


def _utc(moment: datetime, *, what: str) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(
            f"{what}: {moment.isoformat()} -> a time with its zone (datetime.now(UTC))"
        )
    return moment.astimezone(UTC)
