"""The shapes of what is proposed."""

import itertools

import pytest

from afa_lora.core.errors import InvalidSettingError
from afa_lora.eagle.decode import Chain, Drafter, DynamicTree, Shape, StaticTree, parse_shape, room_left
from afa_lora.eagle.decode.shapes import RANK_RATES, likely_paths, longest_path
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("chain", Chain(5)),
        ("chain:3", Chain(3)),
        ("tree", StaticTree()),
        ("dynamic", DynamicTree(60, 5, 10)),
        ("dynamic:depth=7", DynamicTree(60, 7, 10)),
        ("dynamic:total=30, depth=4, top_k=8", DynamicTree(30, 4, 8)),
    ],
)
def test_shapes_are_read_and_written(text: str, shape: Shape) -> None:
    assert parse_shape(text) == shape
    assert parse_shape(str(shape)) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chian:5", "'chian:5' is not known.*Did you mean 'chain'"),
        ("tree:5", "not known"),
        ("chain:x", "'x' is no whole number"),
        ("chain:0", r"Chain\(length=0\) proposes nothing"),
        ("dynamic:totl=5", "'totl' is none of total, depth, top_k.*Did you mean 'total'"),
        ("dynamic:total", "'' is no whole number"),
        ("dynamic:top_k=0", "top_k=0"),
    ],
)
def test_what_is_no_shape(text: str, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        parse_shape(text)


@pytest.mark.parametrize("paths", [(), ((0, 0),), ((1,),), ((0,), (0, 1)), ((),), ((0,), (-1,))])
def test_paths_that_are_no_tree(paths: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InvalidSettingError, match="StaticTree"):
        StaticTree(paths)


def test_the_default_tree_is_the_likeliest_of_its_size() -> None:
    def rate(path: tuple[int, ...]) -> float:
        product = 1.0
        for rank in path:
            product *= RANK_RATES[rank]
        return product

    ranks = range(len(RANK_RATES))
    every = [path for depth in range(1, 6) for path in itertools.product(ranks, repeat=depth)]
    best = sorted(map(rate, every), reverse=True)[:26]
    assert sorted(map(rate, StaticTree().paths), reverse=True) == pytest.approx(best)
    assert len(set(StaticTree().paths)) == 26
    assert longest_path(StaticTree()) == 5
    assert likely_paths(3, 1) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("given", "room"),
    [((10, 20, 9, 100), 9), ((19, 20, 18, 100), 0), ((10, 200, 9, 12), 2), ((300, 400, 299, 256), 0)],
)
def test_room(given: tuple[int, int, int, int], room: int) -> None:
    assert room_left(*given) == room


def test_more_children_than_tokens(draft: EagleDraft, ends: TargetEnds) -> None:
    with pytest.raises(InvalidSettingError, match="97 children of a node, of a vocabulary of 96"):
        Drafter(draft, ends, StaticTree(tuple((rank,) for rank in range(97))))
