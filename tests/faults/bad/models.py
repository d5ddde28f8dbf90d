"""Malformed and hostile checkpoints and tokenizers, each with what its one sentence must say."""

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from algos.training.models.checkpoints import save_policy
from tests.faults.bad.cases import Case
from tests.tiny import tiny_model, tiny_tokenizer

TEXT = [{"id": "a", "question": "1+1", "prompt": "1+1=", "answer": "#### 2"}] * 2
CHAT = [{**row, "prompt": [{"role": "user", "content": "1+1="}]} for row in TEXT]
OPENED = "{% for m in messages %}{{ m.content }}{% endfor %}"


@cache
def good() -> Path:
    """A folder with a tiny model and its tokenizer."""
    folder = Path(tempfile.mkdtemp(prefix="good-"))
    save_policy(tiny_model(tiny_tokenizer(), dtype=torch.float32), tiny_tokenizer(), folder)
    return folder


def model(what: str, spoil: Callable[[Path], object], says: str, rows=TEXT) -> Case:
    """A spoiled copy of the folder, imported as a study's model."""

    def words(folder: Path) -> list[str]:
        shutil.copytree(good(), folder / "model")
        spoil(folder / "model")
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ["--name", "mine", "--settings", json.dumps({"path": str(folder / "model")}), "--out", str(folder)]
        return ["algos.training.models.build", *given, "--texts", str(folder / "texts.jsonl")]

    return Case(f"model: {what}", words, rf"^error: mine: \S+/model: {says}")


def edit(name: str, **values) -> Callable[[Path], object]:
    """Other values in one of the JSON files."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_under_another_name(folder: Path) -> None:
    pickled(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")


def index_that_leads_out(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "x.safetensors")
    names = dict.fromkeys(load_file(folder.parent / "x.safetensors"), "../x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def remote_code(folder: Path) -> None:
    edit("config.json", model_type="mine", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(folder)
    (folder / "evil.py").write_text("raise SystemExit('this ran')\n")


def remote_tokenizer(folder: Path) -> None:
    edit("tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["evil.T", None]})(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "evil.py").write_text("raise SystemExit('this ran')\n")


def template(text: str) -> Callable[[Path], object]:
    return write("chat_template.jinja", text)


HUGE = struct.pack("<Q", 2**62) + b"{}"
LYING = struct.pack("<Q", 66) + b'{"model.norm.weight":{"dtype":"F32","shape":[16],"data_offsets":[0,9]}}'
CASES = [
    model("pickled weights alone", pickled, "model .* cannot be read: .*safetensors"),
    model("pickled weights under another name", pickled_under_another_name, "model .* cannot be read: .*[Hh]eader"),
    model(
        "an index that leads out", index_that_leads_out, ".*index.* names '../x.safetensors', which is not a file of"
    ),
    model("code of its own", remote_code, ".*code of its own .*auto_map.*never run"),
    model("a tokenizer with code of its own", remote_tokenizer, "the tokenizer .*(code of its own|cannot be read)"),
    model("a header of 4 exabytes", write("model.safetensors", HUGE), "model .* cannot be read: .*[Hh]eader"),
    model("a header that lies", write("model.safetensors", LYING), "model .* cannot be read: "),
    model("weights of no bytes", write("model.safetensors", b""), "model .* cannot be read: "),
    model(
        "half of the weights",
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "model .* cannot be read: ",
    ),
    model("weights of NaN", weights(lambda w: w["model.norm.weight"].fill_(float("nan"))), "its weight .* holds NaN"),
    model("a tensor less", weights(lambda w: w.pop("model.norm.weight")), ".*its weights lack model.norm.weight"),
    model(
        "a tensor of another shape",
        weights(lambda w: w.update({"model.norm.weight": torch.ones(3)})),
        ".*(size mismatch|shape|cannot be read)",
    ),
    model("a config of nothing", write("config.json", ""), "model .* cannot be read: "),
    model("a config that is a list", write("config.json", "[]"), "model .* cannot be read: "),
    model("a model of another kind", edit("config.json", model_type="bert"), ".*its weights lack bert"),
    model("an unknown model", edit("config.json", model_type="gpt-9"), ".*cannot be read: .*gpt-9"),
    model("a width of text", edit("config.json", hidden_size="wide"), ".*cannot be read: .*hidden_size"),
    model("no layers' width", edit("config.json", num_attention_heads=0), ".*cannot be read: "),
    model("a vocabulary of another size", edit("config.json", vocab_size=7), ".*(size mismatch|shape|cannot be read)"),
    model("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "the tokenizer of .* cannot be read: "),
    model("a tokenizer of nothing", write("tokenizer.json", ""), "the tokenizer of .* cannot be read: "),
    model("a tokenizer that is a list", write("tokenizer.json", "[]"), "the tokenizer of .* cannot be read: "),
    model("a tokenizer without an end", edit("tokenizer_config.json", eos_token=None), ".*no end-of-sequence token"),
    model("generation settings of nothing", write("generation_config.json", "{"), ".*cannot be read: "),
    model(
        "a template that looks around",
        template("{{ ''.__class__.__mro__ }}"),
        "its chat template fails: .*unsafe",
        CHAT,
    ),
    model(
        "a template without end",
        template("{% for i in range(10**9) %}{% endfor %}"),
        ".*template fails: .*[Rr]ange",
        CHAT,
    ),
    model("a template that is none", template("{% for %}"), "its chat template fails: ", CHAT),
    model("a template that refuses", template("{{ raise_exception('no') }}"), "its chat template fails: no", CHAT),
    model("no template", lambda f: None, "prompt.chat is true, but the model's tokenizer has no chat template", CHAT),
]
