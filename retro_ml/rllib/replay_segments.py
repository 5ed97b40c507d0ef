"""DQN's replay on disk: what is new since the last checkpoint, in files that checkpoints share.

A segment holds the rows that every lane has got since the segment before, compressed with zstd
(Atari frames shrink twenty- to fiftyfold). Checkpoints name the segments that still matter; a
segment whose rows have all left the rings is named no more and removed with the last checkpoint
that knew it. Each save proves the files that it names again: where one is not what was written, its
rows, which are in memory still, are written anew with all others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retro_ml.core.artifacts.checkpoint_files import CheckpointError, describe_file
from retro_ml.core.experiments.faults import as_line
from retro_ml.rllib.replay import FrameReplay

logger = logging.getLogger("retro_ml.rllib")

FOLDER = "replay"
_NAME = re.compile(r"rows-[0-9]{1,19}-[0-9]{1,19}\.zst")
_MAX_ROW = 2**62
_COLUMNS = ("frames", "actions", "rewards", "kinds", "ages")


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `starts[lane]` to `stops[lane]` of each lane, counted since the run's beginning."""

    name: str
    starts: list[int]
    stops: list[int]


class ReplaySegments:
    """Which rows of a replay are on disk already, and where."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._written: dict[str, dict[str, Any]] = {}
        """`describe_file` of each segment as it was written, by its name."""

    def save(
        self, replay: FrameReplay, checkpoint: Path
    ) -> tuple[dict[str, Any], dict[Path, dict[str, Any]]]:
        """Writes what is new beside `checkpoint`.

        Returns:
            The state, and the files that it refers to, each with what a manifest tells of it.
        """
        folder = checkpoint.parent / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if not all(self._is_intact(folder / segment.name) for segment in self._segments):
            self._segments.clear()
        known = self._segments[-1].stops if self._segments else [0] * replay.num_lanes
        stops = replay.heads.tolist()
        if stops != known:
            # A lane's last row may have been marked as cut since it was saved: it is saved again.
            first = np.maximum(np.asarray(known) - 1, 0)
            starts = np.maximum(first, np.asarray(stops) - replay.lane_size).tolist()
            segment = Segment(f"rows-{sum(starts)}-{sum(stops)}.zst", starts, stops)
            content = _pack(replay, segment)
            (folder / segment.name).write_bytes(content)
            self._note(segment, content)
            self._segments.append(segment)
        oldest = replay.heads - replay.lane_size
        self._segments = [s for s in self._segments if (np.asarray(s.stops) > oldest).any()]
        self._written = {s.name: self._written[s.name] for s in self._segments}
        state = {"segments": [asdict(s) for s in self._segments]}
        return state, {folder / name: described for name, described in self._written.items()}

    def load(self, replay: FrameReplay, state: dict[str, Any], checkpoint: Path) -> None:
        """Fills an empty replay from the segments that `checkpoint` refers to.

        Raises:
            CheckpointError: a segment is missing, damaged, or of another replay.
        """
        try:
            self._segments = [Segment(**segment) for segment in state["segments"]]
        except (TypeError, KeyError):
            raise CheckpointError(f"{checkpoint}: its list of replay segments is damaged") from None
        for segment in self._segments:
            _check_fit(segment, replay)
            path = checkpoint.parent / FOLDER / segment.name
            try:
                content = path.read_bytes()
                self._note(segment, content)
                _unpack(replay, segment, content)
            except OSError as error:
                reason = error.strerror or error
                raise CheckpointError(f"replay segment {path}: cannot be read: {reason}") from None
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"replay segment {path} is damaged: {error}") from None

    def _note(self, segment: Segment, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self._written[segment.name] = {"sha256": digest, "bytes": len(content)}

    def _is_intact(self, path: Path) -> bool:
        try:
            intact = describe_file(path) == self._written[path.name]
            reason = "it is not what was written"
        except OSError as error:
            intact, reason = False, error.strerror or str(error)
        if not intact:
            logger.warning("replay segment %s: %s; all is written anew", path, reason)
        return intact


def _pack(replay: FrameReplay, segment: Segment) -> bytes:
    parts: list[bytes] = []
    for lane, (start, stop) in enumerate(zip(segment.starts, segment.stops, strict=True)):
        rows = replay.get_rows(lane, start, stop)
        parts.extend(pa.compress(rows[name].tobytes(), "zstd", asbytes=True) for name in _COLUMNS)
    head = json.dumps([len(part) for part in parts]).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(parts)


def _check_fit(segment: Segment, replay: FrameReplay) -> None:
    """Raises CheckpointError for numbers that would ask for more memory than the replay has."""
    if not isinstance(segment.name, str) or not _NAME.fullmatch(segment.name):
        raise CheckpointError(f"replay segment {as_line(str(segment.name), longest=60)}: no such")
    bounds = (segment.starts, segment.stops)
    whole = all(
        isinstance(rows, list)
        and len(rows) == replay.num_lanes
        and all(type(row) is int and 0 <= row <= _MAX_ROW for row in rows)
        for rows in bounds
    )
    if not whole or any(
        not 0 <= stop - start <= replay.lane_size for start, stop in zip(*bounds, strict=True)
    ):
        raise CheckpointError(f"replay segment {segment.name} does not fit this run's games")


def _unpack(replay: FrameReplay, segment: Segment, content: bytes) -> None:
    head_bytes = int.from_bytes(content[:8], "little")
    sizes = json.loads(content[8 : 8 + head_bytes])
    if not isinstance(sizes, list) or len(sizes) != len(_COLUMNS) * replay.num_lanes:
        raise CheckpointError(f"replay segment {segment.name} does not fit this run's games")
    if not all(type(size) is int and 0 <= size <= len(content) for size in sizes):
        raise ValueError("its table of contents is wrong")
    at = 8 + head_bytes
    for lane, (start, stop) in enumerate(zip(segment.starts, segment.stops, strict=True)):
        rows = {}
        for column, name in enumerate(_COLUMNS):
            size = sizes[lane * len(_COLUMNS) + column]
            like = getattr(replay, name)
            shape = (stop - start, *like.shape[2:])
            raw = pa.decompress(
                content[at : at + size], int(np.prod(shape)) * like.itemsize, "zstd", asbytes=True
            )
            rows[name] = np.frombuffer(raw, like.dtype).reshape(shape)
            at += size
        replay.put_rows(lane, start, rows)
