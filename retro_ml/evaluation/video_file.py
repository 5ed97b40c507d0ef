"""Films as files: H.264 in an mp4, written frame by frame, there whole or not at all.

Needs the extra `[video]`: PyAV, whose code is BSD-licensed and whose wheels bring FFmpeg with
libx264, which is under the GNU GPL, version 2 or later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.core.artifacts.storage import ArtifactError, rename_whole

FRAMES_PER_S = 60
"""Of the console's picture: 59.92 on an NTSC set, 60 in the emulator."""
_ENCODER = "libx264"
_OPTIONS = {
    # Flat colours and sharp edges: constant quality costs little, and 18 shows no difference.
    "crf": "18",
    "preset": "veryfast",
    # A player can jump to any second, and films can be put together.
    "g": str(FRAMES_PER_S),
}
_CONTAINER_OPTIONS = {"movflags": "+faststart"}  # a browser may play before it has all
_BT709 = 1  # the number of the standard in FFmpeg, for primaries, transfer and matrix alike
_LIMITED = 1  # the range of its luma, 16 to 235

Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
"""Y `[H, W]`, Cb and Cr `[H/2, W/2]`, uint8: BT.709, limited range."""


class NoVideo(RuntimeError):
    """This installation cannot make films; the message says what to do."""

    exit_code = 3


def require_video() -> None:
    """Raises NoVideo where the extra is not installed, or its FFmpeg has no H.264 encoder."""
    try:
        import av
        import PIL  # noqa: F401
    except ImportError as error:
        raise NoVideo(
            f"films need {error.name}, which is not installed -> pip install 'retro_ml[video]'"
        ) from None
    if _ENCODER not in av.codecs_available:
        raise NoVideo(
            f"this PyAV has no encoder {_ENCODER} -> install its wheel: "
            "pip install --force-reinstall --only-binary av av"
        )


class VideoFile:
    """A film being written.

    Args:
        path: where it will be; until `finish` it grows beside it under another name.
        width, height: in pixels, even.
        temporary: the other name; by default `temporary_path`, for which two films of one path at
            the same time are not supported.

    Raises:
        ArtifactError: from every method, when the file cannot be written; nothing remains then.
    """

    def __init__(
        self, path: Path, *, width: int, height: int, temporary: Path | None = None
    ) -> None:
        self.frames = 0
        self._done = False
        self._path, self._temporary = path, temporary or temporary_path(path)
        with self._writing():
            self._container = _open_for_writing(self._temporary)
            self._stream = self._container.add_stream(_ENCODER, rate=FRAMES_PER_S)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = _OPTIONS
            context = self._stream.codec_context
            context.thread_count = 1
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED

    def write(self, planes: Planes) -> None:
        """Adds one frame."""
        import av

        height, width = planes[0].shape
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane, values in zip(frame.planes, planes, strict=True):
            target = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            target[: values.shape[0], : values.shape[1]] = values
        frame.pts = self.frames
        with self._writing():
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        """Ends the film and gives it its name."""
        with self._writing():
            self._container.mux(self._stream.encode(None))
            self._container.close()
            rename_whole(self._temporary, self._path)
        self._done = True

    def discard(self) -> None:
        """Leaves nothing behind of a film that is not finished."""
        if self._done:
            return
        self._done = True
        with suppress(OSError, ValueError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # FFmpeg's are among them
            if hasattr(self, "_container"):
                self.discard()
            raise _cannot_write(self._path, error) from error


def join_videos(parts: Sequence[Path], path: Path) -> list[Path]:
    """One film of many, in their order; nothing is encoded anew, so it takes next to no time.

    Args:
        parts: films of `VideoFile`.
        path: of the whole.

    Returns:
        The parts that were left out: of another size or encoder than the first, or not readable.

    Raises:
        ArtifactError: it cannot be written.
    """
    import av

    left_out: list[Path] = []
    temporary = temporary_path(path)
    stream: Any = None
    before = 0
    try:
        with _open_for_writing(temporary) as container:
            for part in parts:
                try:
                    with av.open(str(part)) as source:
                        found = source.streams.video[0]
                        if stream is None:
                            stream = container.add_stream_from_template(found)
                        elif not _is_alike(found, stream):
                            left_out.append(part)
                            continue
                        before += _copy_packets(source, found, container, stream, offset=before)
                except (av.error.InvalidDataError, IndexError, FileNotFoundError):
                    left_out.append(part)
        if stream is None:
            temporary.unlink()
        else:
            rename_whole(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return left_out


def temporary_path(path: Path) -> Path:
    """Where a film is written until it is whole; one left by a kill is written over."""
    return path.with_name(f".{path.name}.tmp")


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot write {path}: {error.strerror or error}")


def _open_for_writing(path: Path) -> Any:
    import av

    return av.open(str(path), "w", format="mp4", options=_CONTAINER_OPTIONS)


def _is_alike(found: Any, stream: Any) -> bool:
    """The decoder's settings, which stand in the file once, fit both."""
    return bytes(found.codec_context.extradata or b"") == bytes(
        stream.codec_context.extradata or b""
    )


def _copy_packets(source: Any, found: Any, container: Any, stream: Any, *, offset: int) -> int:
    """Copies a film behind `offset` frames; returns how many it has."""
    frames = 0
    per_frame = round(1 / (found.time_base * FRAMES_PER_S))
    for packet in source.demux(found):
        if packet.dts is None:  # the end
            continue
        packet.pts += offset * per_frame
        packet.dts += offset * per_frame
        packet.stream = stream
        container.mux(packet)
        frames += 1
    return frames
