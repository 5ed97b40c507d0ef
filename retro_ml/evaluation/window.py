"""An agent at play in a window: every frame, in the game's own colours, enlarged without blur.

Made with tkinter, which comes with Python (some Linux distributions have it as a package of its
own, python3-tk). The window is closed like any other, or with q or Escape.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ml.evaluation.picture import widening

_GROUND, _INK = "#121418", "#f0f2f5"  # as the strip's
_LOOK_S = 0.05
"""How long the window may leave a click unheard while nothing moves in it."""


class NoWindow(RuntimeError):
    """None can be opened here; the message says why."""


class WindowScreen:
    """Pictures in a window of their own.

    Args:
        scale: how many times the height is enlarged.
        status_lines: lines of text below the picture.

    Raises:
        NoWindow: there is no display, or no tkinter.
    """

    frames_a_picture = 1

    def __init__(self, *, scale: int, status_lines: int) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise NoWindow(f"Python has no tkinter here: {error}") from None
        try:
            self._root = tkinter.Tk(className="retro_ml")
        except tkinter.TclError as error:
            raise NoWindow(str(error)) from None
        self.closed = False
        self._root.withdraw()  # until there is something to see
        self._root.title("retro_ml")
        self._root.configure(background=_GROUND)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        for key in ("<Escape>", "q"):
            self._root.bind(key, self._close)
        self._zoom = widening(scale), scale
        self._small, self._large = tkinter.PhotoImage(), tkinter.PhotoImage()
        tkinter.Label(self._root, image=self._large, borderwidth=0).pack()
        self._status = tkinter.StringVar()
        if status_lines:
            tkinter.Label(
                self._root,
                textvariable=self._status,
                height=status_lines,
                font="TkFixedFont",
                foreground=_INK,
                background=_GROUND,
                justify="left",
                anchor="w",
                padx=12,
                pady=8,
            ).pack(fill="x")

    def __enter__(self) -> WindowScreen:
        self._root.deiconify()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, at: TracebackType | None
    ) -> None:
        self._root.destroy()

    def draw(self, picture: NDArray[np.uint8], status: list[str]) -> None:
        """Shows `[H, W, 3] uint8` RGB and the lines below it."""
        height, width = picture.shape[:2]
        self._small.configure(data=b"P6 %d %d 255\n" % (width, height) + picture.tobytes())
        # Tk's own enlargement repeats pixels; PhotoImage.zoom would make a new image each time.
        self._root.tk.call(str(self._large), "copy", str(self._small), "-zoom", *self._zoom)
        self._status.set("\n".join(status))
        self._root.update()

    def restore(self) -> None:
        """Does nothing: the window goes with its process."""

    def pause(self, seconds: float) -> None:
        """Shows what it shows for so long, unless it is closed."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self.closed:
            time.sleep(min(left_s, _LOOK_S))
            self._root.update()

    def _close(self, event: Any = None) -> None:
        self.closed = True
