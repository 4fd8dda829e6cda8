"""Records of finished images: what counts as finished, and which files belong to which image."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from anysam.commands import resume
from anysam.commands.interrupts import interrupts_deferred, sigterm_interrupts
from anysam.commands.resume import assign_stems, image_facts, publish, read_record, remove_abandoned, staging, verify
from anysam.errors import OutputError

SETTINGS = {"anysam": "1.0", "formats": ["png"], "pred_iou_thresh": 0.88, "levels": None}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    return tmp_path


def image(name, content=b"pixels"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def finish(path, stem, files=("mask_0", "mask_1"), settings=SETTINGS, content=b"mask"):
    """Write results of an image as the command does."""
    with staging(Path("out")) as folder:
        for name in files:
            (folder / f"{stem}_{name}.png").write_bytes(content + name.encode())
        return publish(folder, Path("out"), stem, image_facts(path), settings)


def verdict(path, stem, settings=SETTINGS):
    return verify(Path("out"), stem, image_facts(path), settings)


def files_in(path):
    return sorted(file.name for file in Path(path).iterdir())


# What counts as finished


def test_a_finished_image_is_whole():
    cat = image("cat.jpg")
    moves = finish(cat, "cat")
    assert list(moves.values()) == [Path("out/cat_mask_0.png"), Path("out/cat_mask_1.png")]
    found = verdict(cat, "cat")
    assert found.finished and list(found.files) == list(moves.values())
    assert files_in("out") == [".anysam", "cat_mask_0.png", "cat_mask_1.png"] and files_in("out/.anysam") == [
        "cat.json"
    ]


def test_an_image_that_was_never_done_is_not_finished_and_gives_no_reason():
    found = verdict(image("cat.jpg"), "cat")
    assert (found.finished, found.reason) == (False, "")


def test_an_image_without_masks_can_be_finished_too():
    cat = image("cat.jpg")
    finish(cat, "cat", files=())
    assert verdict(cat, "cat").finished


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit_but_keep_size_and_time(path):
    status = path.stat()
    path.write_bytes(b"M" + path.read_bytes()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "cat_mask_1.png is missing"),
        (replace_by_folder, "cat_mask_1.png is missing"),
        (cut, "cat_mask_1.png is not what was written"),
        (edit_but_keep_size_and_time, "cat_mask_1.png is not what was written"),
        (lambda path: path.write_bytes(b""), "cat_mask_1.png is not what was written"),
    ],
)
def test_a_result_that_is_missing_or_changed_is_made_again(damage, words):
    cat = image("cat.jpg")
    finish(cat, "cat")
    damage(Path("out/cat_mask_1.png"))
    found = verdict(cat, "cat")
    assert (found.finished, found.reason) == (False, words)


def test_an_image_whose_pixels_changed_is_done_again_but_not_one_that_was_only_touched():
    cat = image("cat.jpg")
    finish(cat, "cat")
    os.utime(cat, (1, 1))
    assert verdict(cat, "cat").finished
    edit_but_keep_size_and_time(cat)
    assert verdict(cat, "cat").reason == "the image has changed"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "pred_iou_thresh": 0.5}, "pred_iou_thresh 0.5, was 0.88"),
        ({**SETTINGS, "formats": ["coco", "png"]}, 'formats ["coco", "png"], was ["png"]'),
        ({**SETTINGS, "levels": ("whole",)}, 'levels ["whole"], was null'),
        ({**SETTINGS, "new": 1}, "new 1, was null"),
        ({name: value for name, value in SETTINGS.items() if name != "anysam"}, 'anysam null, was "1.0"'),
    ],
)
def test_other_settings_are_named(settings, words):
    cat = image("cat.jpg")
    finish(cat, "cat")
    assert verdict(cat, "cat", settings).reason == f"the settings have changed: {words}"


def rewrite(change):
    path = Path("out/.anysam/cat.json")
    form = json.loads(path.read_text())
    change(form)
    path.write_text(json.dumps(form))


@pytest.mark.parametrize(
    "damage",
    [
        lambda: Path("out/.anysam/cat.json").write_bytes(b""),
        lambda: cut(Path("out/.anysam/cat.json")),
        lambda: Path("out/.anysam/cat.json").write_bytes(b"\xff\xfe"),
        lambda: Path("out/.anysam/cat.json").write_text("[" * 100_000),
        lambda: Path("out/.anysam/cat.json").write_text("null"),
        lambda: replace_by_folder(Path("out/.anysam/cat.json")),
        lambda: rewrite(lambda form: form.pop("image")),
        lambda: rewrite(lambda form: form["files"].pop()),
        lambda: rewrite(lambda form: form["files"][0].update(path="../../etc/passwd")),
        lambda: rewrite(lambda form: form["files"][0].update(path=5)),
        lambda: rewrite(lambda form: form["files"][0].update(surprise=5)),
        lambda: rewrite(lambda form: form["settings"].update(levels="whole")),
        lambda: rewrite(lambda form: form.update(format="anysam-finished-0")),
    ],
)
def test_a_damaged_record_means_again(damage):
    cat = image("cat.jpg")
    finish(cat, "cat")
    damage()
    found = verdict(cat, "cat")
    assert (found.finished, found.reason) == (False, "its record is damaged")


def test_a_record_cannot_reach_outside_of_its_folder(folder):
    cat = image("cat.jpg")
    image("precious.txt")
    finish(cat, "cat")
    record = read_record(Path("out"), "cat")
    outside = resume.FileFacts("../precious.txt", 6, image_facts(Path("precious.txt")).sha256)
    forged = resume.Record(record.image, record.settings, (outside,))
    resume._write_record(Path("out/.anysam/cat.json"), forged)  # with a check that holds
    assert verdict(cat, "cat").reason == "its record is damaged"
    finish(cat, "cat")
    assert Path("precious.txt").exists()


# Files appear together


def test_files_appear_together_and_a_failure_leaves_none():
    cat = image("cat.jpg")
    with pytest.raises(KeyboardInterrupt), staging(Path("out")) as folder:
        (folder / "cat_mask_0.png").write_bytes(b"mask")
        assert files_in("out") == [".anysam"]
        raise KeyboardInterrupt
    assert files_in("out/.anysam") == [] and verdict(cat, "cat").reason == ""


def test_an_error_names_the_file_that_was_to_be():
    with pytest.raises(OutputError, match=r"^out/cat_mask_0.png cannot"), staging(Path("out")) as folder:
        raise OutputError(f"{folder}/cat_mask_0.png cannot be written: the disk is full.")


def test_masks_beyond_the_last_are_removed_unless_somebody_changed_them():
    cat = image("cat.jpg")
    finish(cat, "cat", files=("mask_0", "mask_1", "mask_2", "mask_3"))
    Path("out/cat_mask_2.png").write_bytes(b"painted by hand")
    Path("out/cat_mask_9.png").write_bytes(b"of somebody else")
    finish(cat, "cat", files=("mask_0",), content=b"other")
    assert files_in("out") == [".anysam", "cat_mask_0.png", "cat_mask_2.png", "cat_mask_9.png"]
    assert Path("out/cat_mask_0.png").read_bytes() == b"othermask_0" and verdict(cat, "cat").finished


def test_files_of_formats_that_are_not_written_now_are_kept():
    cat = image("cat.jpg")
    finish(cat, "cat", files=("mask_0", "mask_1"))
    finish(cat, "cat", files=("overlay",), settings={**SETTINGS, "formats": ["overlay"]})
    assert files_in("out") == [".anysam", "cat_mask_0.png", "cat_mask_1.png", "cat_overlay.png"]


def test_what_cannot_be_moved_into_place_is_an_error_and_leaves_no_record():
    cat = image("cat.jpg")
    finish(cat, "cat")
    replace_by_folder(Path("out/cat_mask_1.png"))
    Path("out/cat_mask_1.png/full").write_bytes(b"")
    with pytest.raises(OutputError, match=r"out/cat_mask_1.png cannot be written"):
        finish(cat, "cat")
    assert files_in("out/.anysam") == []


def test_only_old_leftovers_are_removed():
    for name in ("old.partial", "new.partial"):
        (Path("out/.anysam") / name).mkdir(parents=True)
    day_ago = time.time() - 25 * 3600
    os.utime("out/.anysam/old.partial", (day_ago, day_ago))
    remove_abandoned(Path("out"))
    assert files_in("out/.anysam") == ["new.partial"]
    remove_abandoned(Path("nowhere"))


# Which files are whose


def test_new_images_get_their_stems_as_ever():
    assert assign_stems([Path("a/cat.jpg"), Path("b/cat.jpg"), Path("dog.png")], Path("out")) == ["cat", "cat_2", "dog"]


def test_images_keep_their_stems_when_the_list_shrinks_or_grows():
    first, second = image("m/cat.jpg", b"1"), image("n/cat.jpg", b"2")
    for path, stem in zip((first, second), assign_stems([first, second], Path("out")), strict=True):
        finish(path, stem)
    earlier, third = image("a/cat.jpg", b"3"), image("z/cat.png", b"4")
    assert assign_stems([second], Path("out")) == ["cat_2"]
    assert assign_stems([earlier, first, second, third], Path("out")) == ["cat_3", "cat", "cat_2", "cat_4"]
    assert assign_stems([third], Path("out")) == ["cat_3"]
    assert assign_stems([second.absolute(), Path("n/../n/cat.jpg")], Path("out")) == ["cat_2", "cat_2"]


def test_an_image_that_was_moved_is_told_by_its_content_and_a_copy_is_another_image():
    first, second = image("m/cat.jpg", b"1"), image("n/cat.jpg", b"2")
    finish(first, "cat")
    finish(second, "cat_2")
    Path("m").rename("moved")
    copy = image("copy/cat.jpg", b"2")
    assert assign_stems([Path("moved/cat.jpg"), second, copy], Path("out")) == ["cat", "cat_2", "cat_3"]
    assert verdict(Path("moved/cat.jpg"), "cat").finished


def test_the_later_of_two_records_of_an_image_counts_and_both_stems_stay_taken():
    first, second = image("m/cat.jpg", b"1"), image("n/cat.jpg", b"2")
    finish(first, "cat")
    finish(second, "cat_2")
    os.utime("out/.anysam/cat_2.json", (1, 1))
    finish(second, "cat")  # a run without --resume, on the second image only
    assert assign_stems([first, second], Path("out")) == ["cat_3", "cat"]


def test_an_image_with_a_damaged_record_keeps_its_stem():
    cat = image("cat.jpg")
    finish(cat, "cat")
    cut(Path("out/.anysam/cat.json"))
    assert assign_stems([cat], Path("out")) == ["cat"]


def test_odd_names_are_kept(folder):
    names = [
        "a.b.c.jpg",
        ".hidden.png",
        "no suffix",
        "sp ace.png",
        "ümläut.jpg",
        os.fsdecode(b"caf\xe9.jpg"),
        "x.coco.png",
    ]
    images = [image(name, name.encode(errors="surrogateescape")) for name in names]
    stems = assign_stems(images, Path("out"))
    for path, stem in zip(images, stems, strict=True):
        finish(path, stem)
    assert assign_stems(images[::-1], Path("out")) == stems[::-1] and len(set(stems)) == len(names)
    assert all(verdict(path, stem).finished for path, stem in zip(images, stems, strict=True))


# Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_wait_until_what_must_be_whole_is_whole(number):
    done = []
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        with interrupts_deferred():
            with interrupts_deferred():
                signal.raise_signal(number)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_an_ignored_ctrl_c_stays_ignored():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts(), interrupts_deferred():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
