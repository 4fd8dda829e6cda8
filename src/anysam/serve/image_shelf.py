"""What the server keeps of images: uploads as they came, encodings, and who is using them. Computes nothing.

Two bounds: uploads take at most half of the memory, uploads and encodings together all of it. Encodings that were not
used for longest go first, since they can be made again; images go when uploads need the room, when there are too many,
or when nobody has asked for one for a while. What somebody is using stays.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from anysam.serve.clicks import PreparedImage
from anysam.serve.encodes import EncodeJob
from anysam.serve.engine_types import UnknownImage


@dataclass(eq=False)
class ShelvedImage:
    """An image that was accepted. size: (H, W).

    settled: done when it is ready, has failed or is gone. ready: it has been encoded; `prepared` may have left memory
    since. job: its encoding, while that waits or runs. awaiting: who waits for the job. users: who is using the image.
    """

    image_id: str
    data: bytes
    size: tuple[int, int]
    used: float
    settled: "Future[None]" = field(default_factory=Future)
    ready: bool = False
    error: str | None = None
    gone: bool = False
    prepared: PreparedImage | None = None
    job: EncodeJob | None = None
    awaiting: int = 0
    users: int = 0

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.job is None


class ImageShelf:
    """Images in the order of their last use. Not made for several threads: its owner has the lock.

    memory_bytes, max_images: at most. ttl: seconds after the last use. clock: seconds, rising. removed: called with
    each image that had to go.
    """

    def __init__(
        self,
        memory_bytes: int,
        max_images: int,
        ttl: float,
        removed: Callable[[ShelvedImage], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory_bytes, self._max_images, self._ttl = memory_bytes, max_images, ttl
        self._removed, self._clock = removed, clock
        self._images: OrderedDict[str, ShelvedImage] = OrderedDict()
        self.upload_bytes = 0
        self.encoding_bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def images(self) -> list[ShelvedImage]:
        return list(self._images.values())

    @property
    def most_upload_bytes(self) -> int:
        return self._memory_bytes // 2

    def add(self, data: bytes, size: tuple[int, int]) -> ShelvedImage | None:
        """A new image, under a random id; None where there is no room because all images are being used."""
        self.drop_old()
        if not self._make_place(len(data)):
            return None
        image = ShelvedImage(secrets.token_hex(16), data, size, self._clock())
        self._images[image.image_id] = image
        self.upload_bytes += len(data)
        self._shrink()
        return image

    def get(self, image_id: str) -> ShelvedImage:
        """The image, which counts as a use of it. Raises UnknownImage."""
        self.drop_old()
        image = self._images.get(image_id)
        if image is None:
            raise UnknownImage(image_id)
        image.used = self._clock()
        self._images.move_to_end(image_id)
        return image

    def begin(self, image: ShelvedImage) -> None:
        """Somebody uses it, until `end`."""
        image.users += 1

    def end(self, image: ShelvedImage) -> None:
        image.users -= 1
        image.used = self._clock()
        if not image.gone:
            self._images.move_to_end(image.image_id)
        self._shrink()

    def keep(self, image: ShelvedImage, prepared: PreparedImage) -> None:
        """Keep an image's encoding, if the image is still there."""
        if image.gone:
            return
        self._drop_encoding(image)
        image.prepared = prepared
        self.encoding_bytes += prepared.nbytes
        self._shrink(newest=image)

    def remove(self, image: ShelvedImage) -> None:
        if self._images.pop(image.image_id, None) is None:
            return
        image.gone = True
        self._drop_encoding(image)
        self.upload_bytes -= len(image.data)
        self._removed(image)

    def drop_old(self) -> None:
        """Remove what nobody has used for long."""
        oldest = self._clock() - self._ttl
        for image in list(self._images.values()):
            if image.used > oldest:
                return
            if image.idle:
                self.remove(image)

    def _make_place(self, size: int) -> bool:
        """Remove images until an upload of `size` bytes fits."""
        for image in list(self._images.values()):
            if self.upload_bytes + size <= self.most_upload_bytes and len(self._images) < self._max_images:
                break
            if image.idle:
                self.remove(image)
        return self.upload_bytes + size <= self.most_upload_bytes and len(self._images) < self._max_images

    def _shrink(self, newest: ShelvedImage | None = None) -> None:
        """Drop encodings until all fits; the newest one last."""
        order = [image for image in self._images.values() if image is not newest] + ([newest] if newest else [])
        for image in order:
            if self.upload_bytes + self.encoding_bytes <= self._memory_bytes:
                return
            if image.users == 0:
                self._drop_encoding(image)

    def _drop_encoding(self, image: ShelvedImage) -> None:
        if image.prepared is not None:
            self.encoding_bytes -= image.prepared.nbytes
            image.prepared = None
