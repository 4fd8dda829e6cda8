"""`anysam convert`: published weights become a file that says what it is, fits, and loads again."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor

import hooked_family
from anysam import checkpoints, cli, licences
from anysam.checkpoints import convert_checkpoint, file_sha256, load_model, read_metadata, read_state_dict
from anysam.errors import LicenceError, OptionError, OutputError, WeightsError
from hooked_family import tensors_of


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder, a catalogue of tiny models, and a user who has never seen a licence."""
    hooked_family.install(monkeypatch)
    monkeypatch.setattr(licences, "_said", set())
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANYSAM_ALLOW", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_parts(state: dict[str, Tensor], encoder: str = "a.pt", decoder: str = "b.pt") -> None:
    """The two files of a model, under any names."""
    for file, name, prefix in ((encoder, "model", "encoder."), (decoder, "PromtEncoder", "decoder.")):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save({name: part, "epoch": 3}, file)


def test_the_file_says_what_it_is_and_loads(folder: Path) -> None:
    torch.save({"model": tensors_of(2), "optimizer": {"state": {}}}, "w.pth")
    done = convert_checkpoint("w.pth", folder / "out.safetensors")
    assert (done.path, done.variant, done.licence) == (folder / "out.safetensors", "hooked_two", "Apache-2.0")
    assert (done.dtype, done.tensors, done.source_sha256) == ("float32", 7, file_sha256(Path("w.pth")))
    with safetensors.safe_open("out.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "anysam",
            "variant": "hooked_two",
            "licence": "Apache-2.0",
            "source_sha256": file_sha256(Path("w.pth")),
            "dtype": "float32",
        }
    network, row, digest = load_model("out.safetensors")
    assert row.name == "hooked_two" and digest == file_sha256(folder / "out.safetensors")
    assert all(torch.equal(value, tensors_of(2)[key]) for key, value in network.state_dict().items())


def test_keys_are_written_as_the_network_has_them(folder: Path) -> None:
    state = {key.replace("encoder.", "vision_model."): value for key, value in tensors_of(2).items()}
    torch.save({"module." + key: value for key, value in state.items()}, "w.pth")
    convert_checkpoint("w.pth", "out.safetensors")
    assert set(read_state_dict("out.safetensors")) == set(tensors_of(2))


@pytest.mark.parametrize(
    ("stored", "dtype", "written"),
    [
        (torch.float32, None, torch.float32),
        (torch.float16, None, torch.float16),
        (torch.float32, "float16", torch.float16),
        (torch.float16, "float32", torch.float32),
    ],
)
def test_the_number_format_is_the_stored_one_or_the_chosen_one(
    folder: Path, stored: torch.dtype, dtype: str | None, written: torch.dtype
) -> None:
    state = {key: value.to(stored) if value.is_floating_point() else value for key, value in tensors_of(2).items()}
    torch.save(state, "w.pth")
    done = convert_checkpoint("w.pth", "out.safetensors", dtype=dtype)
    read = read_state_dict("out.safetensors")
    assert done.dtype == str(written).removeprefix("torch.") == read_metadata("out.safetensors")["dtype"]
    assert torch.equal(read["encoder.weight"], state["encoder.weight"].to(written))
    assert read["encoder.weight"].dtype == written and read["decoder.num_batches_tracked"].dtype == torch.int64
    load_model("out.safetensors")


def test_values_too_large_for_half_precision_are_refused(folder: Path) -> None:
    state = tensors_of(2)
    state["encoder.bias"][1] = 70_000.0
    torch.save(state, "w.pth")
    with pytest.raises(OptionError, match="encoder.bias has values that float16 cannot hold, up to 70000; use float32"):
        convert_checkpoint("w.pth", "out.safetensors", dtype="float16")
    assert not Path("out.safetensors").exists()


def test_several_files_become_one_in_any_order(folder: Path) -> None:
    state = tensors_of(3)
    save_parts(state)
    for order in (["a.pt", "b.pt"], ["b.pt", "a.pt"]):
        done = convert_checkpoint(order, "out.safetensors", force=True)
        assert done.variant == "hooked_three"
        assert done.source_sha256 == ",".join(file_sha256(Path(name)) for name in order)
        read = read_state_dict("out.safetensors")
        assert all(torch.equal(read[key], state[key]) for key in state)
    assert load_model("out.safetensors")[1].name == "hooked_three"


def test_parts_of_nothing_known_are_refused(folder: Path) -> None:
    torch.save({"x": torch.ones(1)}, "a.pt")
    torch.save({"y": torch.ones(1)}, "b.pt")
    with pytest.raises(WeightsError, match=r"a\.pt, b\.pt: The parts are no encoder and decoder"):
        convert_checkpoint(["a.pt", "b.pt"], "out.safetensors")
    save_parts(tensors_of(2))  # parts that fit each other, but no variant of several files
    with pytest.raises(WeightsError, match="Cannot tell which model .* one of hooked_three"):
        convert_checkpoint(["a.pt", "b.pt"], "out.safetensors")


def test_weights_that_do_not_fit_are_not_written(folder: Path) -> None:
    torch.save(tensors_of(2) | {"head": torch.ones(1)}, "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth.*1 unexpected \(first: head\)"):
        convert_checkpoint("w.pth", "out.safetensors")
    with pytest.raises(WeightsError, match="do not fit hooked_three"):
        convert_checkpoint("w.pth", "out.safetensors", variant="hooked_three")
    assert not Path("out.safetensors").exists()


def test_an_existing_file_stays_without_force(folder: Path) -> None:
    torch.save(tensors_of(2), "w.pth")
    Path("out.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match="is there already; .*--force"):
        convert_checkpoint("w.pth", "out.safetensors")
    assert Path("out.safetensors").read_bytes() == b"mine"
    convert_checkpoint("w.pth", "out.safetensors", force=True)
    assert load_model("out.safetensors")[1].name == "hooked_two"


def test_an_interrupted_conversion_leaves_the_older_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(tensors_of(2), "w.pth")
    Path("out.safetensors").write_bytes(b"mine")

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anysam.weights_files.save_file", full_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        convert_checkpoint("w.pth", "out.safetensors", force=True)
    assert Path("out.safetensors").read_bytes() == b"mine" and sorted(p.name for p in folder.iterdir()) == [
        "out.safetensors",
        "w.pth",
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("w.pth", "out.pth"), "must end in .safetensors"),
        (("w.pth", "out.safetensors", None, "bfloat16"), "dtype must be one of float32, float16, got 'bfloat16'"),
        (("same.safetensors", "./same.safetensors", None, None, True), "is the file to convert"),
        (([], "out.safetensors"), "No file"),
        ((["w.pth", "w.pth"], "out.safetensors", "hooked_two"), None),
    ],
)
def test_requests_that_make_no_sense_are_refused(folder: Path, arguments: tuple, word: str | None) -> None:
    torch.save(tensors_of(2), "w.pth")
    checkpoints.save_checkpoint("same.safetensors", tensors_of(2), {"variant": "hooked_two"})
    before = Path("same.safetensors").read_bytes()
    with pytest.raises((OptionError, WeightsError), match=word):
        convert_checkpoint(*arguments)
    assert Path("same.safetensors").read_bytes() == before and not Path("out.safetensors").exists()


def test_licences_that_are_not_allowed_are_not_converted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tensors_of(2), "hooked_two_longer.pth")
    with pytest.raises(LicenceError, match="'AGPL-3.0'"):
        convert_checkpoint("hooked_two_longer.pth", "out.safetensors", allow="mit")
    assert not Path("out.safetensors").exists()
    done = convert_checkpoint("hooked_two_longer.pth", "out.safetensors", allow="agpl-3.0")
    assert done.licence == read_metadata("out.safetensors")["licence"] == "AGPL-3.0"
    assert capsys.readouterr().err.count("AGPL-3.0") == 1
    convert_checkpoint("out.safetensors", "again.safetensors")
    assert read_metadata("again.safetensors")["licence"] == "AGPL-3.0"


def test_the_command_prints_the_path_and_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(tensors_of(2), "w.pth")
    assert cli.main(["convert", "w.pth", "-o", "out.safetensors", "--dtype", "float16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "out.safetensors\n"
    assert captured.err == "Wrote out.safetensors: hooked_two, 7 tensors, float16, 0.0 MB, Apache-2.0.\n"
    assert cli.main(["convert", "w.pth", "-o", "out.safetensors"]) == 2
    assert capsys.readouterr().err.startswith("anysam: error: out.safetensors is there already;")
    assert cli.main(["convert", "w.pth", "-o", "out.safetensors", "--force", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["variant"] == "hooked_two" and facts["source_sha256"] == file_sha256(Path("w.pth"))


def test_the_command_joins_files_and_takes_a_variant(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_parts(tensors_of(3))
    assert cli.main(["convert", "b.pt", "a.pt", "-o", "out.safetensors", "--variant", "hooked_three"]) == 0
    assert "hooked_three" in capsys.readouterr().err
    assert cli.main(["convert", "b.pt", "-o", "x.safetensors", "--variant", "sam_vit_q"]) == 2
    assert "sam_vit_q" in capsys.readouterr().err
    assert cli.main(["convert", "gone.pt", "-o", "x.safetensors"]) == 2
    assert "There is no weights file gone.pt" in capsys.readouterr().err
    assert cli.main(["convert", "b.pt"]) == 2
    assert "-o" in capsys.readouterr().err
