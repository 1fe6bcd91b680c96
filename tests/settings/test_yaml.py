"""YAML as version 1.2 has it, overrides, and the place of every key."""

from pathlib import Path

import pytest

from afa_lora.settings import RecipeError, dump_yaml, parse_yaml, read_settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2E+3", -2000.0),
        ("12", 12),
        ("010", 10),
        ("-07", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_0", "1_0"),
        ("0b11", "0b11"),
        ("1_0.5", "1_0.5"),
        ("2026-01-01", "2026-01-01"),
        ("=", "="),
        ("~", None),
        ("-.inf", float("-inf")),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("null", None),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them_and_written_back(text: str, value: object) -> None:
    read = parse_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)
    again = parse_yaml(dump_yaml({"key": read}), "dump")["key"]
    assert again == value
    assert type(again) is type(value)


def test_overrides_make_the_sections_they_need_and_say_where_keys_stand(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("# a comment\na: 1\nb:\n  c: 2\nempty:\n")
    settings, lines = read_settings(path, ["b.d=[x, y]", "empty.e=1e-4", "new.f.g=", "a=2"])
    assert settings == {"a": 2, "b": {"c": 2, "d": ["x", "y"]}, "empty": {"e": 1e-4}, "new": {"f": {"g": None}}}
    assert lines["b.c"] == "line 4"
    assert lines["a"] == lines["b.d"] == lines["new.f.g"] == "command line"


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("model: größer".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml is no UTF-8 text"):
        read_settings(path)
