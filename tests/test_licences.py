"""Licences of weights: those that are not allowed are refused before anything else, unusual ones are said once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hooked_family
from anysam import cli, licences
from anysam.catalogue import RESOURCES, VARIANTS
from anysam.checkpoints import load_model, save_checkpoint
from anysam.errors import DownloadError, LicenceError, OptionError
from anysam.licences import allowed_licences, announce_licence, catalogue_licences, licence_id, require_allowed
from hooked_family import tensors_of


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has never seen a licence, in a process that has said none."""
    monkeypatch.setattr(licences, "_said", set())
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    monkeypatch.delenv("ANYSAM_ALLOW", raising=False)
    return tmp_path


def test_without_a_choice_every_licence_is_allowed(fresh: Path) -> None:
    assert allowed_licences(None) is None
    require_allowed("any", "AGPL-3.0", None)


@pytest.mark.parametrize(
    "allow", ["apache-2.0,mit", " Apache-2.0 , MIT ", ["Apache-2.0", "mit"], ("mit", "APACHE-2.0", "MIT")]
)
def test_a_choice_is_a_list_of_names_in_any_case(fresh: Path, allow: object) -> None:
    assert allowed_licences(allow) == {"apache-2.0", "mit"}  # type: ignore[arg-type]


def test_the_environment_chooses_where_the_caller_does_not(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYSAM_ALLOW", "mit")
    assert allowed_licences(None) == {"mit"}
    assert allowed_licences("apache-2.0") == {"apache-2.0"}
    monkeypatch.setenv("ANYSAM_ALLOW", " ")
    assert allowed_licences(None) is None
    monkeypatch.setenv("ANYSAM_ALLOW", "mitt")
    with pytest.raises(OptionError, match="^ANYSAM_ALLOW names the unknown licence 'mitt'; .*Apache-2.0.*AGPL-3.0"):
        allowed_licences(None)


@pytest.mark.parametrize("allow", ["", "apache", "apache-2.0,", "apache-2.0 mit", [], ["apache-2.0", "x"]])
def test_unknown_licences_are_refused_with_the_catalogues(fresh: Path, allow: object) -> None:
    with pytest.raises(OptionError) as caught:
        allowed_licences(allow)  # type: ignore[arg-type]
    assert all(licence in str(caught.value) for licence in catalogue_licences())


def test_every_licence_of_the_catalogue_can_be_allowed(fresh: Path) -> None:
    for variant in VARIANTS:
        allowed = allowed_licences(variant.weights_licence)
        require_allowed(variant.name, variant.weights_licence, allowed)
        assert allowed is not None and len(allowed) == 1
    for resource in RESOURCES:
        require_allowed(resource.name, resource.licence, allowed_licences(licence_id(resource.licence)))


def test_names_are_compared_as_spdx_identifiers() -> None:
    assert licence_id("AGPL-3.0-or-later") == licence_id("agpl-3.0-only") == licence_id("AGPL-3.0") == "agpl-3.0"
    assert licence_id("none stated") == licence_id("None-Stated")
    assert licence_id("LLaMA (not stated)") == "llama-not-stated"  # brackets mean something in a shell
    assert licence_id("CC-BY-4.0") != licence_id("CC-BY-NC-4.0")


def test_a_refusal_names_the_licence_and_the_way_out(fresh: Path) -> None:
    with pytest.raises(LicenceError) as caught:
        require_allowed("fastsam_s", "AGPL-3.0", frozenset(["mit", "apache-2.0"]))
    message = str(caught.value)
    assert "fastsam_s" in message and "'AGPL-3.0'" in message and "--allow apache-2.0,mit,agpl-3.0" in message
    assert message.endswith(".") and "\n" not in message


def test_a_model_by_name_is_refused_before_it_is_downloaded(fresh: Path) -> None:
    with pytest.raises(LicenceError, match="fastsam_s"):
        load_model("fastsam_s", allow="apache-2.0")
    with pytest.raises(DownloadError):
        load_model("sam_vit_b", allow="apache-2.0")  # allowed, and only then found not to be here


def test_a_file_is_judged_by_its_variant_or_by_what_it_says(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked_family.install(monkeypatch)
    torch.save(tensors_of(2), fresh / "hooked_two_longer.pth")
    with pytest.raises(LicenceError, match=r"hooked_two_longer\.pth .*'AGPL-3.0'"):
        load_model(fresh / "hooked_two_longer.pth", allow="apache-2.0")
    load_model(fresh / "hooked_two_longer.pth", allow="apache-2.0,agpl-3.0")
    mine = fresh / "mine.safetensors"
    save_checkpoint(mine, tensors_of(2), {"variant": "hooked_two_longer", "licence": "MIT"})
    load_model(mine, allow="mit")  # trained by somebody else
    with pytest.raises(LicenceError, match="'MIT'"):
        load_model(mine, allow="agpl-3.0")
    monkeypatch.setenv("ANYSAM_ALLOW", "bsd-3-clause")
    with pytest.raises(LicenceError, match="'MIT'"):
        load_model(mine)


@pytest.mark.parametrize(
    "command", [["fetch", "fastsam_s"], ["segment", "p.png", "--point", "1,1", "--model", "x.pth"]]
)
def test_commands_refuse_unknown_licences(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(fresh)
    Image.new("RGB", (8, 8)).save("p.png")
    assert cli.main([*command, "--allow", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "unknown licence 'nothing'" in error and error.count("\n") == 1


def test_fetch_refuses_before_it_downloads(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "sam_vit_b", "fastsam_s", "--allow", "apache-2.0"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("anysam: error: The weights of fastsam_s are under the licence 'AGPL-3.0'")


# Said once


def test_unusual_licences_are_said_once_for_each_user(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce_licence("fastsam_s", "AGPL-3.0")
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "fastsam_s" in said.err and "AGPL-3.0" in said.err and "source" in said.err
    announce_licence("fastsam_x", "AGPL-3.0")
    monkeypatch.setattr(licences, "_said", set())  # the next process
    announce_licence("fastsam_s", "agpl-3.0-only")
    assert capsys.readouterr().err == ""
    announce_licence("edge_sam", "S-Lab-1.0")
    assert "non-commercial" in capsys.readouterr().err
    announce_licence("mine", "CC-BY-NC-4.0")
    assert "non-commercial" in capsys.readouterr().err


def test_usual_licences_are_not_said(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for licence in ("Apache-2.0", "MIT", "none stated", "CC-BY-4.0"):
        announce_licence("x", licence)
    assert capsys.readouterr().err == "" and not (fresh / "home").exists()


def test_where_nothing_can_be_kept_it_is_said_once_in_a_process(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (fresh / "home").write_text("not a folder")
    announce_licence("fastsam_s", "AGPL-3.0")
    announce_licence("fastsam_s", "AGPL-3.0")
    assert capsys.readouterr().err.count("AGPL-3.0") == 1


def test_a_licence_name_from_a_file_is_no_path(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce_licence("x", "../../non-commercial/../x")
    assert [path.parent for path in (fresh / "home").rglob("*") if path.is_file()] == [fresh / "home" / "licences"]


def test_loading_says_it(fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hooked_family.install(monkeypatch)
    torch.save(tensors_of(7), fresh / "w.pth")
    load_model(fresh / "w.pth")
    load_model(fresh / "w.pth")
    assert capsys.readouterr().err.count("hooked_any are under S-Lab-1.0: it permits non-commercial use only") == 1


def test_two_processes_at_once_say_it_once(fresh: Path) -> None:
    program = "from anysam.licences import announce_licence; announce_licence('fastsam_s', 'AGPL-3.0')"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(3)
    ]
    said = "".join(process.communicate()[1] for process in started)
    assert said.count("AGPL-3.0") == 1
