"""What is proposed and how the target judges it, each against one path at a time."""

import random

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from afa_lora.eagle.decode import Chain, Drafter, DraftTree, DynamicTree, Shape, StaticTree, accepted_path
from afa_lora.eagle.decode.cache import keep_entries
from afa_lora.eagle.decode.stats import Stopwatch
from afa_lora.eagle.decode.target import Verifier
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds, features_of


def random_tree(nodes: int, vocabulary: int, seed: int) -> DraftTree:
    """A tree of any form, whose siblings have different tokens."""
    chooser = random.Random(seed)
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    while len(tokens) < nodes:
        parent, token = chooser.randrange(-1, len(tokens)), chooser.randrange(vocabulary)
        if (token, parent) not in zip(tokens, parents, strict=True):
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
            tokens.append(token)
            parents.append(parent)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), max(depths))


def paths_of(tree: DraftTree) -> list[list[int]]:
    """The tokens from below the root to each node."""
    paths: list[list[int]] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    return paths


@pytest.mark.parametrize(("attention", "atol"), [("sdpa", 1e-10), ("eager", 1e-4)])  # eager's softmax is in float32
@pytest.mark.parametrize("padding", [0, 2])
def test_every_node_is_judged_as_by_a_forward_of_its_path(
    target: PreTrainedModel, attention: str, atol: float, padding: int
) -> None:
    target = target.double() if attention == "sdpa" else target
    target.set_attn_implementation(attention)
    text = torch.randint(3, 96, (1, 7))
    padded = torch.cat((torch.zeros(1, padding, dtype=torch.long), text[:, :-1]), 1)
    mask = torch.cat((torch.zeros(1, padding), torch.ones(1, 6)), 1).long() if padding else None
    positions = (torch.arange(padded.shape[1]) - padding).clamp(min=0)[None]
    tree = random_tree(17, 96, seed=padding)
    with torch.no_grad():
        verifier = Verifier(target, DynamicCache(), mask, positions, Stopwatch(torch.device("cpu")))
        verifier.prefill(padded, None)
        features, logits = verifier.verify(text[0, -1:], tree)
        for row, path in enumerate([[], *paths_of(tree)]):
            whole = torch.cat((text, torch.tensor([path], dtype=torch.long)), 1)
            assert torch.allclose(logits[row], target(whole).logits[0, -1], atol=atol)
            assert torch.allclose(features[row], features_of(target, whole)[0, -1], atol=atol)


def test_accepted_path_against_all_paths() -> None:
    accepted = set()
    for seed in range(300):
        chooser = random.Random(seed)
        tree = random_tree(chooser.randrange(1, 25), 3, seed)
        tokens = [chooser.randrange(3) for _ in range(chooser.randrange(0, 7))]
        agreeing = [path for path in paths_of(tree) if path == tokens[: len(path)]]
        found = accepted_path(tree, torch.tensor(tokens, dtype=torch.long))
        assert tree.tokens[found].tolist() == max(agreeing, key=len, default=[])
        assert [int(tree.parents[node]) for node in found] == [-1, *found[:-1]][: len(found)]
        accepted.add(len(found))
    assert accepted >= {0, 1, 2, 3}


def test_visible_is_the_path() -> None:
    tree = random_tree(30, 9, seed=5)
    visible = tree.visible()
    for node in range(-1, len(tree)):
        above, expected = node, set()
        while above >= 0:
            expected.add(above + 1)
            above = int(tree.parents[above])
        assert set(visible[node + 1].nonzero()[:, 0].tolist()) == expected | {0}


@pytest.mark.parametrize("rows", [[], [0], [0, 1, 2], [0, 2, 5], [1, 4]])
def test_a_cache_keeps_what_it_is_told(rows: list[int]) -> None:
    cache = DynamicCache()
    keys, values = torch.randn(2, 2, 1, 3, 10, 4)
    for layer in range(2):
        cache.update(keys[layer], values[layer], layer)
    keep_entries(cache, 4, rows)
    kept = [0, 1, 2, 3, *(4 + row for row in rows)]
    for layer in range(2):
        assert torch.equal(cache.layers[layer].keys, keys[layer][:, :, kept])
        assert torch.equal(cache.layers[layer].values, values[layer][:, :, kept])
    assert cache.get_seq_length() == len(kept)


class Reference:
    """Drafting without cache or mask: each path anew."""

    def __init__(self, draft: EagleDraft, ends: TargetEnds, features: Tensor, text: Tensor) -> None:
        self.draft, self.ends, self.features, self.text = draft, ends, features, text

    def log_probabilities(self, path: list[int]) -> Tensor:
        """(vocabulary,) after a path below the root."""
        tokens = torch.cat((self.text[1:], torch.tensor(path, dtype=torch.long)))
        features = self.features
        with torch.no_grad():
            for length in range(len(self.features), len(tokens) + 1):
                predicted = self.draft(self.ends.embed(tokens[None, :length]), features[None])[0]
                features = torch.cat((features, predicted[-1:]))
            return torch.log_softmax(self.ends.logits(predicted[-1]).float(), -1)


@pytest.fixture
def situation(target: PreTrainedModel) -> Reference:
    """A draft in float64 that has read 7 tokens, the last of which is the root."""
    target = target.double()
    ends = TargetEnds.of(target, "tiny")
    torch.manual_seed(1)
    draft = ends.new_draft(torch.float64).eval()
    draft.fc.weight.data *= 5
    text = torch.randint(3, 96, (7,))
    return Reference(draft, ends, features_of(target, text[None, :-1])[0], text)


def read(situation: Reference, shape: Shape, **options: bool) -> Drafter:
    """A drafter that has read the text, in two steps."""
    drafter = Drafter(situation.draft, situation.ends, shape, **options)
    drafter.extend(situation.features[:4], situation.text[1:5])
    drafter.propose()
    drafter.extend(situation.features[4:], situation.text[5:])
    return drafter


@pytest.mark.parametrize(
    "shape", [Chain(5), StaticTree(), StaticTree(((0,), (1,), (1, 0), (1, 1), (1, 1, 0)))], ids=str
)
def test_a_static_tree_holds_the_likeliest_children(situation: Reference, shape: Chain | StaticTree) -> None:
    expected: dict[tuple[int, ...], list[int]] = {(): []}
    for path in sorted(shape.paths, key=len):
        above = expected[path[:-1]]
        order = situation.log_probabilities(above).argsort(descending=True)
        expected[path] = [*above, int(order[path[-1]])]
    tree = read(situation, shape).propose()
    assert len(tree) == len(shape.paths)
    assert sorted(paths_of(tree)) == sorted(expected[path] for path in shape.paths)
    assert tree.depth == max(map(len, shape.paths))


def test_a_sampled_tree_tells_what_its_children_were_drawn_from(situation: Reference) -> None:
    tree = read(situation, StaticTree(), sample=True).propose()
    paths = [[], *paths_of(tree)]
    for node in range(-1, len(tree)):
        found = tree.distribution(node)
        assert (found is not None) == (node in tree.children)
        if found is not None:
            assert torch.allclose(found, situation.log_probabilities(paths[node + 1]).exp(), atol=1e-6)


@pytest.mark.parametrize(
    "shape", [DynamicTree(total=20, depth=4, top_k=4), DynamicTree(9, 3, 2), DynamicTree(60, 2, 10)], ids=str
)
def test_a_dynamic_tree_holds_the_best_of_the_best(situation: Reference, shape: DynamicTree) -> None:
    frontier: list[tuple[float, list[int]]] = [(0.0, [])]
    candidates: list[tuple[float, list[int]]] = []
    for _ in range(shape.depth):
        level = []
        for score, path in frontier:
            values, tokens = situation.log_probabilities(path).topk(shape.top_k)
            level += [(score + float(v), [*path, int(t)]) for v, t in zip(values, tokens, strict=True)]
        frontier = sorted(level, reverse=True)[: shape.top_k]
        candidates += level
    best = sorted(candidates, reverse=True)[: shape.total]
    tree = read(situation, shape).propose()
    assert sorted(paths_of(tree)) == sorted(path for _, path in best)
    assert len(tree) == min(shape.total, len(candidates))


def test_a_dynamic_tree_is_connected_where_scores_are_equal(situation: Reference) -> None:
    certain = torch.full((96,), -60.0)  # in float32 one token has the probability 1 after every path
    certain[5] = 60.0
    drafter = read(situation, DynamicTree(total=3, depth=3, top_k=2))
    drafter.process = lambda paths, logits: certain.expand(len(paths), -1)
    tree = drafter.propose()
    assert paths_of(tree) == [[5], [5, 5], [5, 5, 5]]


@pytest.mark.parametrize("shape", [Chain(4), StaticTree()], ids=str)
def test_where_it_is_known_what_follows_nothing_is_proposed_below_what_it_has_left(
    situation: Reference, shape: Chain | StaticTree
) -> None:
    drafter = read(situation, shape)
    whole = drafter.propose()
    for path in [[], *paths_of(whole)]:
        known = torch.tensor([*path, 95, 94, 93, 92, 91])
        cut = drafter.propose(known=known)
        assert accepted_path(cut, known) == accepted_path(whole, known)
        assert len(accepted_path(cut, known)) >= len(path)
        assert torch.equal(cut.tokens, whole.tokens[: len(cut)])
        assert torch.equal(cut.parents, whole.parents[: len(cut)])
        deepest = max(map(len, paths_of(cut)))
        assert deepest == cut.depth <= len(accepted_path(cut, known)) + 1
        short = drafter.propose(known=known[: len(path)])
        assert accepted_path(short, known[: len(path)]) == accepted_path(whole, known[: len(path)])
        assert short.depth <= len(path) + 1


@pytest.mark.parametrize("shape", [Chain(4), StaticTree(), DynamicTree(20, 4, 4)], ids=str)
def test_proposing_changes_nothing_and_keeps_to_the_room(situation: Reference, shape: Shape) -> None:
    drafter = read(situation, shape)
    before = drafter.cache.layers[0].keys.clone()
    first, second = drafter.propose(), drafter.propose()
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.parents, second.parents)
    assert torch.equal(drafter.cache.layers[0].keys, before)
    for room in range(4):
        assert max(map(len, paths_of(drafter.propose(room))), default=0) == room
    drafter.reset()
    with pytest.raises(RuntimeError, match="before extend"):
        drafter.propose()
