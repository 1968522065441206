"""A tiny KOALA in the layout of the hub's cache, with the released file names."""

import hashlib
import json
import shutil
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

REPOSITORY = "etri-vilab/koala-lightning-700m"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the real repository also holds and a pipeline does not need.
NOT_NEEDED = ("README.md", "unet/diffusion_pytorch_model.safetensors", "unet/model.onnx")
NOT_NEEDED += ("unet/openvino_model.bin", "unet/diffusion_flax_model.msgpack")
NOT_NEEDED += ("vae_decoder/model.onnx",)
FOREIGN = "another/flux"  # of another family
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WIDTH = 32  # of each text encoder
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER |= {"steps_offset": 1, "timestep_spacing": "leading"}


def write_hub_layout(home: Path) -> Path:
    """Write `<home>/hub/models--.../{refs/main,snapshots/<commit>}`; returns the snapshot folder.

    Random weights in KOALA-700M's block structure, 64 x 64 px, half precision, leading timesteps.
    """
    place = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    pipe = tiny_pipeline(snapshot)
    pipe.to(torch.float16).save_pretrained(snapshot, variant="fp16")
    # Tokenizers as released: vocabulary and merges, no tokenizer.json.
    for name, pad in (("tokenizer", EOS), ("tokenizer_2", "!")):
        shutil.rmtree(snapshot / name)
        write_tokenizer(snapshot / name, pad)
    return snapshot


def tiny_pipeline(scratch: Path) -> diffusers.StableDiffusionXLPipeline:
    """A pipeline with random weights; tokenizers are written below `scratch`."""
    torch.manual_seed(0)
    tokenizers = []
    for name, pad in (("tokenizer", EOS), ("tokenizer_2", "!")):
        write_tokenizer(scratch / name, pad)
        tokenizers.append(transformers.CLIPTokenizer.from_pretrained(scratch / name))
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 2, 5],
        mid_block_type=None,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=[1, 2, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
        sample_size=64,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=transformers.CLIPTextModel(text_config(tokenizers[0])).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text_config(tokenizers[1])).eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
    )


def text_config(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        # With the default ids the pooled embedding is read at the wrong token.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_tokenizer(folder: Path, pad: str) -> None:
    """A byte-level CLIP tokenizer without merges: one token a byte, any text."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(s + "</w>" for s in symbols), BOS, EOS]
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    config["do_lower_case"] = True
    files = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n",
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(config),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@contextmanager
def serve_hub(snapshot: Path):
    """Yield (address, list of the paths that were fetched) of a hub with the tiny KOALA."""
    fetched: list[str] = []
    files = {p.relative_to(snapshot).as_posix(): p for p in snapshot.rglob("*") if p.is_file()}
    content = {name: path.read_bytes() for name, path in files.items()}
    content |= dict.fromkeys(NOT_NEEDED, b"not needed")

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self, body: bool = True) -> None:
            path = self.path.split("?")[0].strip("/")
            api, resolve = f"api/models/{REPOSITORY}", f"{REPOSITORY}/resolve/"
            headers, data, status = {}, b"{}", 200
            if path.startswith(f"{api}/tree/"):
                tree = [
                    {"type": "file", "path": n, "size": len(d), "oid": "0" * 40}
                    for n, d in content.items()
                ]
                data = json.dumps(tree).encode()
            elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in content]
                data = json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith(resolve) and path.split("/", 4)[4] in content:
                name = path.split("/", 4)[4]
                data = content[name]
                etag = hashlib.sha256(data).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                if body:
                    fetched.append(name)
            elif path.startswith(f"{FOREIGN}/resolve/"):
                data = b'{"_class_name": "FluxPipeline"}'
                headers = {"ETag": '"flux"', "X-Repo-Commit": COMMIT}
                fetched.append(path.split("/", 4)[4])
            else:
                lacks = "Revision" if path.startswith(f"{api}/revision/") else "Repo"
                status, headers = 404, {"X-Error-Code": f"{lacks}NotFound"}
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", fetched
        httpd.shutdown()
