"""The text encoder of Tokenize Anything: converted exactly, run as OpenCLIP runs it, and refused if it is another."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from anysam import cli
from anysam.catalogue import find_resource
from anysam.describe import text_towers, tower_conversion
from anysam.describe.text_towers import embed_names, encoder_identity
from anysam.describe.tower_conversion import convert_text_tower
from anysam.errors import DownloadError, LicenceError, MissingExtraError, OptionError, OutputError, WeightsError
from anysam.fetch import file_sha256
from anysam.weights_files import read_state_dict

pytest.importorskip("transformers", reason="the extra `text` is not installed")

WORDS = ["a", "cat", "dog", "red", "kiwi"]
WIDTH, LAYERS, CONTEXT, LOGIT_SCALE = 128, 2, 9, 4.25


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's kind of BPE: letters, letters that end a word, and the merges that make WORDS of them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces, merges = [*letters, *(letter + "</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            pieces.append(parts[0])
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}, merges


VOCABULARY, MERGES = vocabulary()


def ids_of(text: str) -> list[int]:
    """The ids of a text of WORDS, by the table alone, filled up with zeros as OpenCLIP does."""
    ids = [VOCABULARY["<|startoftext|>"], *(VOCABULARY[word + "</w>"] for word in text.split())]
    ids.append(VOCABULARY["<|endoftext|>"])
    return ids + [0] * (CONTEXT - len(ids))


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def open_clip(prefix: str = "text.", projection: int = 1024, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A random state_dict as OpenCLIP and EVA-CLIP name it, the image half included."""
    random = torch.Generator().manual_seed(7)

    def draw(*shape: int, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=random) * 0.2 + mean).to(dtype)

    text = {
        "positional_embedding": draw(CONTEXT, WIDTH),
        "text_projection": draw(WIDTH, projection),
        "token_embedding.weight": draw(len(VOCABULARY), WIDTH),
        "ln_final.weight": draw(WIDTH, mean=1.0),
        "ln_final.bias": draw(WIDTH),
    }
    for layer in range(LAYERS):
        shapes = {
            "ln_1.weight": (WIDTH,),
            "ln_1.bias": (WIDTH,),
            "attn.in_proj_weight": (3 * WIDTH, WIDTH),
            "attn.in_proj_bias": (3 * WIDTH,),
            "attn.out_proj.weight": (WIDTH, WIDTH),
            "attn.out_proj.bias": (WIDTH,),
            "ln_2.weight": (WIDTH,),
            "ln_2.bias": (WIDTH,),
            "mlp.c_fc.weight": (3 * WIDTH, WIDTH),
            "mlp.c_fc.bias": (3 * WIDTH,),
            "mlp.c_proj.weight": (WIDTH, 3 * WIDTH),
            "mlp.c_proj.bias": (WIDTH,),
        }
        text |= {f"transformer.resblocks.{layer}.{name}": draw(*shape) for name, shape in shapes.items()}
    image = {"visual.cls_token": draw(1, 1, 32), "visual.blocks.0.attn.proj.weight": draw(8, 8)}
    return {prefix + name: value for name, value in text.items()} | image | {"logit_scale": torch.tensor(LOGIT_SCALE)}


def reference(state: dict[str, Tensor], texts: list[str]) -> np.ndarray:
    """OpenCLIP's text transformer in plain torch, with the fused projection -> (1024, C)."""
    state = {name.removeprefix("module.").removeprefix("text."): value.float() for name, value in state.items()}
    ids = torch.tensor([ids_of(text) for text in texts])
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    future = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    for layer in range(LAYERS):
        part = {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"transformer.resblocks.{layer}.")}
        y = functional.layer_norm(x, (WIDTH,), part["ln_1.weight"], part["ln_1.bias"])
        y = y @ part["attn.in_proj_weight"].T + part["attn.in_proj_bias"]
        q, k, v = (each.unflatten(-1, (WIDTH // 64, 64)).transpose(1, 2) for each in y.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) / 8 + future).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + y @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
        y = functional.layer_norm(x, (WIDTH,), part["ln_2.weight"], part["ln_2.bias"])
        y = functional.gelu(y @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"])
        x = x + y @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
    x = functional.layer_norm(x, (WIDTH,), state["ln_final.weight"], state["ln_final.bias"])
    x = x[torch.arange(len(texts)), ids.argmax(dim=-1)] @ state["text_projection"]
    return (functional.normalize(x, dim=-1) * np.exp(LOGIT_SCALE)).T.numpy()


def quiet(message: str) -> None:
    """Where what is said is not what is tested."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder with a checkpoint and a tokenizer, and a home of its own."""
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.save(open_clip(), "clip.pt")
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder that several tests read."""
    place = tmp_path_factory.mktemp("tower")
    torch.save(open_clip(), place / "clip.pt")
    return convert_text_tower(place / "clip.pt", place / "tower", write_tokenizer(place / "tokenizer")).folder


def copy_of(tower: Path, target: Path) -> Path:
    target.mkdir()
    for file in tower.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# Conversion and embedding


@pytest.mark.parametrize(
    ("file", "prefix", "wrapper", "dtype"),
    [
        ("eva.pt", "text.", None, torch.float32),
        ("open_clip.bin", "", "state_dict", torch.float16),
        ("eva.pth", "module.text.", "module", torch.bfloat16),
        ("open_clip_model.safetensors", "text.", None, torch.float16),
    ],
)
def test_embeddings_are_those_of_the_published_network(
    folder: Path, file: str, prefix: str, wrapper: str | None, dtype: torch.dtype
) -> None:
    state = open_clip(prefix, dtype=dtype)
    if prefix.startswith("module."):
        state = {name if name.startswith("module.") else f"module.{name}": value for name, value in state.items()}
    if file.endswith(".safetensors"):
        save_file(state, file)
    else:
        torch.save(state if wrapper is None else {wrapper: state, "epoch": 9}, file)
    done = convert_text_tower(file, "tower", "tokenizer")
    assert (done.width, done.layers, done.tensors, done.is_expected) == (WIDTH, LAYERS, 5 + LAYERS * 16, False)
    assert done.dtype == str(dtype).removeprefix("torch.") and done.source_sha256 == file_sha256(Path(file))
    names = ["cat", "red kiwi dog", "dog", "red cat cat dog"]
    made = embed_names(names, "tower", batch=3, say=quiet)
    expected = reference(state, [f"a {name}" for name in names])
    assert made.names == tuple(names) and made.embeddings.shape == (1024, 4)
    np.testing.assert_allclose(made.embeddings, expected, atol=2e-4 * np.exp(LOGIT_SCALE) / 32)
    np.testing.assert_allclose(np.linalg.norm(made.embeddings, axis=0), np.exp(LOGIT_SCALE), rtol=1e-5)


def test_the_folder_loads_as_any_other_of_transformers(tower: Path) -> None:
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    network, info = CLIPTextModelWithProjection.from_pretrained(tower, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = AutoTokenizer.from_pretrained(tower)(["a red cat", "a dog"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = functional.normalize(network.float()(**inputs).text_embeds, dim=-1).T * np.exp(LOGIT_SCALE)
    np.testing.assert_allclose(found.numpy(), reference(open_clip(), ["a red cat", "a dog"]), atol=1e-3)
    config = json.loads((tower / "config.json").read_text())
    assert (config["num_attention_heads"], config["hidden_act"]) == (WIDTH // 64, "gelu")


def test_nothing_of_the_image_half_is_kept(tower: Path) -> None:
    assert all(key.startswith(("text_model.", "text_projection.")) for key in load_file(tower / "model.safetensors"))


def test_only_the_text_half_of_a_large_file_is_read(folder: Path) -> None:
    state = {**open_clip(), "visual.marked": torch.full((1000,), 7.25)}
    torch.save(state, "clip.pt")
    marked, content = torch.full((1000,), 7.25).numpy().tobytes(), Path("clip.pt").read_bytes()
    assert content.count(marked) == 1
    Path("clip.pt").write_bytes(content.replace(marked, b"\0" * len(marked)))  # its checksum is wrong now
    with pytest.raises(WeightsError, match="checksum"):
        read_state_dict("clip.pt")
    assert convert_text_tower("clip.pt", "tower", "tokenizer").layers == LAYERS


def test_embeddings_do_not_depend_on_the_batch_or_the_order(tower: Path) -> None:
    names = ["cat", "red cat cat cat", "dog", "red", "kiwi red"]
    together = embed_names(names, tower, say=quiet).embeddings
    alone = [embed_names([name], tower, say=quiet).embeddings[:, 0] for name in names]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), atol=1e-4)


def test_a_template_is_what_is_read(tower: Path) -> None:
    made = embed_names(["cat", "dog"], tower, template="red {} kiwi", say=quiet)
    np.testing.assert_allclose(made.embeddings, reference(open_clip(), ["red cat kiwi", "red dog kiwi"]), atol=1e-3)


@pytest.mark.parametrize("template", ["", "a name", "{} and {}", "a {name}", "a {", "{0}", "{} }", "{!r}"])
def test_a_template_needs_one_place_for_the_name(tower: Path, template: str) -> None:
    with pytest.raises(OptionError, match="once, where the name goes"):
        embed_names(["cat"], tower, template=template)


def test_progress_rises_to_one(tower: Path) -> None:
    parts: list[float] = []
    embed_names(["cat", "dog", "red", "kiwi", "a"], tower, batch=2, progress=parts.append, say=quiet)
    assert parts == sorted(parts) and len(parts) == 3 and parts[-1] == 1.0


def test_a_name_beyond_the_limit_is_cut_at_a_word_and_this_is_said(tower: Path) -> None:
    said: list[str] = []
    made = embed_names(["cat cat dog red kiwi dog dog"], tower, say=said.append)
    np.testing.assert_allclose(made.embeddings, reference(open_clip(), ["a cat cat dog red kiwi dog"]), atol=1e-3)
    assert any("longer than the 9 tokens" in line for line in said)


def test_another_tower_than_the_expected_is_said(tower: Path) -> None:
    with pytest.warns(UserWarning, match="not that of EVA02-CLIP-bigE-14-plus"):
        embed_names(["cat"], tower)


def test_no_names_and_odd_batches_are_refused(tower: Path) -> None:
    with pytest.raises(OptionError, match="at least one"):
        embed_names([], tower)
    for batch in (0, -1, 1.5, True):
        with pytest.raises(OptionError, match="batch must be a whole number"):
            embed_names(["cat"], tower, batch=batch)  # type: ignore[arg-type]


# What is no text encoder of Tokenize Anything


def test_a_clip_of_another_space_is_refused(folder: Path, tower: Path) -> None:
    torch.save(open_clip(projection=512), "small.pt")
    with pytest.raises(OptionError, match="embeddings of 512 numbers.*1024.*other CLIPs do not share"):
        convert_text_tower("small.pt", "tower", "tokenizer")
    assert not Path("tower").exists()
    other = copy_of(tower, folder / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "projection_dim": 768}))
    with pytest.raises(OptionError, match="embeddings of 768 numbers"):
        embed_names(["cat"], other)


def test_a_whole_clip_of_transformers_is_asked_for_its_text_half(folder: Path, tower: Path) -> None:
    clip = copy_of(tower, folder / "clip")
    text = json.loads((clip / "config.json").read_text())
    form = {"model_type": "clip", "text_config": text, "vision_config": {}, "projection_dim": 1024}
    (clip / "config.json").write_text(json.dumps(form))
    tensors = load_file(clip / "model.safetensors")
    extra = {"vision_model.post_layernorm.weight": torch.ones(3), "text_model.embeddings.position_ids": torch.arange(9)}
    save_file({**tensors, **extra, "logit_scale": torch.tensor(1.5)}, clip / "model.safetensors", {"format": "pt"})
    made = embed_names(["cat", "dog"], clip, say=quiet).embeddings
    np.testing.assert_allclose(np.linalg.norm(made, axis=0), np.exp(1.5), rtol=1e-5)
    save_file(tensors, clip / "model.safetensors", {"format": "pt"})
    said: list[str] = []
    made = embed_names(["cat"], clip, say=said.append).embeddings
    assert np.linalg.norm(made) == pytest.approx(100, rel=1e-5) and "no temperature; 100" in said[0]


@pytest.mark.parametrize("kind", ["siglip", None, 3])
def test_other_kinds_of_models_are_refused(folder: Path, tower: Path, kind: object) -> None:
    other = copy_of(tower, folder / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(OptionError, match="is a CLIP"):
        embed_names(["cat"], other)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 501}, "projection_dim"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_size": 129}, "describes no text encoder"),
        ({"hidden_act": "import os"}, "describes no text encoder"),
        ({"eos_token_id": 5}, "do not belong together"),
        ({"max_position_embeddings": 8}, "misshapen"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    folder: Path, tower: Path, change: dict[str, object], word: str
) -> None:
    other = copy_of(tower, folder / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(WeightsError, match=word):
        embed_names(["cat"], other)


def test_code_that_a_configuration_names_is_not_run(folder: Path, tower: Path) -> None:
    other = copy_of(tower, folder / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "evil.py").write_text("raise SystemExit('run')")
    (other / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    assert embed_names(["cat"], other, say=quiet).names == ("cat",)


def test_damaged_weights_are_refused(folder: Path, tower: Path) -> None:
    other = copy_of(tower, folder / "other")
    whole = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        embed_names(["cat"], other)
    tensors = load_file(tower / "model.safetensors")
    save_file({**tensors, "text_projection.weight": torch.full((1024, WIDTH), torch.nan)}, other / "model.safetensors")
    with pytest.raises(WeightsError, match="NaN"):
        embed_names(["cat"], other, say=quiet)


@pytest.mark.parametrize("text", ["nowhere", "owner/name", "tokenizer"])
def test_what_is_no_encoders_folder_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(OptionError, match="anysam convert --text-tower"):
        embed_names(["cat"], text)
    assert encoder_identity(text) is None


def test_an_encoder_is_known_by_its_files(folder: Path, tower: Path) -> None:
    other = copy_of(tower, folder / "other")
    before = encoder_identity(other)
    assert before is not None and before == encoder_identity(str(other))
    (other / "merges.txt").write_text("#version: 0.2\nc a\n")
    assert encoder_identity(other) != before


def test_without_transformers_the_install_line_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_towers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anysam\[text\]'"):
        convert_text_tower("clip.pt", "tower", "tokenizer")


# Checkpoints that are none


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"logit_scale": None}, "logit_scale"),
        ({"logit_scale": torch.ones(2)}, "logit_scale"),
        ({"text.text_projection": None}, "text_projection"),
        ({"text.text_projection": torch.ones(WIDTH)}, "misshapen"),
        ({"text.transformer.resblocks.1.ln_2.bias": None}, r"1\.ln_2\.bias"),
        ({"text.transformer.resblocks.1.attn.in_proj_weight": torch.ones(100, WIDTH)}, "no whole text encoder"),
        ({"text.transformer.resblocks.1.attn.in_proj_weight": torch.ones(90, WIDTH)}, "misshapen"),
        ({"text.transformer.resblocks.3.ln_2.bias": torch.ones(WIDTH)}, r"another kind.*resblocks\.3"),
        ({"text.transformer.resblocks.0.ls_1.gamma": torch.ones(WIDTH)}, r"another kind.*ls_1"),
        ({"text.positional_embedding": torch.tensor(1.0)}, "another kind"),
        ({"text.ln_final.bias": torch.ones(WIDTH, dtype=torch.int64)}, "whole numbers"),
    ],
)
def test_other_state_dicts_are_refused(folder: Path, change: dict[str, Tensor | None], word: str) -> None:
    state = {name: value for name, value in {**open_clip(), **change}.items() if value is not None}
    torch.save(state, "other.pt")
    with pytest.raises(WeightsError, match=word) as caught:
        convert_text_tower("other.pt", "tower", "tokenizer")
    assert "other.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["clip.pt", "other.pt", "tokenizer"]


def test_a_model_of_another_family_is_refused(folder: Path) -> None:
    save_file({"encoder.weight": torch.ones(3)}, "sam.safetensors")
    with pytest.raises(WeightsError, match="no text encoder of the OpenCLIP kind"):
        convert_text_tower("sam.safetensors", "tower", "tokenizer")


def test_pickled_code_is_not_run(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("open('run', 'w')",))

    torch.save({**open_clip(), "epoch": Evil()}, "evil.pt")
    with pytest.raises(WeightsError, match="was not run"):
        convert_text_tower("evil.pt", "tower", "tokenizer")
    assert not Path("run").exists()


# Tokenizers


def test_a_tokenizer_beside_the_checkpoint_is_taken(folder: Path) -> None:
    write_tokenizer(folder)
    convert_text_tower("clip.pt", "tower")
    assert (folder / "tower" / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()


def test_without_a_tokenizer_the_hub_is_asked_and_its_failure_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    for tokenizer in (None, "some/clip"):
        with pytest.raises(DownloadError, match="give the folder of any CLIP"):
            convert_text_tower("clip.pt", "tower", tokenizer)
    assert not (folder / "tower").exists()


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    for place in ("empty", "nowhere", folder / "nowhere"):
        with pytest.raises(OptionError, match="has no tokenizer"):
            convert_text_tower("clip.pt", "tower", place)


def test_a_tokenizer_of_another_network_is_refused_and_nothing_is_left(folder: Path) -> None:
    pieces = {**VOCABULARY, "more</w>": len(VOCABULARY)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({**pieces, "<|endoftext|>": len(VOCABULARY) + 1}))
    with pytest.raises(WeightsError, match="do not belong together"):
        convert_text_tower("clip.pt", "tower", "tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["clip.pt", "tokenizer"]


# Where it is written


def test_an_existing_folder_is_only_replaced_when_forced(folder: Path) -> None:
    convert_text_tower("clip.pt", "tower", "tokenizer")
    (folder / "tower" / "mine.txt").write_text("mine")
    before = (folder / "tower" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="--force"):
        convert_text_tower("clip.pt", "tower", "tokenizer")
    torch.save({**open_clip(), "text.ln_final.bias": torch.ones(WIDTH)}, "clip.pt")
    convert_text_tower("clip.pt", "tower", "tokenizer", force=True)
    assert (folder / "tower" / "model.safetensors").read_bytes() != before
    assert (folder / "tower" / "mine.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="there already"):
        convert_text_tower("clip.pt", "clip.pt", "tokenizer", force=True)


def test_a_folder_that_cannot_be_written_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        convert_text_tower("clip.pt", "no/tower", "tokenizer")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tower_conversion, "write_tensors", fail)
    with pytest.raises(OutputError, match="disk is full"):
        convert_text_tower("clip.pt", "tower", "tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["clip.pt", "tokenizer"]


# Licences and the command


def test_a_licence_that_is_not_allowed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LicenceError, match="'none stated'"):
        convert_text_tower("clip.pt", "tower", "tokenizer", allow="mit")
    monkeypatch.setattr(tower_conversion, "WIDTH", WIDTH)
    monkeypatch.setattr(tower_conversion, "LAYERS", LAYERS)
    with pytest.raises(LicenceError, match="'MIT'"):
        convert_text_tower("clip.pt", "tower", "tokenizer", allow="apache-2.0")
    done = convert_text_tower("clip.pt", "tower", "tokenizer", allow="mit")
    assert done.licence == find_resource("eva02_clip_e_plus").licence and done.is_expected


def test_the_command_converts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "clip.pt", "--text-tower", "--tokenizer", "tokenizer", "-o", "tower"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == "tower\n" and "2 layers, 128 wide" in captured.err and "warning" in captured.err
    assert cli.main([*command, "--force", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["folder"], facts["logit_scale"], facts["width"]) == ("tower", LOGIT_SCALE, WIDTH)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--text-tower", "--dtype", "float16"], "--dtype has no effect"),
        (["--text-tower", "--variant", "sam_vit_b"], "--variant has no effect"),
        (["--text-tower", "more.pt"], "takes one checkpoint, got 2"),
        (["--tokenizer", "tokenizer"], "no effect without --text-tower"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], word: str
) -> None:
    assert cli.main(["convert", "clip.pt", *options, "-o", "tower"]) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_importing_the_module_imports_no_transformers() -> None:
    code = "import sys, anysam.describe.tower_conversion; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
