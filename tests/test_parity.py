"""The golden cases, through the same runner that people call, and the runner's own honesty."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PARITY = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in (PARITY / "cases").glob("*/case.json"))


def run(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PARITY / "run.py", *options]
    source = PARITY.parents[1] / "src"
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)


@pytest.mark.parametrize("case", CASES)
def test_golden_case(case: str) -> None:
    done = run("--cases", PARITY / "cases", "--inputs", PARITY / "inputs", "--only", case)
    problems = [line for line in done.stdout.splitlines() if not line.startswith("ok")]
    assert done.returncode == 0, "\n".join([*problems, done.stderr])
    assert " 0 failures" in problems[-1]


@pytest.mark.parametrize("case", ["efficientvit_sam_l0"])  # the least work: bfloat16 is slow where it is emulated
def test_masks_in_bfloat16_are_those_of_float32(case: str) -> None:
    done = subprocess.run([sys.executable, PARITY / "half.py", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) >= 0.98, done.stdout


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A copy of SAM-B's case without its encoder part, in which some things are wrong and some are right."""
    source, folder = PARITY / "cases" / "sam_vit_b", tmp_path / "cases" / "sam_vit_b__spoiled"
    folder.mkdir(parents=True)
    form = json.loads((source / "case.json").read_text())
    arrays = {name: fact for name, fact in form["arrays"].items() if name.startswith("decoder_only/")}
    stored = np.load(source / "expected.npz")
    expected = {name: stored[name] for name in arrays}
    expected["decoder_only/points/low_res_logits"][7] += 2e-3 * arrays["decoder_only/points/low_res_logits"]["std"]
    expected["decoder_only/box/low_res_logits"] += 2e-4 * arrays["decoder_only/box/low_res_logits"]["std"]
    expected["decoder_only/box_point/mask_areas"][1] *= 1.01
    expected["decoder_only/refine/iou_predictions"][:] = np.nan
    expected["decoder_only/point/best_mask_packed"][500:600] ^= 255
    expected["decoder_only/point/new_array"] = np.zeros(3, dtype=np.float32)
    expected["missing/image_embeddings"] = np.zeros(3, dtype=np.float32)
    form["images"]["missing"] = {"file": "missing.png", "size_wh": [8, 8], "prompts": {}}
    arrays["decoder_only/batch_boxes/not_stored"] = arrays["decoder_only/batch_boxes/mask_areas"]
    (folder / "case.json").write_text(json.dumps({**form, "arrays": arrays}))
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    np.savez(folder / "expected.npz", **expected)
    return folder.parent


def test_runner_reports_every_kind_of_difference_and_omission(spoiled: Path) -> None:
    done = run("--cases", spoiled, "--inputs", PARITY / "inputs")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    failed = {line.split()[2].rstrip(":") for line in lines if line.startswith("FAIL")}
    assert failed == {
        "decoder_only/points/low_res_logits",
        "decoder_only/box/low_res_logits",
        "decoder_only/box_point/mask_areas",
        "decoder_only/refine/iou_predictions",
        "decoder_only/point/best_mask_packed",
        "decoder_only/point/new_array",
        "missing",
        "missing/image_embeddings",
        "decoder_only/batch_boxes/not_stored",
    }
    assert any(line.startswith("ok   sam_vit_b__spoiled decoder_only/point/low_res_logits: max ") for line in lines)
    assert lines[-1].startswith("parity: 1 cases, ") and " 9 failures" in lines[-1]


def test_runner_names_unknown_variants_and_wants_something_to_compare(tmp_path: Path) -> None:
    (tmp_path / "sam_vit_z__new").mkdir()
    (tmp_path / "sam_vit_z__new" / "case.json").write_text("{}")
    done = run("--cases", tmp_path, "--inputs", PARITY / "inputs")
    assert done.returncode == 1
    assert "FAIL sam_vit_z__new unknown variant" in done.stdout
    done = run("--cases", tmp_path, "--inputs", PARITY / "inputs", "--known-only")
    assert done.returncode == 1
    assert "--   sam_vit_z__new unknown variant" in done.stdout
    assert "no array was compared" in done.stdout


def test_runner_goes_on_after_a_case_that_is_cut_short(tmp_path: Path) -> None:
    for name in ("sam_vit_b__cut", "sam_vit_z__next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "case.json").write_text("{}")
    (tmp_path / "sam_vit_b__cut" / "expected.npz").write_bytes(
        (PARITY / "cases" / "sam_vit_b" / "expected.npz").read_bytes()[:5000]
    )
    done = run("--cases", tmp_path, "--inputs", PARITY / "inputs")
    assert done.returncode == 1
    assert "FAIL sam_vit_b__cut the case cannot be read" in done.stdout
    assert "FAIL sam_vit_z__next unknown variant" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("parity: ")


def test_runner_fails_for_a_case_that_is_not_there() -> None:
    done = run("--cases", PARITY / "cases", "--inputs", PARITY / "inputs", "--only", "sam_vit_x")
    assert done.returncode == 1
    assert "there is no such case" in done.stdout
