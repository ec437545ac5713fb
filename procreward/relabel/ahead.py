"""Pictures decoded ahead of the model, on a thread per open episode."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from procreward.types import Frame

__all__ = ["Ahead", "resize"]

Pictures = Mapping[str, Frame]


class Ahead:
    """Reads an iterator of pictures on a thread, as far ahead as a number of bytes allows.

    While a model computes, a video's decoder (a process of its own) goes on until what it decoded
    fills the space. What the iterator raises is raised where the pictures are taken.

    Use it as a context manager, or call :meth:`close`, which stops the thread and closes the
    iterator.
    """

    def __init__(
        self,
        open_pictures: Callable[[], Iterator[Pictures]],
        *,
        max_bytes: int,
        after: Ahead | None = None,
    ) -> None:
        """Start reading.

        Args:
            open_pictures: Called on the thread; gives the iterator.
            max_bytes: Bytes of decoded pictures that may wait, at least one picture.
            after: Another reader; this one begins when that has read all, so that there are never
                more of them at work than before. None for at once.
        """
        self._open, self._max_bytes = open_pictures, max_bytes
        self._ready: deque[Pictures] = deque()
        self._bytes = 0
        self._over = self._stop = False
        self._error: BaseException | None = None
        self._followers: list[Ahead] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if after is None or not after._followed_by(self):
            self._start()

    def __enter__(self) -> Ahead:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading."""
        self.close()

    def __iter__(self) -> Iterator[Pictures]:
        """Yield the pictures in order."""
        while (pictures := self._take()) is not None:
            yield pictures

    def close(self) -> None:
        """Stop the thread and close the iterator; may be called again."""
        with self._changed:
            self._stop = True
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            self._end()  # never begun, but others may wait for it
        else:
            thread.join()
        self._ready.clear()

    def _followed_by(self, other: Ahead) -> bool:
        """Start another reader at the end of this one; False if that was already."""
        with self._changed:
            if not self._over:
                self._followers.append(other)
            return not self._over

    def _start(self) -> None:
        with self._changed:
            if self._stop or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._read, daemon=True, name="relabel-decode")
            self._thread.start()

    def _end(self) -> None:
        with self._changed:
            self._over, followers = True, self._followers
            self._followers = []
            self._changed.notify_all()
        for one in followers:
            one._start()

    def _take(self) -> Pictures | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._over)
            if self._ready:
                pictures = self._ready.popleft()
                self._bytes -= _size(pictures)
                self._changed.notify_all()
                return pictures
        if self._error is not None:
            raise self._error
        return None

    def _read(self) -> None:
        pictures = None
        try:
            pictures = self._open()
            for item in pictures:
                if not self._put(item):
                    break
        except BaseException as error:  # handed to whoever takes the pictures
            self._error = error
        finally:
            close = getattr(pictures, "close", None)
            if callable(close):
                close()
            self._end()

    def _put(self, pictures: Pictures) -> bool:
        """Wait for space; False when nobody wants more."""
        size = _size(pictures)
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop or not self._ready or self._bytes + size <= self._max_bytes
            )
            if self._stop:
                return False
            self._ready.append(pictures)
            self._bytes += size
            self._changed.notify_all()
        return True


def _size(pictures: Pictures) -> int:
    return sum(picture.nbytes for picture in pictures.values())


def resize(picture: Frame, size: tuple[int, int] | None) -> Frame:
    """Bring a picture to a size.

    Args:
        picture: ``(height, width, 3) uint8``.
        size: ``(width, height)`` in pixels; None leaves it.

    Returns:
        The picture itself if it has the size already.
    """
    if size is None or (picture.shape[1], picture.shape[0]) == size:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
