"""`anysam models` and `anysam fetch`: what the catalogue says, what is here, and where the rest comes from."""

import json
import re
from pathlib import Path

import pytest

from anysam import cli
from anysam.catalogue import RESOURCES, VARIANTS


def run(capsys, *arguments):
    """(exit status, stdout, stderr)."""
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments):
    """stderr of a command line that is bad input: one line, nothing on stdout, exit status 2."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err.startswith("anysam: error: ") and err.count("\n") == 1
    return err


def test_models_lists_the_catalogue(capsys):
    status, out, err = run(capsys, "models")
    rows = [re.split(r"\s{2,}", line) for line in out.split("\n\n")[0].splitlines()]
    assert (status, err) == (0, "")
    assert rows[0][:6] == ["MODEL", "WEIGHTS", "PROMPTS", "CODE", "WEIGHTS LICENCE", "HERE"]
    by_name = {row[0]: row for row in rows[1:]}
    assert list(by_name) == [variant.name for variant in VARIANTS]
    assert by_name["sam_vit_b"][1:6] == ["375 MB", "point, box, mask", "Apache-2.0", "Apache-2.0", "no"]
    assert by_name["fastsam_s"][3:6] == ["AGPL-3.0", "AGPL-3.0", "no"]
    assert by_name["mobilesamv2_object_aware"][2] == "none"  # it is asked nothing
    assert by_name["anysam_lite"][5] == "yes"


def test_models_as_json_says_where_weights_are(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sam_vit_b_01ec64.pth").write_bytes(b"x" * 2_000_000)
    _, out, _ = run(capsys, "models", "--json")
    models = {model["name"]: model for model in json.loads(out)["models"]}
    assert models["sam_vit_b"]["weights"] == str(tmp_path / "weights" / "sam_vit_b_01ec64.pth")
    assert models["sam_vit_b"]["megabytes"] == 2.0  # of the file that is here
    assert models["sam_vit_l"]["weights"] is None and models["sam_vit_l"]["megabytes"] == 1249.5
    assert models["sam_vit_h"]["parameters"] == 641_090_608
    assert [name for name, model in models.items() if model["default"]] == ["anysam_lite"]


def test_fetch_prints_where_the_weights_are(capsys):
    status, out, _ = run(capsys, "fetch", "anysam_lite")
    assert status == 0 and out.endswith("anysam_lite.safetensors\n") and Path(out.strip()).is_file()
    _, out, _ = run(capsys, "fetch", "anysam_lite", "--json")
    assert json.loads(out)["fetched"][0]["name"] == "anysam_lite"


def test_fetch_offline_says_so(capsys, monkeypatch):
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    assert "ANYSAM_OFFLINE" in refused(capsys, "fetch", "sam_vit_b")


def test_fetch_checks_every_name_before_it_downloads(capsys, monkeypatch):
    # Connecting would fail the test, see conftest.py.
    message = refused(capsys, "fetch", "sam_vit_b", "sam_vit_q")
    assert "sam_vit_q" in message


def info(capsys, name):
    """The facts that `anysam models info` prints, by their names."""
    status, out, err = run(capsys, "models", "info", name)
    assert (status, err) == (0, "")
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines() if not line.startswith(" "))


def test_info_says_all_about_one_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path))
    facts = info(capsys, "sam_vit_b")
    assert facts["parameters"] == "93,735,472" and facts["prompts"] == "point, box, mask"
    assert facts["code licence"] == facts["weights licence"] == "Apache-2.0"
    address = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
    assert facts["weights"] == f"sam_vit_b_01ec64.pth (375.0 MB) from {address}"
    assert facts["here"] == "no" and facts["point limit"] == "none"
    cached = tmp_path / "weights" / "sam_vit_b_01ec64.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"x")
    assert info(capsys, "sam_vit_b")["here"] == str(cached)
    assert info(capsys, "efficient_sam_vitt")["point limit"] == "6 in one prompt, a box counting as two"
    assert "by hand from https://drive.google.com/" in info(capsys, "fastsam_x")["weights"]
    assert info(capsys, "anysam_lite")["weights"].endswith("in the package")


def test_info_of_a_model_of_several_files_lists_them(capsys):
    _, out, _ = run(capsys, "models", "info", "mobilesamv2_efficientvit_l2")
    assert "l2.pt" in out and "Prompt_guided_Mask_Decoder.pt from https://github.com/" in out
    _, out, _ = run(capsys, "models", "info", "mobilesamv2_efficientvit_l2", "--json")
    model = json.loads(out)
    assert [file["name"] for file in model["files"]] == ["l2.pt", "Prompt_guided_Mask_Decoder.pt"]
    assert model["name"] == "mobilesamv2_efficientvit_l2" and model["weights"] is None


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_info_knows_every_model(capsys, variant):
    facts = info(capsys, variant.name)
    assert facts["code licence"] == variant.code_licence and facts["weights licence"] == variant.weights_licence
    _, out, _ = run(capsys, "models", "info", variant.name, "--json")
    model = json.loads(out)
    assert (model["gmac"], model["max_points"]) == (variant.gmac, variant.max_points)
    _, out, _ = run(capsys, "models", "--json")
    assert model in json.loads(out)["models"]


def test_info_needs_the_name_of_a_model(capsys):
    assert "sam_vit_b" in refused(capsys, "models", "info", "sam_vit_bb")
    assert "info and a model's name, got 'info'" in refused(capsys, "models", "info")
    assert "got 'sam_vit_b'" in refused(capsys, "models", "sam_vit_b")
    assert "got 'list' and 'all'" in refused(capsys, "models", "list", "all")


def test_fetching_what_has_no_address_says_where_a_person_gets_it(capsys, monkeypatch):
    monkeypatch.setattr("anysam.licences._said", {"agpl-3.0"})  # the notice, said once, is not what is asked here
    message = refused(capsys, "fetch", "fastsam_x")
    assert "get FastSAM.pt from https://drive.google.com/" in message
    assert "mobilesamv2_tiny_vit" in refused(capsys, "fetch", "mobilesamv2_tiny_vit")
    monkeypatch.setenv("ANYSAM_MIRROR", "http://127.0.0.1:9")  # a mirror may have it; nobody listens there
    monkeypatch.setattr("anysam.fetch.time.sleep", lambda seconds: None)
    assert "http://127.0.0.1:9/FastSAM.pt" in refused(capsys, "fetch", "fastsam_x")


# Files that words need


def test_models_lists_the_files_for_words_below(capsys):
    _, out, _ = run(capsys, "models")
    rows = [re.split(r"\s{2,}", line) for line in out.split("\n\n")[1].splitlines()]
    assert rows[0] == ["FILE FOR WORDS", "SIZE", "KIND", "LICENCE", "HERE"]
    by_name = {row[0]: row for row in rows[1:]}
    assert list(by_name) == [row.name for row in RESOURCES]
    assert by_name["merged_2560"][1:5] == ["11 MB", "vocabulary", "Apache-2.0", "no"]
    assert by_name["tap_tokenizer"][1:5] == ["500 kB", "tokenizer", "LLaMA (not stated)", "no"]
    assert by_name["everyday"][4] == "yes"


def test_models_as_json_has_the_files_under_a_key_of_their_own(capsys):
    _, out, _ = run(capsys, "models", "--json")
    document = json.loads(out)
    assert list(document) == ["models", "resources"]
    files = {file["name"]: file for file in document["resources"]}
    assert files["coco_80"]["file"]["bytes"] == 328_630 and files["coco_80"]["path"] is None
    assert Path(files["everyday"]["path"]).is_file() and files["everyday"]["families"] == []


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.name)
def test_info_knows_every_file(capsys, resource):
    facts = info(capsys, resource.name)
    assert (facts["file"], facts["licence"], facts["kind"]) == (resource.name, resource.licence, resource.noun)
    assert (resource.file.url or "in the package") in facts["published"]
    _, out, _ = run(capsys, "models", "info", resource.name, "--json")
    assert json.loads(out)["file"]["sha256"] == resource.file.sha256


def test_info_of_an_unknown_file_names_the_nearest(capsys):
    assert "did you mean merged_2560" in refused(capsys, "models", "info", "merged2560")


@pytest.fixture
def here(monkeypatch, tmp_path):
    """A home with some files as if they had been fetched; put(name, ...) adds more."""
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path))
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    monkeypatch.setattr("anysam.fetch.verify_weights", lambda row, path: "")
    monkeypatch.setattr("anysam.licences._said", {"llama-not-stated"})

    def put(*names):
        files = {row.name: ("weights", row.file.name) for row in VARIANTS}
        files |= {row.name: ("resources", row.file.name) for row in RESOURCES}
        for name in names:
            path = tmp_path.joinpath(*files[name])
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")

    return put


def test_fetch_takes_models_and_files_together(capsys, here, tmp_path):
    here("merged_2560", "tap_tokenizer", "tap_vit_b")
    status, out, err = run(capsys, "fetch", "merged_2560", "tap_tokenizer", "tap_vit_b", "everyday")
    names = ["merged_2560.pkl", "text_tokenizer.model", "tap_vit_b_v1_1.pkl", "everyday.txt"]
    assert (status, err) == (0, "") and [Path(line).name for line in out.splitlines()] == names
    _, out, _ = run(capsys, "fetch", "merged_2560", "tap_vit_b", "--json")
    assert [sorted(each) for each in json.loads(out)["fetched"]] == [["file", "name"], ["name", "weights"]]


def test_fetch_of_a_model_says_what_words_need_beside_it(capsys, here):
    here("tap_vit_b", "sam_vit_b")
    _, out, err = run(capsys, "fetch", "tap_vit_b")
    assert out.count("\n") == 1 and err.count("\n") == 1
    assert "For words tap_vit_b also needs" in err and err.endswith("anysam fetch merged_2560 tap_tokenizer\n")
    here("merged_2560")
    _, _, err = run(capsys, "fetch", "sam_vit_b", "tap_vit_b", "--json")
    assert "For words tap_vit_b" in err and err.endswith("anysam fetch tap_tokenizer\n")
    here("tap_tokenizer")
    assert run(capsys, "fetch", "tap_vit_b")[2] == "" == run(capsys, "fetch", "sam_vit_b")[2]


def test_fetch_refuses_a_files_licence_before_any_download(capsys, here):
    error = refused(capsys, "fetch", "merged_2560", "tap_tokenizer", "--allow", "apache-2.0")
    assert "The tokenizer tap_tokenizer is under the licence 'LLaMA (not stated)'" in error
    assert "vocabulary coco_80 is not at" in refused(capsys, "fetch", "coco_80", "--allow", "apache-2.0")
