import pytest

from anysam.serve.engine_types import UnknownImage
from anysam.serve.image_shelf import ImageShelf


class Encoding:
    def __init__(self, nbytes):
        self.nbytes = nbytes


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def shelf(memory_bytes=1000, max_images=10, ttl=60.0):
    clock, removed = Clock(), []
    return ImageShelf(memory_bytes, max_images, ttl, removed.append, clock), clock, removed


def test_encodings_go_before_images_and_the_unused_first():
    images, _, removed = shelf()
    first, second, third = (images.add(b"x" * 100, (1, 1)) for _ in range(3))
    for image in (first, second, third):
        images.keep(image, Encoding(300))
        images.get(first.image_id)
    assert [image.prepared is None for image in (first, second, third)] == [False, True, False]
    assert images.upload_bytes == 300 and images.encoding_bytes == 600 and not removed


def test_uploads_take_half_of_the_memory_at_most():
    images, _, removed = shelf()
    kept = [images.add(b"x" * 200, (1, 1)) for _ in range(3)]
    assert images.upload_bytes == 400 and removed == [kept[0]] and kept[0].gone
    assert images.add(b"x" * 501, (1, 1)) is None
    assert images.upload_bytes == 0  # all of them made room for what is refused by the engine before


def test_what_is_used_stays_and_memory_shrinks_when_it_is_let_go():
    images, clock, removed = shelf()
    used = images.add(b"x" * 400, (1, 1))
    images.begin(used)
    images.keep(used, Encoding(5000))
    clock.now = 1000.0
    assert images.add(b"x" * 200, (1, 1)) is None
    assert used.prepared is not None and not removed
    images.end(used)
    assert used.prepared is None and images.encoding_bytes == 0
    assert images.add(b"x" * 200, (1, 1)) is not None and removed == [used]


def test_images_are_forgotten_some_time_after_their_last_use():
    images, clock, removed = shelf(ttl=60.0)
    first, second = (images.add(b"x", (1, 1)) for _ in range(2))
    clock.now = 50.0
    images.get(first.image_id)
    clock.now = 70.0
    assert images.get(first.image_id) is first
    assert removed == [second]
    with pytest.raises(UnknownImage):
        images.get(second.image_id)


def test_the_encoding_of_a_removed_image_is_not_kept():
    images, _, removed = shelf()
    image = images.add(b"x", (1, 1))
    images.remove(image)
    images.keep(image, Encoding(10))
    images.remove(image)
    assert images.encoding_bytes == images.upload_bytes == 0 and removed == [image]


def test_ids_are_random():
    images, _, _ = shelf()
    ids = {images.add(b"x", (1, 1)).image_id for _ in range(5)}
    assert len(ids) == 5 and all(len(each) == 32 and int(each, 16) >= 0 for each in ids)
