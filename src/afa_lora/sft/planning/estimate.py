"""What one training step takes, from the model's shape alone: operations, bytes, and the seconds they need here.

The step is run as TRL's `SFTTrainer` runs it, on tensors without data (`FakeTensorMode`): every operation, every saved
and every temporary tensor is the real one, and only the numbers in them are missing. Fake tensors of the CPU are used
whatever device trains, because the meta device knows neither autocast nor the attention kernels.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from trl import SFTConfig

from afa_lora.sft.planning.shape import ModelShape, byte_size, optimizer_bytes
from afa_lora.sft.recipe import Recipe
from afa_lora.tuning.loading import training_precision

aten = torch.ops.aten
NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty"}  # they write nothing


def _attention_flops(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> int:
    return 4 * query.numel() * key.shape[-2]  # two products


def _attention_backward_flops(grad: Tensor, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> int:
    return 10 * query.numel() * key.shape[-2]  # five products: one is computed again


# torch's formulas, and those of the CPU's attention, which torch leaves out.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class Product(NamedTuple):
    """A matrix product, ``copies`` times (rows × inner) by (inner × columns)."""

    copies: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return 2 * self.copies * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Work:
    """What one forward and backward do.

    Attributes:
        flops: additions and multiplications in matrix products and attention.
        products: how often each matrix product occurs.
        moved: bytes that all other operations read and write.
        others: how many other operations there are.
        saved: bytes of activations saved for the backward.
        logits: bytes of the largest result of a product; for a language model that is a tile of the logits.
        peak: the most bytes held at a time beyond what was there before, gradients included.
    """

    flops: int
    products: Mapping[Product, int]
    moved: int
    others: int
    saved: int
    logits: int
    peak: int


@dataclass(frozen=True)
class StepEstimate:
    """One batch on one device. All sizes are in bytes.

    Attributes:
        tokens: in the batch, padding included.
        work: what forward and backward do.
        weights: the base model, as it is loaded.
        adapter: the adapter's weights.
        gradients: of all that is trained; ``activations`` contains them.
        optimizer: the optimizer's state.
        optimizer_known: whether ``optimizer`` is this optimizer's size, not AdamW's in its place.
        activations: what forward and backward hold at most beyond weights and optimizer.
    """

    tokens: int
    work: Work
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    optimizer_known: bool
    activations: int

    @property
    def total(self) -> int:
        """The most that is held at a time. CUDA adds its context, and its allocator what it cannot fill."""
        return self.weights + self.adapter + self.optimizer + self.activations


def estimate_step(recipe: Recipe, args: SFTConfig, shape: ModelShape, length: int) -> StepEstimate:
    """Estimate a step of the recipe's training on full batches of sequences with ``length`` tokens.

    Exact for the CPU with the model's own attention. On CUDA TRL computes the loss in a kernel without float32 copies
    of the logits' tile, and only where there are labels, so that the step holds and computes a little less.

    Args:
        recipe: gives the precision.
        args: from `training_arguments`.
        shape: from `shape_model` for the same recipe.
        length: tokens in a sequence.
    """
    model, batch, length_of_row = shape.model, args.per_device_train_batch_size, length
    if args.packing or args.padding_free:
        batch, length_of_row = 1, batch * length  # one row without padding
    optimizer, known = optimizer_bytes(str(getattr(args.optim, "value", args.optim)), shape.trained)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = make_batch(batch, length_of_row, shape.masked)
        resident = [mode.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())]
        compute, accumulates = training_precision(recipe).compute, args.gradient_accumulation_steps > 1
        work = measure_work(model, inputs, compute, resident, accumulates)
    gradients = sum(map(byte_size, shape.trained))
    return StepEstimate(
        tokens=batch * length_of_row,
        work=work,
        weights=shape.weights,
        adapter=0 if recipe.method == "full" else gradients,
        gradients=gradients,
        optimizer=optimizer,
        optimizer_known=known,
        activations=work.peak + shape.unpacked,
    )


def make_batch(batch: int, length: int, masked: bool) -> dict[str, Tensor]:
    """Tokens and labels (batch, length) and, if ``masked``, a mask (batch, 1, length, length), True where visible."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": ids}
    if masked:
        inputs["attention_mask"] = torch.ones(batch, 1, length, length, dtype=torch.bool).tril()
    return inputs


def measure_work(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    compute: torch.dtype,
    resident: Iterable[Tensor] = (),
    keep_gradients: bool = False,
) -> Work:
    """Run one forward and backward with the loss of `SFTTrainer`, on real tensors or on fake ones, and count.

    Args:
        model: with TRL's fused head.
        inputs: from `make_batch`, or a real batch.
        compute: the dtype of autocast; no autocast for float32.
        resident: tensors that are there anyway; parameters, buffers and inputs are among them without saying.
        keep_gradients: whether gradients are there already and are added to, as in gradient accumulation.
    """
    there = [*model.parameters(), *model.buffers(), *inputs.values(), *resident]
    if keep_gradients:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros(parameter.shape, dtype=parameter.dtype)
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        holder = _Saved(tensor)
        saved.add(holder)
        return holder

    ledger = _Ledger(there)
    autocast = nullcontext() if compute == torch.float32 else torch.autocast(inputs["input_ids"].device.type, compute)
    with ledger:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor), autocast:
            output = model(**inputs, fused_lm_head=True)
            loss = -output.log_probs.sum() / output.label_mask.sum()
        del output  # the entropy's part of the graph goes with it
        kept = [holder.tensor.untyped_storage() for holder in saved]
        sizes = {int(storage._cdata): storage.nbytes() for storage in kept}
        del kept  # they must be free to go in the backward
        loss.backward()
    gradients = sum(byte_size(p) for p in model.parameters() if p.requires_grad) if keep_gradients else 0
    return Work(
        flops=ledger.flops,
        products=dict(ledger.products),
        moved=ledger.moved,
        others=ledger.others,
        saved=sum(size for key, size in sizes.items() if key not in ledger.resident),
        logits=ledger.logits,
        peak=ledger.peak + gradients,
    )


class _Ledger(TorchDispatchMode):
    """Counts what operations read and write, which products there are, and how many bytes are alive at most."""

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self.resident = {_storage(tensor) for tensor in resident}
        self.products: Counter[Product] = Counter()
        self.flops = self.moved = self.others = self.logits = self.present = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in results:
            self._register(tensor)
        packet = func._overloadpacket
        if packet in FLOPS:
            self.flops += FLOPS[packet](*args, **(kwargs or {}), out_val=out)
        if packet in PRODUCTS:
            left, right = args[-2:]
            copies = left.shape[0] if left.dim() == 3 else 1
            rows, inner = left.shape[-2:]
            self.products[Product(copies, rows, inner, right.shape[-1], left.dtype)] += 1
            self.logits = max(self.logits, results[0].untyped_storage().nbytes())
        elif packet not in FLOPS and packet.__name__ not in NO_WORK and func.namespace == "aten" and not func.is_view:
            used = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.others += 1
            self.moved += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in used + results)
        return out

    def _register(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self.resident or key in self._alive:
            return
        self._alive.add(key)
        self.present += storage.nbytes()
        self.peak = max(self.peak, self.present)
        weakref.finalize(storage, self._release, key, storage.nbytes()).atexit = False

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.present -= size


class _Saved:
    """What a node of the graph holds in place of a tensor: alive for as long as that node is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output of the node itself would otherwise hold the node


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
