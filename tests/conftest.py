"""What every test shares: no network, a fixed seed, and tiny models with random weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import logging
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 96
HIDDEN_SIZE = 32
LAYERS = 2

DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough that outputs differ visibly between adapters
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts what it puts into the background with Ctrl-C ignored, and the tests send themselves that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Each test starts from the same random state, whichever ran before it."""
    random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _audible() -> None:
    """The command line quietens the callback for its whole process, which here goes on with other tests."""
    logging.getLogger("afa_lora.training.callback").setLevel(logging.NOTSET)


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """Llama with grouped-query attention, no biases, an untied head."""
    return LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False)).eval()


@pytest.fixture
def tiny_tied_llama() -> PreTrainedModel:
    """The same with `lm_head` tied to the embedding."""
    return LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)).eval()


@pytest.fixture
def tiny_qwen2() -> PreTrainedModel:
    """Qwen2: biases on the query, key and value projections, here with values other than zero."""
    model = Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=False)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def tiny_gpt2() -> PreTrainedModel:
    """GPT-2: `Conv1D` layers, whose weight is stored (in, out), and biases."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=HIDDEN_SIZE,
        n_layer=LAYERS,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["tiny_llama", "tiny_tied_llama", "tiny_qwen2", "tiny_gpt2"])
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each of the four in turn."""
    model: PreTrainedModel = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def token_ids() -> torch.Tensor:
    """Random tokens for any of the tiny models, (2, 12)."""
    return torch.randint(3, VOCAB_SIZE, (2, 12))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that `AFA_TEST_DATA` names; skips the test where there is none."""
    folder = os.environ.get("AFA_TEST_DATA")
    if not folder:
        pytest.skip("AFA_TEST_DATA is not set: this test reads a real data set")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"AFA_TEST_DATA={folder} is not a folder")
    return path
