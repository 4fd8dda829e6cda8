import subprocess
import sys
from pathlib import Path

import pytest

from anysam.automatic.working_memory import working_memory
from anysam.catalogue import VARIANTS
from anysam.errors import OptionError
from anysam.memory import (
    MEGABYTE,
    WorkingMemory,
    _free_on_linux,
    format_size,
    free_memory,
    memory_bound,
    parse_size,
    plan_grid,
)

WORKING = WorkingMemory(encode=100 * MEGABYTE, decode=40 * MEGABYTE, point=MEGABYTE)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2G", 2 * 1024**3),
        ("512M", 512 * 1024**2),
        ("7k", 7168),
        ("1.5 GiB", 1610612736),
        ("600MB", 600_000_000),
        ("1T", 1024**4),
        ("1000", 1000),
        ("12B", 12),
        (1000, 1000),
    ],
)
def test_sizes_of_memory_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "2X", "0", "1iB", "1e3", "nan", "2 G B", "9" * 400 + "G", True, None])
def test_other_sizes_are_refused_in_one_line(text):
    with pytest.raises(OptionError, match="number of bytes") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


def test_written_sizes_are_read_back_and_never_smaller():
    for size in (1, MEGABYTE, 600_000_000, 1024**3, 1024**3 + 1, 1536 * MEGABYTE, 123 * 1024**3 - 1):
        assert size <= parse_size(format_size(size)) <= 1.1 * size + MEGABYTE


def test_free_memory_is_what_is_available_or_what_the_control_group_leaves(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    group = cgroup / "user" / "job"
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\n")
    assert _free_on_linux(proc, cgroup) == 5000 * 1024

    (proc / "self" / "cgroup").write_text("0::/user/job\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("700000\n")
    assert _free_on_linux(proc, cgroup) == 5000 * 1024  # no limit
    (group / "memory.max").write_text("1000000\n")
    assert _free_on_linux(proc, cgroup) == 300_000
    (group / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    assert _free_on_linux(proc, cgroup) == 350_000
    (cgroup / "user" / "memory.max").write_text("900000\n")
    (cgroup / "user" / "memory.current").write_text("800000\n")
    assert _free_on_linux(proc, cgroup) == 100_000  # the group around it

    (proc / "self" / "cgroup").write_text("4:memory:/job\n1:cpu:/\n")
    (cgroup / "memory").mkdir()
    (cgroup / "memory" / "memory.limit_in_bytes").write_text("400000\n")
    (cgroup / "memory" / "memory.usage_in_bytes").write_text("150000\n")
    assert _free_on_linux(proc, cgroup) == 250_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compares with the command free, which Linux has")
def test_free_memory_of_this_machine_is_not_more_than_the_system_says():
    said = subprocess.run(["free", "-b"], capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    assert 0 < free_memory() <= int(said[1])
    assert memory_bound(None) <= int(said[1]) // 2
    assert memory_bound(12345) == 12345


def test_a_plan_takes_less_of_everything_under_a_smaller_bound():
    plans = [
        plan_grid(bound * MEGABYTE, (600, 800), 193 * 256, 4, WORKING, exact_pixels=480_000)
        for bound in (150, 250, 600, 4000)
    ]
    points = [plan.points_at_once for plan in plans]
    kept = [plan.kept_logits for plan in plans]
    assert points == sorted(points) and points[0] < points[-1]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    for bound, plan in zip((150, 250, 600, 4000), plans, strict=True):
        assert plan.kept_logits + plan.points_at_once * (4 * 4 * 193 * 256) + WORKING.decode < bound * MEGABYTE


def test_an_impossible_bound_names_a_least_size_that_is_enough():
    for working, size in ((WORKING, (600, 800)), (WorkingMemory(0, 0, 0), (10000, 10000))):
        arguments = {"exact_pixels": 1000}
        with pytest.raises(OptionError, match="above the loaded model") as caught:
            plan_grid(MEGABYTE, size, 193 * 256, 4, working, **arguments)
        least = str(caught.value).split(" need ")[1].split()[0]
        assert plan_grid(parse_size(least), size, 193 * 256, 4, working, **arguments).points_at_once >= 1


_PEAK = """
import re, sys, torch
import anysam

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

model, image = anysam.load(), anysam.read_image(sys.argv[1])
image = image.repeat(2, 0).repeat(2, 1)[:600, :800].copy()
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
records = model.everything(image)
print(len(records), resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is told by Linux only")
def test_everything_on_a_photograph_adds_at_most_600_megabytes():
    photo = Path(__file__).parents[1] / "examples" / "images" / "astronaut.png"
    done = subprocess.run([sys.executable, "-c", _PEAK, photo], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    masks, peak = map(int, done.stdout.split())
    assert masks > 20 and peak < 600_000_000


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_every_model_says_what_it_takes(row):
    taken = working_memory(row.name)
    assert 50_000_000 < taken.encode < 2_000_000_000 and taken.decode > 0 and taken.point > 0
