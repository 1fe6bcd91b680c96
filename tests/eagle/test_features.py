"""Features on disk: what is written is what the target computes, interrupted or not, and nothing else is accepted."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from afa_lora.data import DataError
from afa_lora.eagle.conversations import ConversationDataset, load_conversations
from afa_lora.eagle.features import FeatureError, FeatureStore, FeatureSummary, write, write_features
from afa_lora.eagle.features.index import INDEX, make_plan
from afa_lora.eagle.target import TargetEnds, features_of
from afa_lora.models import load_model, read_parts
from afa_lora.settings import RecipeError
from afa_lora.tuning.failures import RunInterrupted, RunStopped
from tests.eagle.feature_folders import content, recipe, stopping
from tests.tiny_chat import save_tiny_chat_model

HIDDEN = 512  # so large that a file of one MiB holds some conversations and not all
WORDS = ["the", "draft", "reads", "what", "its", "target", "has", "made", "of", "every", "token"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target of wide features."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"), hidden=HIDDEN)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four conversations of different lengths."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    generator = torch.Generator().manual_seed(0)

    def text() -> str:
        length = int(torch.randint(1, 25, (), generator=generator))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator))

    turns = [[("human", text()), ("gpt", text())] * (1 + i % 2) for i in range(24)]
    records = [{"id": f"c{i}", "conversations": [{"from": r, "value": v} for r, v in t]} for i, t in enumerate(turns)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


Write = Callable[..., FeatureSummary]


@pytest.fixture
def features(model: Path, data: Path, tmp_path: Path) -> Write:
    """Write features to ``tmp_path / folder``, with settings as in a recipe."""

    def run(folder: str = "features", say: Console | None = None, **settings: Any) -> FeatureSummary:
        return write_features(recipe(model, data, tmp_path / folder, **settings), say or Console(quiet=True))

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_store_holds_what_the_target_computes(
    features: Write, model: Path, data: Path, tmp_path: Path, dtype: str
) -> None:
    summary = features(features={"dtype": dtype})
    target, tokenizer = load_model(str(model))
    splits = load_conversations(recipe(model, data, None).data, tokenizer, lambda line: None)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 1e-4, "rtol": 2**-8}
    for name, conversations in zip(("train", "test"), splits, strict=True):
        store = FeatureStore.open(tmp_path / "features", name, TargetEnds.of(target, "tiny"))  # type: ignore[arg-type]
        assert len(store) == len(conversations) == len(ConversationDataset(conversations)) == summary.items[name]
        for i, one in enumerate(conversations):
            item, online = store[i], ConversationDataset(conversations)[i]
            assert all(torch.equal(item[key], online[key]) for key in ("tokens", "assistant"))
            assert item["features"].dtype == getattr(torch, dtype)
            alone = features_of(target, one.tokens[None])[0]  # nothing is padded here
            torch.testing.assert_close(item["features"].float(), alone, **tolerance)
    assert summary.files > 2
    assert summary.size == sum(path.stat().st_size for path in (tmp_path / "features").glob("*.safetensors"))


def test_batches_and_files_keep_their_limits() -> None:
    lengths = [5, 50, 7, 7, 30, 31, 6, 90]
    plan = make_plan("train", lengths, batch_tokens=64, shard_tokens=100)
    batches = [batch for shard in plan.shards for batch in shard.batches]
    assert sorted(item for batch in batches for item in batch) == list(range(8))
    assert batches == [[7], [1], [5, 4], [2, 3, 6, 0]]
    assert [plan.tokens_in(shard) for shard in plan.shards] == [90, 50, 86]
    assert next(shard.file for shard in plan.shards) == "train-00001-of-00003.safetensors"


def test_items_can_be_changed_pickled_and_read_by_workers(features: Write, tmp_path: Path) -> None:
    features()
    store = FeatureStore.open(tmp_path / "features", "train")
    before = store[0]["features"].clone()
    store[0]["features"].zero_()
    assert torch.equal(store[0]["features"], before)
    copied = pickle.loads(pickle.dumps(store))
    assert torch.equal(copied[-1]["features"], store[len(store) - 1]["features"])
    loaded = list(DataLoader(store, batch_size=None, num_workers=2))
    assert all(torch.equal(item["features"], store[i]["features"]) for i, item in enumerate(loaded))
    with pytest.raises(IndexError):
        store[len(store)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_write_goes_on(
    features: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = features("whole")
    with stopping(5, monkeypatch, number), pytest.raises(RunInterrupted, match="the same command again goes on"):
        features()
    first = content(tmp_path / "features")
    assert INDEX in first
    assert 1 < len(first) <= whole.files
    begun = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").glob("*.safetensors")}
    summary = features(features={"batch_tokens": 200, "shard_megabytes": 2})  # the plan stays
    assert summary.written == whole.files - len(begun)
    assert content(tmp_path / "features") == content(tmp_path / "whole")
    assert begun.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "features").glob("*")}.items()
    assert features().written == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from afa_lora.eagle.features import write
from tests.eagle.test_features import recipe
real, read = write.features_of, []
def reading(*arguments):
    read.append(1)
    if len(read) > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
write.features_of = reading
write.write_features(recipe(*map(Path, sys.argv[1:])), Console(quiet=True))
"""


def test_a_killed_write_goes_on(features: Write, model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    killed = subprocess.run([sys.executable, "-c", KILLED, model, data, folder], env={**os.environ}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (folder / ".train-00009-of-00009.safetensors.0123abcd").write_bytes(b"half a file")
    features("whole")
    assert 0 < features().written < len(content(folder)) - 1
    assert content(folder) == content(tmp_path / "whole")
    assert not list(folder.glob(".train*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "foreign"])
def test_a_damaged_file_is_found_and_written_again(features: Write, tmp_path: Path, damage: str) -> None:
    features()
    folder = tmp_path / "features"
    whole = content(folder)
    victim, other = sorted(folder.glob("train*"))[:2]
    if damage == "truncated":
        os.truncate(victim, victim.stat().st_size - 1)
    elif damage == "missing":
        victim.unlink()
    elif damage == "empty":
        victim.write_bytes(b"")
    else:
        shutil.copy(other, victim)
    with pytest.raises(FeatureError, match=rf"{victim.name} is (trunc|miss|not the one).*afa eagle features") as error:
        FeatureStore.open(folder, "train")
    assert "\n" not in str(error.value)
    FeatureStore.open(folder, "test")  # has lost nothing
    assert features().written == 1
    assert content(folder) == whole


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"data": {"max_length": 60}}, "max_length: 300 there, 60 here"),
        ({"data": {"test_items": 2}}, "data: "),
        ({"features": {"dtype": "bfloat16"}}, "dtype: float32 there, bfloat16 here"),
    ],
)
def test_other_settings_are_refused(features: Write, tmp_path: Path, settings: dict[str, Any], difference: str) -> None:
    features()
    before = content(tmp_path / "features")
    with pytest.raises(FeatureError, match=difference) as error:
        features(**settings)
    assert "Choose another folder" in str(error.value)
    assert content(tmp_path / "features") == before


def test_other_conversations_templates_and_targets_are_refused(
    features: Write, model: Path, data: Path, tmp_path: Path
) -> None:
    features()
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("draft", "daft"))
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    weights = Path(shutil.copytree(model, tmp_path / "weights"))
    changed, _ = load_model(str(weights))
    changed.base_model.norm.weight.data += 0.5
    changed.save_pretrained(weights)
    narrow = save_tiny_chat_model(tmp_path / "narrow", hidden=64)
    for settings, words in (
        ({"data": {"conversations": [str(other)]}}, ["  data: "]),
        ({"data": {"chat_template": str(own)}}, ["chat_template: "]),
    ):
        with pytest.raises(FeatureError) as error:
            features(**settings)
        assert all(word in str(error.value) for word in words)
    for target, word in ((weights, "target_digest"), (narrow, f"hidden_size: {HIDDEN} there, 64 here")):
        with pytest.raises(FeatureError, match=word):
            write_features(recipe(target, data, tmp_path / "features"), Console(quiet=True))
    for target, fault in ((weights, "has other weights"), (narrow, f"with {HIDDEN} numbers each, and .* has 64")):
        with pytest.raises(FeatureError, match=fault):
            FeatureStore.open(tmp_path / "features", "train", TargetEnds.load(str(target)))


def test_a_training_with_other_settings_is_told(features: Write, model: Path, data: Path, tmp_path: Path) -> None:
    features()
    said: list[str] = []
    store = FeatureStore.open(tmp_path / "features", "train")
    store.check(recipe(model, data, None), said.append)
    for settings, message in (
        ({"data": {"max_length": 200, "test_items": 1}}, r"data\.test_items=3, data\.max_length=300"),
        ({"features": {"dtype": "bfloat16"}}, r"features\.dtype=float32"),
        ({"load": {"dtype": "bfloat16"}}, r"load\.dtype=float32"),
    ):
        with pytest.raises(FeatureError, match=f"was written with {message}"):
            store.check(recipe(model, data, None, **settings), said.append)
    assert not said


def test_a_training_with_other_conversations_is_told(features: Write, model: Path, data: Path, tmp_path: Path) -> None:
    features()
    said: list[str] = []

    def check(source: Path) -> None:
        FeatureStore.open(tmp_path / "features", "train").check(recipe(model, source, None), said.append)

    (tmp_path / "moved").mkdir()
    check(Path(shutil.copy(data, tmp_path / "moved")))
    assert not said
    check(tmp_path / "gone.jsonl")
    assert len(said) == 1
    assert "Not compared with the conversations" in said[0]
    assert "gone.jsonl" in said[0]
    longer = tmp_path / data.name
    longer.write_text(data.read_text() + data.read_text())
    with pytest.raises(FeatureError, match=r"other conversations:\n  there: conversations\.jsonl \([\d,]+ bytes\)"):
        check(longer)
    renamed = Path(shutil.copy(data, tmp_path / "renamed.jsonl"))
    with pytest.raises(FeatureError, match="run afa eagle features again"):
        check(renamed)
    write_features(recipe(model, renamed, tmp_path / "features"), Console(quiet=True))
    check(renamed)


def test_an_index_that_names_other_files_or_items_is_damaged(features: Write, tmp_path: Path) -> None:
    features()
    index = tmp_path / "features" / INDEX
    text = index.read_text()
    first = json.loads(text)["splits"]["train"]["shards"][0]
    for a, b in ((first["file"], "../escaped.safetensors"), (f"[{first['batches'][0][0]},", "[0,")):
        assert a in text
        index.write_text(text.replace(a, b, 1))
        with pytest.raises(FeatureError, match="is damaged"):
            FeatureStore.open(index.parent, "test")
        with pytest.raises(FeatureError, match="is damaged"):
            features()
    assert not (tmp_path / "escaped.safetensors").exists()


def test_a_disk_without_room_is_told_before(features: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(write, "disk_usage", lambda path: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(FeatureError, match=r"tokens need \d+ MiB, and 1 MiB are free.*features\.dtype=bfloat16"):
        features()
    assert content(tmp_path / "features") == {}
    monkeypatch.undo()
    assert features().written > 0


def test_a_disk_that_runs_full(features: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features("whole")
    with stopping(5, monkeypatch, signal.SIGINT), pytest.raises(RunInterrupted):
        features()
    finished = content(tmp_path / "features")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(RunStopped, match=r"The disk is full: .* finished are kept"):
            features()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert content(tmp_path / "features") == finished
    features()
    assert content(tmp_path / "features") == content(tmp_path / "whole")


def test_what_is_said(features: Write) -> None:
    console = Console(record=True, width=300, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    summary = features(say=console)
    said = console.export_text()
    assert f"{summary.tokens:,} tokens, {summary.size / 2**20:,.0f} MiB to write to " in said
    assert "tokens/s" in said
    console.file.close()


def test_folders_that_cannot_be_used(features: Write, model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"features\.folder is not set"):
        write_features(recipe(model, data, None), Console(quiet=True))
    with pytest.raises(FeatureError, match="holds no features: there is no index"):
        FeatureStore.open(tmp_path, "train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FeatureError, match=r"holds files that are not features \(thesis\.txt\)"):
        features("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecipeError, match=r"features\.folder=.* cannot be made: .*file is a file\. Choose another"):
        features("file")
    with pytest.raises(FeatureError, match=r"features\.folder=.* is a file\. Name a folder"):
        FeatureStore.open(tmp_path / "file", "train")
    features()
    index = tmp_path / "features" / INDEX
    text = index.read_text()
    index.write_text(text[:40])
    with pytest.raises(FeatureError, match="is damaged"):
        FeatureStore.open(index.parent, "train")
    index.write_text(text.replace('"format": 2', '"format": 9'))
    with pytest.raises(FeatureError, match="features of form 9"):
        FeatureStore.open(index.parent, "train")


def test_a_conversation_longer_than_the_target_reads(model: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * 600}]}
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(long) + "\n")
    settings = {"data": {"max_length": 600, "test_items": 0}}
    with pytest.raises(DataError, match=r"has 600 tokens, and .* at most 512\. Set data\.max_length=512"):
        write_features(recipe(model, path, tmp_path / "features", **settings), Console(quiet=True))


def test_real_conversations(real_data: Path, tmp_path: Path) -> None:
    settings = {"data": {"limit": 6, "test_items": 2, "max_length": 128}, "features": {"batch_tokens": 256}}
    folder = real_data / "conversations" / "sharegpt_v3_part"
    real = recipe(Path("smollm2-135m"), folder, tmp_path / "features", **settings)
    assert write_features(real, Console(quiet=True)).items == {"train": 6, "test": 2}
    tokenizer = read_parts("smollm2-135m").tokenizer
    store = FeatureStore.open(tmp_path / "features", "train", TargetEnds.load("smollm2-135m"))
    target, _ = load_model("smollm2-135m")
    assert tokenizer is not None
    item = store[3]
    assert tokenizer.decode(item["tokens"]).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    torch.testing.assert_close(item["features"], features_of(target, item["tokens"][None])[0], atol=1e-3, rtol=1e-3)
