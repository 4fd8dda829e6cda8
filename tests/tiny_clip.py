"""Tiny image-text checkpoints with random weights, in folders with the files that the hub has of real ones."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers

WORDS = "a photo of the red blue green car dog cat house tree and many words more in one long text".split()
SIZE = 32  # of a picture, in pixels
LIMIT = 16  # tokens of a text

_CLIP_COLOURS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def write_clip(folder: Path, pickled: bool = False, seed: int = 0) -> Path:
    """A CLIP as openai/clip-vit-base-patch32 is on the hub; pickled: with pytorch_model.bin and position_ids in it."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    vocab = _write_clip_tokenizer(folder)
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={**_tower(), "vocab_size": len(vocab), "max_position_embeddings": LIMIT, "projection_dim": 24}
        | {"eos_token_id": vocab["<|endoftext|>"], "bos_token_id": vocab["<|startoftext|>"]},
        vision_config={**_tower(), "image_size": SIZE, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    model = _shaken(CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(np.log(100.0))
    if pickled:
        model.config.save_pretrained(folder)
        counts = {
            "text_model.embeddings.position_ids": torch.arange(LIMIT)[None],
            "vision_model.embeddings.position_ids": torch.arange((SIZE // 8) ** 2 + 1)[None],
        }
        torch.save({**model.state_dict(), **counts}, folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    form = {"crop_size": SIZE, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
    _write_json(
        folder / "preprocessor_config.json",
        {**form, **_CLIP_COLOURS, "size": SIZE, "feature_extractor_type": "CLIPFeatureExtractor"},
    )
    return folder


def write_siglip(folder: Path, seed: int = 0) -> Path:
    """A SigLIP with a SentencePiece tokenizer, as google/siglip-base-patch16-224 is on the hub."""
    import sentencepiece
    from transformers import SiglipConfig, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(np.random.default_rng(n).permutation(WORDS)) for n in range(60)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spiece.vocab").unlink()
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).vocab_size()
    names = {"eos_token": "</s>", "pad_token": {"content": "</s>", "special": True}, "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "SiglipTokenizer", "model_max_length": LIMIT})
    torch.manual_seed(seed)
    config = SiglipConfig(
        text_config={**_tower(), "vocab_size": vocab_size, "max_position_embeddings": LIMIT},
        vision_config={**_tower(), "image_size": SIZE, "patch_size": 8},
    )
    _save_siglip(SiglipModel(config), folder)
    size = {"size": {"height": SIZE, "width": SIZE}, "image_processor_type": "SiglipImageProcessor"}
    _write_json(folder / "preprocessor_config.json", {**_steps(3), **_HALVES, **size})
    return folder


def write_siglip2(folder: Path, seed: int = 0) -> Path:
    """A SigLIP 2 of the NaFlex kind, as google/siglip2-base-patch16-naflex is on the hub."""
    from transformers import Siglip2Config, Siglip2Model, Siglip2Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: number for number, piece in enumerate([*special, *letters, "re", "red", "ca", "car", "▁car"])}
    merges = [("r", "e"), ("re", "d"), ("c", "a"), ("ca", "r"), ("▁", "car")]
    Siglip2Tokenizer(vocab=vocab, merges=merges, padding_side="right").save_pretrained(folder)
    torch.manual_seed(seed)
    config = Siglip2Config(
        text_config={**_tower(), "vocab_size": len(vocab), "max_position_embeddings": LIMIT},
        vision_config={**_tower(), "num_patches": 16, "patch_size": 8},
    )
    _save_siglip(Siglip2Model(config), folder)
    patches = {"patch_size": 8, "max_num_patches": 16, "image_processor_type": "Siglip2ImageProcessor"}
    _write_json(folder / "preprocessor_config.json", {**_steps(2), **_HALVES, **patches})
    return folder


def _tower():
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _steps(resample):
    switches = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    return {**switches, "resample": resample, "rescale_factor": 1 / 255}


def _shaken(model):
    """Larger weights than training starts from: with those all pictures look alike."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" not in name and "logit" not in name:
                value.copy_(0.3 * torch.randn(value.shape))
    return model.eval()


def _save_siglip(model, folder):
    with torch.no_grad():
        _shaken(model).logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)


def _write_clip_tokenizer(folder):
    """CLIP's: bytes, each also as the end of a word, and merges that make WORDS of them. Returns the vocabulary."""
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces.append(parts[0])
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    merges = list(dict.fromkeys(merges))
    vocab = {piece: number for number, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LIMIT).save_pretrained(folder)
    _write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return vocab


def _write_json(path, form):
    path.write_text(json.dumps(form, indent=2), encoding="utf-8")
