"""Two sides of one model: the adapter on and off, each with its own memory."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from afa_lora import AfaLoraError
from afa_lora.sft import parse_recipe, run_sft
from afa_lora.tuning.chat import Chat, ConversationTooLongError, open_chat


@pytest.fixture
def chat(settings: dict[str, Any]) -> Chat:
    settings["data"]["system"] = "Be brief."
    run_sft(parse_recipe({**settings, "merge": False}))
    return open_chat(Path(settings["output"]), max_new_tokens=4)


def test_the_adapter_answers_what_it_has_learnt_and_the_base_does_not(chat: Chat) -> None:
    pieces: list[str] = []
    base, adapter = chat.sides
    assert chat.answer(adapter, "Say yes to 3.", pieces.append) == "yes"
    assert "".join(pieces).strip() == "yes"
    assert chat.answer(base, "Say yes to 3.") != "yes"
    assert chat.answer(adapter, "Say yes to 4.") == "yes"  # the adapter is on again
    assert chat.beta == 0.0


def test_each_side_remembers_its_own_conversation(chat: Chat) -> None:
    base, adapter = chat.sides
    for side in chat.sides:
        chat.answer(side, "Say yes to 3.")
    assert [message["role"] for message in base.messages] == ["system", "user", "assistant"]
    assert base.messages[-1] != adapter.messages[-1]
    chat.reset()
    assert base.messages == adapter.messages == [{"role": "system", "content": "Be brief."}]


def test_the_adapter_of_a_run_finds_its_system_message_beside_it(chat: Chat, settings: dict[str, Any]) -> None:
    beside = open_chat(Path(settings["output"]) / "adapter")
    assert beside.sides[0].messages == chat.sides[0].messages == [{"role": "system", "content": "Be brief."}]


def test_the_answer_ends_with_the_context_and_a_longer_conversation_is_refused(chat: Chat) -> None:
    base, adapter = chat.sides
    chat.max_new_tokens = 1000
    question = "a" * 460
    text = chat.tokenizer.apply_chat_template(
        [*base.messages, {"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    length = len(chat.tokenizer(text, add_special_tokens=False).input_ids)
    context = chat.model.config.max_position_embeddings
    fitting = "a" * (460 + context - 1 - length)
    chat.answer(base, fitting)
    with pytest.raises(ConversationTooLongError, match=f"holds {context}"):
        chat.answer(adapter, fitting + "a")
    assert len(adapter.messages) == 1
    with pytest.raises(ConversationTooLongError):
        chat.answer(base, "More?")
    chat.reset()
    chat.max_new_tokens = 4
    assert chat.answer(adapter, "Say yes to 3.") == "yes"


def test_a_stopped_answer_is_forgotten(chat: Chat) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    base, adapter = chat.sides
    with pytest.raises(KeyboardInterrupt):
        chat.answer(base, "Say yes to 3.", stop)
    assert len(base.messages) == 1
    assert chat.answer(adapter, "Say yes to 3.") == "yes"  # the adapter is on again


def test_an_adapter_folder_alone_will_do_and_beta_is_known(settings: dict[str, Any], tmp_path: Path) -> None:
    run_sft(parse_recipe({**settings, "anneal": {"anneal_end": 1000}}))
    alone = shutil.copytree(Path(settings["output"]) / "adapter", tmp_path / "alone")
    chat = open_chat(alone, max_new_tokens=2)
    assert chat.beta == pytest.approx(1 - 16 / 1000)
    assert chat.sides[0].messages == []


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(AfaLoraError, match="neither an adapter nor a run"):
        open_chat(tmp_path)
