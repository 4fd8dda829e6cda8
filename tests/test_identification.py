"""Which variant weights are for: by hash, by what the file says, by shapes, by name; what a family's hooks do."""

from pathlib import Path

import pytest
import torch

import hooked_family
from anysam.catalogue import VARIANTS, WeightsFile
from anysam.checkpoints import file_sha256, load_model, save_checkpoint
from anysam.errors import WeightsError
from anysam.identification import guess_variant, likely_variants
from hooked_family import tensors_of


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors_of(width).items()}


def test_variants_of_the_same_shapes_are_all_likely_in_the_catalogues_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked_family.install(monkeypatch)
    assert [row.name for row in likely_variants(shapes(2))] == ["hooked_two", "hooked_two_longer"]
    assert guess_variant(shapes(2)) == "hooked_two"
    assert guess_variant(shapes(3)) == "hooked_three"
    assert guess_variant({}) is None


def test_other_spellings_are_recognised_and_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    state = {key.replace("encoder.", "vision_model."): value for key, value in tensors_of(2).items()}
    torch.save(state, tmp_path / "w.pth")
    network, row, _ = load_model(tmp_path / "w.pth")
    assert row.name == "hooked_two"
    assert torch.equal(network.encoder.weight, tensors_of(2)["encoder.weight"])


def test_widths_are_read_from_the_tensors_where_the_variant_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hooked_family.install(monkeypatch)
    torch.save(tensors_of(7), tmp_path / "w.pth")
    network, row, _ = load_model(tmp_path / "w.pth")
    assert row.name == "hooked_any" and network.encoder.weight.shape == (7, 7)
    with pytest.raises(WeightsError, match=r"w\.pth: .*do not fit hooked_two.*looks like hooked_any"):
        load_model(tmp_path / "w.pth", variant="hooked_two")


def test_weights_that_a_family_cannot_build_from_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: These tensors have no encoder\."):
        load_model(tmp_path / "w.pth", variant="hooked_any")


def test_among_equal_shapes_the_hash_decides_then_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    for name, wanted in (("x.pth", "hooked_two"), ("hooked_two_longer.pth", "hooked_two_longer")):
        torch.save(tensors_of(2), tmp_path / name)
        assert load_model(tmp_path / name)[1].name == wanted
    torch.save(tensors_of(2, seed=1), tmp_path / "hooked_two_longer.pth")
    known = WeightsFile("published.pth", sha256=file_sha256(tmp_path / "hooked_two_longer.pth"))
    hooked_family.install(monkeypatch, hooked_family.row("hooked_published", "two", parameters=10, file=known))
    assert load_model(tmp_path / "hooked_two_longer.pth")[1].name == "hooked_published"


def test_what_our_own_file_says_beats_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    path = tmp_path / "hooked_two.pth.safetensors"
    save_checkpoint(path, tensors_of(2), {"variant": "hooked_two_longer"})
    assert load_model(path)[1].name == "hooked_two_longer"


def test_half_of_a_model_says_how_to_join_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    for content in ({"PromtEncoder": {"weight": torch.ones(3)}}, {"weight": torch.ones(3)}):
        torch.save(content, tmp_path / "decoder.pt")
        with pytest.raises(WeightsError) as caught:
            load_model(tmp_path / "decoder.pt")
        assert "anysam convert encoder.pt decoder.pt -o hooked_three.pth" in str(caught.value)
    (tmp_path / "decoder.pt").write_bytes((tmp_path / "decoder.pt").read_bytes()[:300])
    with pytest.raises(WeightsError, match="damaged"):
        load_model(tmp_path / "decoder.pt")


def test_a_model_of_several_files_is_joined_when_they_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path))
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    (tmp_path / "weights").mkdir()
    encoder, decoder = tmp_path / "weights" / "encoder.pt", tmp_path / "weights" / "decoder.pt"
    state = tensors_of(3)
    for path, name, prefix in ((encoder, "model", "encoder."), (decoder, "PromtEncoder", "decoder.")):
        torch.save(
            {name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}}, path
        )
    network, row, digest = load_model("hooked_three")
    assert row.name == "hooked_three" and digest == f"{file_sha256(encoder)},{file_sha256(decoder)}"
    assert torch.equal(network.encoder.weight, state["encoder.weight"])
    assert torch.equal(network.decoder.running_var, state["decoder.running_var"])
    save_checkpoint(tmp_path / "weights" / "hooked_three.pth", tensors_of(3, seed=1), {"variant": "hooked_three"})
    network, _, _ = load_model("hooked_three")  # joined before: the one file comes first
    assert torch.equal(network.encoder.weight, tensors_of(3, seed=1)["encoder.weight"])


def test_every_part_of_every_row_is_named_once_in_it() -> None:
    for row in VARIANTS:
        names = [file.name for file in (row.file, *row.parts)]
        assert len(set(names)) == len(names)


def test_weights_of_nothing_in_the_whole_catalogue_are_nothing() -> None:
    assert likely_variants({"a": (1,)}) == []


def test_names_alone_never_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hooked_family.install(monkeypatch)
    torch.save(tensors_of(3), tmp_path / "hooked_two.pth")
    assert load_model(tmp_path / "hooked_two.pth")[1].name == "hooked_three"
