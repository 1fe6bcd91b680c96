"""The forms of records: each becomes the same samples, and what fits none or two is an error with its remedy."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from afa_lora.data import DataError, FileData
from afa_lora.data.forms import FORMS, ROLES
from tests.data.reading import ASK, SAY, SYSTEM, read, write


def piece(*turns: tuple[str, str]) -> dict[str, Any]:
    """A conversation as ShareGPT has it."""
    return {"id": "a_1", "conversations": [{"from": role, "value": text} for role, text in turns]}


HUMAN, GPT = ("human", "2 + 2?"), ("gpt", "4")


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("prompt-completion", {"prompt": "2 + 2?", "completion": "4"}),
        ("prompt-completion", {"prompt": [ASK], "completion": [SAY]}),
        ("prompt-completion", {"prompt": [ASK], "completion": "4", "messages": None}),
        ("messages", {"messages": [ASK, SAY]}),
        ("messages", {"messages": [{**ASK, "id": 1}, SAY], "prompt": "2 + 2?"}),
        ("instruction", {"instruction": "2 + 2?", "input": "", "output": "4", "answer": "unused"}),
        ("instruction", {"instruction": "2 + 2?", "output": "4", "input": None}),
        ("sharegpt", piece(HUMAN, GPT)),
        ("sharegpt", piece(("user", "2 + 2?"), ("assistant", "4"))),
    ],
)
def test_every_form_becomes_the_same_sample(tmp_path: Path, form: str, record: dict[str, Any]) -> None:
    said: list[str] = []
    path = write(tmp_path, [record])
    (sample,) = read(path, said)
    assert (sample.prompt, sample.completion) == ((ASK,), "4")
    assert sample.entry == record
    assert said[0].startswith(f"{path}: 1 record as {form}; 1 sample")
    assert read(path, form=form) == [sample]


def test_the_recipe_names_every_form() -> None:
    choices = get_args(FileData.model_fields["form"].annotation)
    assert set(get_args(choices[0])) == set(FORMS)


def test_input_stands_below_the_instruction(tmp_path: Path) -> None:
    (sample,) = read(write(tmp_path, [{"instruction": "Add.", "input": "2 and 2", "output": "4"}]))
    assert sample.prompt[0]["content"] == "Add.\n\n2 and 2"


def test_every_assistant_turn_is_learnt_with_what_came_before(tmp_path: Path) -> None:
    again, yes = {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}
    records = [{"messages": [ASK, SAY, again, yes]}, piece(HUMAN, GPT, ("human", "Sure?"), ("bing", "Yes."))]
    for first, second in (read(write(tmp_path, [record])) for record in records):
        assert (first.prompt, first.completion) == ((ASK,), "4")
        assert (second.prompt, second.completion) == ((ASK, SAY, again), "Yes.")


def test_system_message_is_put_first_unless_there_is_one(tmp_path: Path) -> None:
    records = [
        {"prompt": "2 + 2?", "completion": "4"},
        {"messages": [SYSTEM, ASK, SAY]},
        piece(("system", "Be brief."), HUMAN, GPT),
    ]
    plain, own, shared = read(write(tmp_path, records), system="")
    assert plain.prompt == ({"role": "system", "content": ""}, ASK)
    assert own.prompt == shared.prompt == (SYSTEM, ASK)


@pytest.mark.parametrize(
    "record", [{"messages": [SYSTEM, SAY, ASK, SAY]}, piece(("system", "Be brief."), GPT, HUMAN, GPT)]
)
def test_an_answer_that_nothing_precedes_is_left_out_and_said(tmp_path: Path, record: dict[str, Any]) -> None:
    said: list[str] = []
    (sample,) = read(write(tmp_path, [record]), said)
    assert (sample.prompt, sample.completion) == ((SYSTEM, ASK), "4")
    assert "; 1 sample; left out: 1 answer that no user turn precedes" in said[0]


def test_pieces_of_a_conversation_without_an_answer_are_counted(tmp_path: Path) -> None:
    records = [
        piece(HUMAN, GPT),
        piece(GPT),
        piece(HUMAN),
        piece(),
        piece(HUMAN, ("gpt", ""), ("human", " "), GPT),
    ]
    said: list[str] = []
    path = write(tmp_path, records)
    assert len(read(path, said)) == 1
    assert said == [
        f"{path}: 5 records as sharegpt; 1 sample; left out: 1 answer that no user turn precedes, "
        "3 conversations without an answer to learn, 2 answers without text, or to a turn without text; not used: id."
    ]


def test_columns_get_new_names(tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path, [{"question": "2 + 2?", "answer": "4", "prompt": "other"}])
    columns = {"prompt": "question", "completion": "answer", "old": "prompt"}
    (sample,) = read(path, said, columns=columns)
    assert (sample.prompt, sample.completion) == ((ASK,), "4")
    assert sample.entry == {"prompt": "2 + 2?", "completion": "4", "old": "other"}
    assert said == [
        f"{path}: 1 record as prompt-completion, question read as prompt, answer read as completion, "
        "prompt read as old; 1 sample; not used: old."
    ]


def test_columns_that_are_not_used_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    record = {"instruction": "a", "input": "b", "output": "c"}
    more: list[dict[str, Any]] = [{"history": []}, {"system": "d", "history": None}, {"note": None}]
    read(write(tmp_path, [record, *({**record, **other} for other in more)]), said)
    assert said[0].endswith(": 4 records as instruction; 4 samples; not used: history, system.")
    assert len(said) == 1


def test_form_chooses_where_two_fit(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "a", "completion": "b", "messages": [ASK, SAY]}])
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}, line 1: the record has the columns of prompt-completion (prompt, completion) and of messages "
        "(messages). Choose one of them, as data.form=prompt-completion."
    )
    assert read(path, form="messages")[0].completion == "4"
    assert read(path, form="prompt-completion")[0].completion == "b"


UNKNOWN = "the record has the columns 'promt', 'completion', but needs those of a form (prompt-completion: prompt/"


@pytest.mark.parametrize(
    ("record", "settings", "faults"),
    [
        (
            {"promt": "a", "completion": "b"},
            {},
            [UNKNOWN, "'promt': Did you mean 'prompt'?", "data.columns.prompt=NAME"],
        ),
        ({"prompt": "a", "completion": "b"}, {"form": "sharegpt"}, ["its form (sharegpt: conversations)"]),
        ({"prompt": "a", "completion": None}, {}, ["'completion' must hold something, not null"]),
        (
            {"prompt": "a", "completion": 7},
            {},
            ["'completion' must be a text or a non-empty list of messages, not int"],
        ),
        ({"prompt": " ", "completion": "b"}, {}, ["'prompt' is empty"]),
        ({"prompt": "a", "completion": ""}, {}, ["'completion' is empty"]),
        (
            {"prompt": [], "completion": "b"},
            {},
            ["'prompt' must be a text or a non-empty list of messages, not an empty"],
        ),
        ({"prompt": "a", "completion": "\ud83d"}, {}, ["'completion' is no Unicode text at character 0"]),
        ({"prompt": "a", "completion": [ASK]}, {}, ["'completion' must be a text or a list of one assistant message"]),
        ({"messages": [ASK]}, {}, ["'messages' has no assistant message that answers a user's. Its roles are 'user'."]),
        (
            {"messages": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]},
            {},
            [
                "'messages[0].role' is 'human', which is 'user' here",
                "of the form sharegpt, whose column 'conversations'",
            ],
        ),
        (
            {"messages": [ASK, {"role": "model", "content": "b"}]},
            {},
            ["no assistant message that answers a user's. Its roles are 'user', 'model'."],
        ),
        ({"messages": [SYSTEM, SAY]}, {}, ["'messages' has no assistant message that answers a user's"]),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, {}, ["'messages[1].content' is empty"]),
        (
            {"messages": [ASK, {"role": "assistant", "content": None}]},
            {},
            ["'messages[1].content' must be a text, not null"],
        ),
        (
            {"messages": [{"from": "human", "value": "a"}]},
            {},
            ["messages with 'role' and 'content', but messages[0] is"],
        ),
        ({"messages": "a"}, {}, ["non-empty list of messages, not str"]),
        ({"instruction": "a", "input": 3, "output": "b"}, {}, ["'input' must be a text, not int"]),
        ({"instruction": "a", "output": ""}, {}, ["'output' is empty"]),
        (piece(("humn", "a"), GPT), {}, ["'conversations[0].from' is 'humn', which is none of 'human', 'user'"]),
        ({"conversations": [ASK, SAY]}, {}, ["messages with 'from' and 'value', but conversations[0] is"]),
        (
            {"question": "a"},
            {"columns": {"prompt": "qestion"}},
            [
                "no column 'qestion', which data.columns.prompt names. Did you mean 'question'?",
                "has the columns 'question'.",
            ],
        ),
        (
            {"question": "a", "prompt": "b"},
            {"columns": {"prompt": "question"}},
            ["has a column 'prompt' already", "data.columns.other_prompt=prompt"],
        ),
    ],
)
def test_what_is_wrong_with_a_record_is_named(
    tmp_path: Path, record: dict[str, Any], settings: dict[str, Any], faults: list[str]
) -> None:
    path = write(tmp_path, "\n" + json.dumps(record))
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    for fault in faults:
        assert fault in str(caught.value)


def test_the_roles_are_those_that_chat_templates_know() -> None:
    assert set(ROLES.values()) == {"system", "user", "assistant"}
