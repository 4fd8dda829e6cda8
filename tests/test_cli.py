"""The `anysam` command: what goes to stdout, to stderr and to disk, and the exit status.

Segmenting runs against a stand-in model whose masks are known in advance; the last tests use the built-in one.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from anysam import __version__, cli, predictor
from anysam.commands.hints import Hints, prompts_from_hints
from anysam.errors import OptionError, PromptError
from anysam.images import MAX_PIXELS
from anysam.prompts import resolve_prompt
from anysam.results import Prediction

ROOT = Path(__file__).parents[1]
COFFEE = ROOT / "examples" / "images" / "coffee.png"
WIDTH, HEIGHT = 60, 40


@dataclass(frozen=True)
class Encoded:
    original_size: tuple[int, int]


class StandIn:
    """A model that answers a box by the box, a point by squares of half side 2, 4 and 8, of which the second is best.

    Negative points are cut out. It keeps the calls for the tests to look at.
    """

    variant, weights_sha256, device, dtype = "stand_in", "0" * 64, torch.device("cpu"), torch.float32

    def __init__(self):
        self.asked = []

    def encode(self, image):
        return Encoded(image.shape[:2])

    def predict(self, encoded, prompts, multimask=None):
        self.asked.append((list(prompts), multimask))
        return [self.answer(resolve_prompt(prompt, encoded.original_size), encoded, multimask) for prompt in prompts]

    def answer(self, prompt, encoded, multimask):
        alone = len(prompt.points) == 1 and prompt.box is None
        sides, scores = ((2, 4, 8), (0.5, 0.9, 0.7)) if multimask or (multimask is None and alone) else ((4,), (0.8,))
        masks = np.zeros((len(sides), *encoded.original_size), dtype=bool)
        for mask, side in zip(masks, sides, strict=True):
            if prompt.box is not None:
                x0, y0, x1, y1 = prompt.box.astype(int)
                mask[y0:y1, x0:x1] = True
            for (x, y), label in sorted(
                zip(prompt.points.astype(int), prompt.labels, strict=True), key=lambda p: -p[1]
            ):
                mask[max(0, y - side) : y + side, max(0, x - side) : x + side] = bool(label)
        return Prediction(masks, np.array(scores, np.float32), np.zeros((len(sides), 4, 4), np.float32))


@pytest.fixture
def model(monkeypatch):
    stand_in = StandIn()
    stand_in.loads = []

    def load(name_or_path=None, *, variant=None, device=None, dtype="float32", progress=None, allow=None):
        stand_in.loads.append((name_or_path, device, dtype, allow))
        return stand_in

    monkeypatch.setattr(predictor, "load", load)
    return stand_in


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with photo.png."""
    monkeypatch.chdir(tmp_path)
    save("photo.png")
    return tmp_path


def save(name, size=(WIDTH, HEIGHT)):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(name)


def run(capsys, *arguments):
    """(exit status, stdout, stderr)."""
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments):
    """stderr of a command line that is bad input: one line, nothing on stdout, exit status 2, no traceback."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("anysam: error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    return err


def files_in(path):
    return sorted(file.name for file in Path(path).iterdir())


# Files


def test_a_point_writes_its_best_mask_and_an_overlay_and_prints_their_paths(model, folder, capsys):
    status, out, err = run(capsys, "segment", "photo.png", "--point", "30,20")
    assert status == 0
    assert out.splitlines() == ["out/photo_mask_0.png", "out/photo_overlay.png"]
    mask = np.array(Image.open("out/photo_mask_0.png"))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[16:24, 26:34] = 255  # the second square has the highest score
    assert np.array_equal(mask, expected)
    assert "64 pixels, predicted IoU 0.90" in err


def test_every_format_is_written(model, folder, capsys):
    box = "10,5,30,25"
    status, out, _ = run(
        capsys, "segment", "photo.png", "--box", box, "--format", "png, overlay,cutout,coco,json", "--out", "a/b"
    )
    assert status == 0
    names = ["photo.coco.json", "photo.json", "photo_cutout_0.png", "photo_mask_0.png", "photo_overlay.png"]
    assert files_in("a/b") == names and sorted(Path(line).name for line in out.splitlines()) == names
    assert Image.open("a/b/photo_cutout_0.png").size == (20, 20)
    annotation = json.loads(Path("a/b/photo.coco.json").read_text())["annotations"][0]
    assert annotation["bbox"] == [10, 5, 20, 20] and annotation["area"] == 400


def test_json_is_one_document_and_writes_no_files(model, folder, capsys):
    status, out, err = run(capsys, "segment", "photo.png", "--box", "10,5,30,25", "--box", "0,0,4,4", "--json")
    assert status == 0 and files_in(folder) == ["photo.png"]
    document = json.loads(out)
    assert document["anysam"] == __version__ and document["failed"] == []
    assert document["model"] == {
        "name": "stand_in",
        "weights_sha256": "0" * 64,
        "device": "cpu",
        "dtype": "float32",
    }
    (image,) = document["images"]
    assert (image["image"], image["size"], image["files"]) == ("photo.png", [HEIGHT, WIDTH], [])
    assert [(mask["object"], mask["area"], mask["box"]) for mask in image["masks"]] == [
        (0, 400, [10, 5, 30, 25]),
        (1, 16, [0, 0, 4, 4]),
    ]
    decoded = coco_mask.decode(image["masks"][0]["segmentation"])
    assert decoded.shape == (HEIGHT, WIDTH) and decoded[5:25, 10:30].all() and decoded.sum() == 400
    assert image["masks"][0]["prompt"] == {"box": [10, 5, 30, 25]}


def test_json_with_a_folder_writes_files_too(model, folder, capsys):
    _, out, _ = run(capsys, "segment", "photo.png", "--box", "1,1,5,5", "--json", "--out", "here")
    files = json.loads(out)["images"][0]["files"]
    assert files == ["here/photo_mask_0.png", "here/photo_overlay.png"] and all(map(os.path.isfile, files))


def test_multimask_keeps_all_candidates_best_first_and_single_asks_for_one(model, folder, capsys):
    def scores(*options):
        _, out, _ = run(capsys, "segment", "photo.png", "--point", "30,20", "--json", *options)
        return [round(mask["predicted_iou"], 3) for mask in json.loads(out)["images"][0]["masks"]]

    assert scores() == [0.9]
    assert scores("--multimask") == [0.9, 0.7, 0.5]
    assert scores("--single") == [0.8]
    assert [multimask for _, multimask in model.asked] == [None, True, False]


def test_model_device_dtype_and_licences_are_passed_on(model, folder, capsys):
    options = ("--model", "sam_vit_b", "--device", "cpu", "--dtype", "bfloat16", "--allow", "apache-2.0,MIT")
    assert run(capsys, "segment", "photo.png", "--point", "1,1", *options)[0] == 0
    assert model.loads == [("sam_vit_b", "cpu", "bfloat16", "apache-2.0,MIT")]


# Objects


def prompts(*arguments):
    """The prompts that options make, in JSON form."""
    command = cli.COMMANDS[0]
    options = cli.build_parser(command).parse_intermixed_args(cli._join_signed_values(["a.png", *arguments]))
    hints = Hints(*(tuple(getattr(options, kind)) for kind in ("point", "box", "mask", "polygon", "scribble")))
    return [prompt.to_dict() for prompt in prompts_from_hints(hints, options.object, MAX_PIXELS)]


@pytest.mark.parametrize(
    ("arguments", "point", "label"),
    [
        (["--point=12,8"], [12, 8], 1),
        (["--point", "12.5,8"], [12.5, 8], 1),
        (["--point=-12,8"], [12, 8], 0),
        (["--point", "-12,8"], [12, 8], 0),
        (["--point=-0,8"], [0, 8], 0),
        (["--point", "-.5,8"], [0.5, 8], 0),
        (["--point=0,8"], [0, 8], 1),
    ],
)
def test_a_leading_minus_makes_a_point_negative(arguments, point, label):
    assert prompts(*arguments) == [{"points": [point], "labels": [label]}]


def test_points_one_box_and_strokes_are_one_object():
    stroke, beside = "--scribble=1,1;9,9", "--scribble=-20,1;29,9"
    assert prompts("--point", "3,4", "--box", "0,0,9,9", "--point=-5,6", stroke, beside) == [
        {
            "points": [[3, 4], [5, 6]],
            "labels": [1, 0],
            "box": [0, 0, 9, 9],
            "scribble": [[1, 1], [9, 9]],
            "scribble_negative": [[20, 1], [29, 9]],
        }
    ]


def test_several_boxes_or_polygons_alone_are_an_object_each():
    assert prompts("--box", "0,0,9,9", "--box", "1,1,5,5") == [{"box": [0, 0, 9, 9]}, {"box": [1, 1, 5, 5]}]
    triangles = prompts("--polygon", "0,0;9,0;9,9", "--polygon", "1,1;5,1;5,5;")
    assert triangles == [{"polygon": [[0, 0], [9, 0], [9, 9]]}, {"polygon": [[1, 1], [5, 1], [5, 5]]}]


def test_object_groups_hints_and_stands_beside_loose_ones():
    first = "box=0,0,9,9 point=-5,6"
    assert prompts("--object", first, "--object", "polygon=0,0;9,0;9,9", "--point", "1,2") == [
        {"points": [[1, 2]], "labels": [1]},
        {"points": [[5, 6]], "labels": [0], "box": [0, 0, 9, 9]},
        {"polygon": [[0, 0], [9, 0], [9, 9]]},
    ]


def test_several_boxes_with_a_point_are_ambiguous():
    with pytest.raises(PromptError, match="--object"):
        prompts("--box", "0,0,9,9", "--box", "1,1,5,5", "--point", "3,3")


@pytest.mark.parametrize(
    ("suffix", "dark", "bright"), [("png", 0, 1), ("png", 0, 255), ("jpg", 12, 240), ("bmp", 0, 90)]
)
def test_a_mask_file_marks_what_is_not_black(folder, suffix, dark, bright):
    grey = np.full((HEIGHT, WIDTH), dark, np.uint8)
    grey[8:24, 16:40] = bright
    Image.fromarray(grey).save(f"mask.{suffix}")
    (form,) = prompts("--mask", f"mask.{suffix}")
    assert np.array_equal(coco_mask.decode(form["mask"]).astype(bool), grey == bright)


def test_the_masks_the_command_writes_can_be_given_back(model, folder, capsys):
    run(capsys, "segment", "photo.png", "--box", "10,5,30,25", "--format", "png", "--out", "first")
    run(capsys, "segment", "photo.png", "--mask", "first/photo_mask_0.png", "--format", "png", "--out", "second")
    assert Path("first/photo_mask_0.png").read_bytes() == Path("second/photo_mask_0.png").read_bytes()


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--point X,Y", "--box"]),
        (["--point", "12"], ["--point must be X,Y", "'12'", "-120,80"]),
        (["--point", "a,b"], ["--point must be X,Y", "'a,b'"]),
        (["--point", "nan,3"], ["finite"]),
        (["--point", "1,2,3"], ["--point must be X,Y"]),
        (["--point", "500,3"], ["500,3", "60x40"]),
        (["--point=-5,-3"], ["5,-3", "outside"]),
        (["--box", "1,2,3"], ["--box must be X1,Y1,X2,Y2", "'1,2,3'"]),
        (["--box", "9,9,1,1"], ["x1 > x0"]),
        (["--box", "5,5,5,9"], ["0 wide"]),
        (["--box", "inf,0,1,1"], ["finite"]),
        (["--box", "500,500,600,600"], ["outside"]),
        (["--polygon", "1,1;2,2"], ["polygon", "at least 3"]),
        (["--polygon", "1,1;2"], ["--polygon must be x,y;x,y"]),
        (["--scribble", ""], ["--scribble must be"]),
        (["--scribble", "1,1", "--scribble", "2,2"], ["one --scribble"]),
        (["--object", "circle=3"], ["point=, box=, mask=", "'circle=3'"]),
        (["--object", "point='3,3"], ["cannot be read"]),
        (["--object", " "], ["empty"]),
        (["--mask", "gone.png"], ["gone.png", "does not exist"]),
        (["--mask", "black.png"], ["black.png", "all black"]),
        (["--mask", "small.png"], ["10x10", "60x40"]),
        (["--point", "1,1", "--format", "gif"], ["'gif'", "png"]),
        (["--point", "1,1", "--format", "overley"], ["did you mean 'overlay'"]),
        (["--point", "1,1", "--max-pixels", "100"], ["photo.png", "100"]),
        (["--point", "1,1", "--max-pixels", "0"], ["--max-pixels must be at least 1"]),
        (["--point", "1,1", "--max-pixels", "many"], ["--max-pixels", "many"]),
        (["--point", "1,1", "--dtype", "int8"], ["--dtype", "float32"]),
        (["--point", "1,1", "--allow", "apache"], ["allow names the unknown licence 'apache'", "Apache-2.0"]),
        (["--point", "1,1", "--single", "--multimask"], ["--multimask", "not allowed"]),
        (["--point", "1,1", "--out", "photo.png/x"], ["photo.png", "not a folder"]),
        (["--point", "1,1", "--bocks", "3"], ["--bocks"]),
        (["--point"], ["--point", "expected one argument"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_options_are_refused_in_one_line(model, folder, capsys, options, words):
    Image.new("L", (WIDTH, HEIGHT)).save("black.png")
    Image.new("L", (10, 10), 255).save("small.png")
    message = refused(capsys, "segment", "photo.png", *options)
    assert all(word in message for word in words), message
    assert model.asked == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.png", None, "does not exist"),
        ("empty.png", b"", "empty"),
        ("text.png", b"this is no image", "not an image"),
        ("cut.png", "cut", "damaged or cut short"),
        ("folder", "folder", "no image in it"),
        ("none*.png", None, "No file matches"),
    ],
)
def test_a_bad_image_is_refused_in_one_line_before_a_model_is_loaded(model, folder, capsys, name, content, words):
    if content == "cut":
        Path(name).write_bytes(Path("photo.png").read_bytes()[:2000])
    elif content == "folder":
        Path(name).mkdir()
    elif content is not None:
        Path(name).write_bytes(content)
    message = refused(capsys, "segment", name, "--point", "3,3")
    assert name in message and words in message
    assert model.loads == []


def test_an_unknown_model_is_refused_with_the_nearest_name(folder, capsys):
    message = refused(capsys, "segment", "photo.png", "--point", "3,3", "--model", "sam_vit_bb")
    assert "sam_vit_b" in message
    assert "sam_vit_l" in refused(capsys, "fetch", "sam-vit-l")


def test_commands_that_do_not_exist_are_refused(capsys):
    assert "segment" in refused(capsys, "segmnt", "photo.png")
    assert "--versio" in refused(capsys, "--versio")
    assert "IMAGE" in refused(capsys, "segment")
    assert "NAME" in refused(capsys, "fetch")


def test_debug_adds_the_traceback(model, folder, capsys):
    status, _, err = run(capsys, "segment", "gone.png", "--point", "3,3", "--debug")
    assert status == 2 and "Traceback" in err and err.splitlines()[-1].startswith("anysam: error: gone.png")


def test_a_fault_of_the_program_is_one_line_with_a_status_of_its_own(model, folder, capsys, monkeypatch):
    def broken(image):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(model, "encode", broken)
    status, _, err = run(capsys, "segment", "photo.png", "--point", "3,3")
    assert status == 70 and err.count("\n") == 1 and "RuntimeError: two lines" in err and "--debug" in err


def test_an_unwritable_folder_is_refused_before_any_work(model, folder, capsys):
    Path("file").write_text("")
    assert "file" in refused(capsys, "segment", "photo.png", "--point", "3,3", "--out", "file")
    assert model.loads == []


# Several images


@pytest.fixture
def mixed(folder):
    """photos/ with two good images of one stem, a damaged one and one that is too small for the point."""
    (folder / "photos").mkdir()
    save("photos/a.png")
    save("photos/a.jpg")
    save("photos/tiny.png", (5, 5))
    Path("photos/bad.png").write_bytes(b"nothing")
    return folder


def test_good_images_are_done_and_bad_ones_listed_at_the_end(model, mixed, capsys):
    status, out, err = run(capsys, "segment", "photos", "--point", "30,20", "--format", "png")
    assert status == 1
    assert sorted(out.splitlines()) == ["out/a_2_mask_0.png", "out/a_mask_0.png"] and files_in("out") == [
        "a_2_mask_0.png",
        "a_mask_0.png",
    ]
    assert [line.split(": ")[0] for line in err.splitlines()[:4]] == [
        "[1/4] photos/a.jpg",
        "[2/4] photos/a.png",
        "[3/4] photos/bad.png",
        "[4/4] photos/tiny.png",
    ]
    assert "2 of 4 images failed:" in err and "Traceback" not in err
    last = err.splitlines()[-2:]
    assert "photos/bad.png" in last[0] and "photos/tiny.png" in last[1] and "5x5" in last[1]
    assert model.loads == [(None, None, "float32", None)]  # once for all images


def test_json_of_several_images_lists_the_failed_ones(model, mixed, capsys):
    status, out, _ = run(capsys, "segment", "photos/*.png", "photo.png", "--point", "30,20", "--json")
    document = json.loads(out)
    assert status == 1
    assert [image["image"] for image in document["images"]] == ["photos/a.png", "photo.png"]
    assert [failure["image"] for failure in document["failed"]] == ["photos/bad.png", "photos/tiny.png"]
    assert all(failure["error"].endswith(".") for failure in document["failed"])


def test_images_may_stand_on_both_sides_of_options(model, folder, capsys):
    save("other.png")
    _, out, _ = run(capsys, "segment", "photo.png", "--point", "3,3", "other.png", "--format", "png")
    assert out.splitlines() == ["out/photo_mask_0.png", "out/other_mask_0.png"]


def test_a_model_that_cannot_be_loaded_stops_everything(mixed, capsys, monkeypatch):
    def load(*arguments, **options):
        raise OptionError("no such device")

    monkeypatch.setattr(predictor, "load", load)
    assert "no such device" in refused(capsys, "segment", "photos", "--point", "3,3", "--device", "cuda:7")


def test_ctrl_c_keeps_what_is_done(model, mixed, capsys, monkeypatch):
    encode = model.encode

    def interrupted(image):
        if model.asked:
            raise KeyboardInterrupt
        return encode(image)

    monkeypatch.setattr(model, "encode", interrupted)
    status, out, err = run(capsys, "segment", "photos", "photo.png", "--point", "30,20", "--format", "png")
    assert status == 130
    assert out.splitlines() == ["out/a_2_mask_0.png"] or out.splitlines() == ["out/a_mask_0.png"]
    assert "1 of 5 images are done" in err and err.splitlines()[-1] == "anysam: interrupted."


def test_a_terminal_sees_a_progress_bar_and_stdout_stays_clean(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from test_cli import StandIn\n"
        "from anysam import cli, predictor\n"
        "predictor.load = lambda *arguments, **options: StandIn()\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for name in "ab":
        save(tmp_path / f"{name}.png")
    command = [sys.executable, "-c", program, Path(__file__).parent, "segment", "a.png", "b.png", "--point", "3,3"]
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [*command, "--format", "png"], stdout=subprocess.PIPE, stderr=end, cwd=tmp_path, env=environment, text=True
    )
    os.close(end)
    seen = b""
    try:
        while piece := os.read(terminal, 65536):
            seen += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(terminal)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["out/a_mask_0.png", "out/b_mask_0.png"]
    assert b"2/2" in seen and b"Segmenting" in seen and b"a.png: " in seen


# Around the commands


def test_help_and_version_go_to_stdout(capsys):
    for arguments, words in ((["--version"], f"anysam {__version__}\n"), (["--help"], "anysam segment photo.jpg")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        captured = capsys.readouterr()
        assert stop.value.code == 0 and words in captured.out and captured.err == ""
    assert run(capsys)[0] == 0  # a bare `anysam` shows the help as well


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_help_of_every_command_has_an_example_and_fits_a_terminal(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command.name, "--help"])
    text = capsys.readouterr().out
    assert "examples:\n  " in text and f"anysam {command.name}" in text.split("examples:")[1]
    assert max(map(len, text.splitlines())) <= 120
    assert str(MAX_PIXELS) in text.replace(",", "") or command.name != "segment"


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "anysam", "models", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# With the built-in model


def test_the_module_runs_like_the_command(tmp_path):
    options = ["segment", COFFEE, "--box", "170,15,412,312", "--out", tmp_path, "--format", "png"]
    done = subprocess.run([sys.executable, "-m", "anysam", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mask = np.array(Image.open(done.stdout.strip()))
    assert mask.shape == (400, 600) and set(np.unique(mask)) == {0, 255}
    assert mask[100:180, 230:350].mean() > 250  # inside of the cup
    assert mask[:, :100].mean() < 5 and mask[:, 500:].mean() < 5  # the table


@pytest.mark.skipif(shutil.which("anysam", path=Path(sys.executable).parent) is None, reason="anysam is not installed")
def test_ctrl_c_ends_the_installed_command_with_130(tmp_path):
    shutil.copy(COFFEE, tmp_path / "a.png")
    for number in range(60):
        os.link(tmp_path / "a.png", tmp_path / f"a{number}.png")
    command = [Path(sys.executable).parent / "anysam", "segment", tmp_path, "--point", "290,150", "--format", "png"]
    out = tmp_path / "out"
    with subprocess.Popen(
        [*command, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background inherits that Ctrl-C is ignored, as shells do it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 60
        while not (out.is_dir() and any(out.glob("*.png"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and stderr.endswith("anysam: interrupted.\n")
    # An image that was being written may be whole on disk and yet not be counted; the other way round would be wrong.
    assert 1 <= len(stdout.splitlines()) < 61
    assert {Path(line).name for line in stdout.splitlines()} <= {path.name for path in out.iterdir()}
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_the_demonstration_prints_a_table_and_names_its_files(tmp_path):
    command = [sys.executable, ROOT / "examples" / "demo.py", "--out", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^((?:point|box) \S+) +(\d\.\d\d) +([\d,]+) +(\d+\.\d\d)$", done.stdout, re.MULTILINE)
    assert [row[0].split()[0] for row in rows] == ["point", "box"]
    named = [Path(line.strip()) for line in done.stdout.partition("written:")[2].split()]
    assert {path.suffix for path in named} == {".png", ".json"} and all(path.is_file() for path in named)
    coco = json.loads(next(path for path in named if path.suffix == ".json").read_text())
    masks = [coco_mask.decode(annotation["segmentation"]).astype(bool) for annotation in coco["annotations"]]
    assert [f"{int(mask.sum()):,}" for mask in masks] == [row[2] for row in rows]
    rows_, columns = np.mgrid[:512, :512]
    patch = (columns - 171) ** 2 + (rows_ - 385) ** 2 <= 38**2  # the mission patch is round
    assert (masks[0] & patch).sum() / (masks[0] | patch).sum() > 0.6
    head = ((columns - 226) / 72) ** 2 + ((rows_ - 98) / 84) ** 2 <= 1  # by hand, hair included
    assert (masks[1] & head).sum() / (masks[1] | head).sum() > 0.7


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [(">&-", 0, ""), ("> /dev/full", 2, "anysam: error: stdout cannot be written: the disk is full.\n")],
)
def test_a_closed_or_full_stdout_is_no_fault(redirection, status, message):
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    command = f'"{sys.executable}" -m anysam models {redirection}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_line_break_in_a_file_name_does_not_break_the_message(folder, capsys):
    assert cli.main(["segment", "no\nsuch.png", "--point", "1,1"]) == 2
    assert capsys.readouterr().err == "anysam: error: no\\nsuch.png does not exist; check the path.\n"


def test_a_format_list_without_a_format_is_refused(folder, capsys):
    assert cli.main(["segment", "photo.png", "--point", "1,1", "--format", ","]) == 2
    assert "--format names no format, got ','" in capsys.readouterr().err
