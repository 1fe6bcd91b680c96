"""Two sides of one model: the adapter on and off, each with its own memory."""

from pathlib import Path
from typing import Any

import pytest

from afa_lora import AfaLoraError
from afa_lora.sft import parse_recipe, run_sft
from afa_lora.sft.chat import Chat, open_chat


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


def test_a_stopped_answer_is_forgotten(chat: Chat) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    base, adapter = chat.sides
    with pytest.raises(KeyboardInterrupt):
        chat.answer(base, "Say yes to 3.", stop)
    assert len(base.messages) == 1
    assert chat.answer(adapter, "Say yes to 3.") == "yes"  # the adapter is on again


def test_an_adapter_folder_alone_will_do_and_beta_is_known(settings: dict[str, Any]) -> None:
    run_sft(parse_recipe({**settings, "anneal": {"anneal_end": 1000}}))
    chat = open_chat(Path(settings["output"]) / "adapter", max_new_tokens=2)
    assert chat.beta == pytest.approx(1 - 16 / 1000)
    assert chat.sides[0].messages == []


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(AfaLoraError, match="holds no adapter"):
        open_chat(tmp_path)
