"""Event files for TensorBoard, in `tensorboard/`.

The format is written here, in a few dozen lines: records of a length, a masked CRC-32C and a
protocol buffer `Event` of TensorFlow (tensorflow/core/util/event.proto, tensorboard's record
writer). tensorboardX, which Ray Tune brings along, imports PyTorch, which costs the driver 1.4
seconds and 200 MB that it has no use for.

Each attempt of a run begins a file of its own, after the files before have lost what lies beyond
the step that it goes on from; so no step is doubled, whatever reads them. A TensorBoard that is
open meanwhile has seen those steps, and forgets them by the mark at the new file's beginning.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.run_writer import RunWriter
from retro_ml.core.artifacts.storage import ArtifactError, replace_atomically
from retro_ml.core.metrics.event_bus import EventType, MetricEvent
from retro_ml.core.metrics.scalar_names import name_scalars

if TYPE_CHECKING:
    from retro_ml.core.experiments.config import ExperimentConfig

logger = logging.getLogger("retro_ml.artifacts")

_FLUSH_INTERVAL_S = 2.0
_LENGTH_WINDOW = 100
"""Games over which the mean length is taken, as the mean score."""
_MAX_RECORD_BYTES = 1_000_000
# Field numbers and wire types of event.proto and summary.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = (
    b"\x09",
    b"\x10",
    b"\x1a",
    b"\x2a",
    b"\x3a",
)
_VALUE, _TAG, _SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"
_SESSION_START = b"\x08\x01"


class TensorBoardWriter(RunWriter):
    """Writes a run's numbers for TensorBoard; a file that cannot be written harms no training."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__(config)
        self._folder = config.paths.tensorboard_dir
        self._file: BinaryIO | None = None
        self._broken = False
        self._flushed_at_s = 0.0
        self._lengths: deque[float] = deque(maxlen=_LENGTH_WINDOW)

    def _take(self, event: MetricEvent) -> None:
        if self._broken:
            return
        try:
            if event.event_type is EventType.RUN_STARTED:
                self._begin_attempt(event, from_step=event.data.get("from_step", 0))
            self._write(event)
            ordinary = event.event_type in {EventType.TRAINING_STEP, EventType.EPISODE_FINISHED}
            if not ordinary or time.monotonic() - self._flushed_at_s >= _FLUSH_INTERVAL_S:
                self._flush()
        except (OSError, ArtifactError) as error:
            self._broken = True
            logger.warning("no more events for TensorBoard: %s", error)

    def _end(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                logger.warning("no more events for TensorBoard: %s", error)

    def _begin_attempt(self, event: MetricEvent, *, from_step: int) -> None:
        self._end()
        self._folder.mkdir(exist_ok=True)
        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            if from_step == 0:
                path.unlink()
            else:
                _cut_events(path, after_step=from_step)
        self._lengths.clear()
        if from_step > 0 and self._config.paths.metrics_csv_path.exists():
            rows = read_rows(self._config.paths.metrics_csv_path)
            self._lengths.extend(row["length"] for row in rows if row.get("length") is not None)
        self._file = self._new_path().open("xb")
        wall_time = event.timestamp.timestamp()
        self._file.write(_record(_head(wall_time) + _block(_FILE_VERSION, b"brain.Event:2")))
        if from_step > 0:
            mark = _head(wall_time, from_step + 1) + _block(_SESSION_LOG, _SESSION_START)
            self._file.write(_record(mark))

    def _new_path(self) -> Path:
        """TensorBoard reads files in the order of their names, so the newest comes last."""
        started = int(time.time())
        newest = max((path.name for path in self._folder.glob("events.out.tfevents.*")), default="")
        words = newest.split(".")
        if len(words) > 3 and words[3].isdigit():
            started = max(started, int(words[3]) + 1)
        return self._folder / f"events.out.tfevents.{started:010}.{socket.gethostname()}"

    def _write(self, event: MetricEvent) -> None:
        data = event.data
        if event.event_type is EventType.EPISODE_FINISHED and data.get("length") is not None:
            self._lengths.append(data["length"])
        if event.event_type is EventType.TRAINING_STEP and self._lengths:
            data = {**data, "length_mean": sum(self._lengths) / len(self._lengths)}
        scalars = name_scalars(event.event_type, data)
        if scalars and self._file is not None:
            record = build_scalars(event.timestamp.timestamp(), data["step"], scalars)
            self._file.write(record)

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        self._flushed_at_s = time.monotonic()


def build_scalars(wall_time: float, step: int, scalars: dict[str, float]) -> bytes:
    """One record with a value for each name.

    Args:
        wall_time: seconds since 1970.
        step: agent steps.
        scalars: value by name.
    """
    values = b"".join(
        _block(_VALUE, _block(_TAG, name.encode()) + _SIMPLE_VALUE + struct.pack("<f", value))
        for name, value in scalars.items()
    )
    return _record(_head(wall_time, step) + _block(_SUMMARY, values))


def _cut_events(path: Path, *, after_step: int) -> None:
    """Drops the records beyond a step, and whatever follows a torn or damaged one."""

    def write(target: BinaryIO) -> None:
        for record, step in _read_records(path):
            if step <= after_step:
                target.write(record)

    replace_atomically(path, write)


def _read_records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole records and their steps."""
    with open(path, "rb") as file:
        while True:
            head = file.read(12)
            if len(head) < 12:
                return
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MAX_RECORD_BYTES or struct.pack("<I", _masked_crc(head[:8])) != head[8:]:
                return
            rest = file.read(length + 4)
            if len(rest) < length + 4:
                return
            if struct.pack("<I", _masked_crc(rest[:-4])) != rest[-4:]:
                return
            yield head + rest, _read_step(rest[:-4])


def _read_step(event: bytes) -> int:
    """Of an event that was written here: the step follows the time, and is 0 where it is absent."""
    if event[9:10] != _STEP:
        return 0
    step, shift = 0, 0
    for byte in event[10:20]:
        step |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return step


def _head(wall_time: float, step: int = 0) -> bytes:
    head = _WALL_TIME + struct.pack("<d", wall_time)
    return head + _STEP + _varint(step) if step else head


def _block(key: bytes, content: bytes) -> bytes:
    return key + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return b"".join(
        [
            length,
            struct.pack("<I", _masked_crc(length)),
            content,
            struct.pack("<I", _masked_crc(content)),
        ]
    )


def _build_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _build_crc_table()


def _masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord files have it: turned by 15 bits and shifted."""
    table, crc = _CRC_TABLE, 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
