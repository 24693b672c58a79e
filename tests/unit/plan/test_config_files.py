from pathlib import Path

import pytest

from rpa_ray.config import ConfigError
from rpa_ray.plan import merge
from rpa_ray.plan.files import parse_override, read_with_parts, with_overrides


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_a_later_part_wins_and_the_files_own_keys_win_over_parts(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="data: {rho: 0.1, num_samples: 8}\nseed: 1\n",
        b="data: {rho: 0.2}\nseed: 2\n",
        top="include: [a.yaml, b.yaml]\nseed: 3\n",
    )
    tree = read_with_parts(tmp_path / "top.yaml")
    assert tree == {"data": {"rho": 0.2, "num_samples": 8}, "seed": 3}


def test_a_part_that_two_parts_share_is_no_circle(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="seed: 1\n",
        a="include: [base.yaml]\n",
        b="include: [base.yaml]\n",
        top="include: [a.yaml, b.yaml]\n",
    )
    assert read_with_parts(tmp_path / "top.yaml") == {"seed": 1}


def test_a_circle_is_found_whatever_the_spelling_of_the_path(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(tmp_path, top="include: [inner/a.yaml]\n")
    write(inner, a="include: [../inner/../top.yaml]\n")
    with pytest.raises(ConfigError, match=r"^include must not include itself, got .*top\.yaml"):
        read_with_parts(tmp_path / "top.yaml")


def test_a_plugin_of_the_same_name_keeps_its_settings_and_another_name_drops_them() -> None:
    base = {"attack": {"name": "ppo", "kl_coef": 0.1}}
    same = merge(base, {"attack": {"gamma": 0.9}})
    assert same == {"attack": {"name": "ppo", "kl_coef": 0.1, "gamma": 0.9}}
    assert merge(base, {"attack": "none"}) == {"attack": {"name": "none"}}
    assert merge({"attack": "ppo"}, {"attack": {"gamma": 0.9}}) == {
        "attack": {"name": "ppo", "gamma": 0.9}
    }


def test_merging_leaves_both_trees_as_they_were() -> None:
    base, top = {"data": {"rho": 1.0}}, {"data": {"rho": 0.5}}
    assert merge(base, top) == {"data": {"rho": 0.5}}
    assert (base, top) == ({"data": {"rho": 1.0}}, {"data": {"rho": 0.5}})


@pytest.mark.parametrize("text", ["5e-5", "5E-5", "5.0e-5", "0.00005"])
def test_a_number_in_scientific_notation_is_a_number(text: str) -> None:
    assert parse_override(f"attack.learning_rate={text}") == (["attack", "learning_rate"], 5e-5)


def test_the_last_override_wins() -> None:
    assert with_overrides({"seed": 0}, ["seed=1", "seed=2"]) == {"seed": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "config must hold valid YAML (line 2, column 1: expected ',' or ']'"),
        ("seed: 1\nseed: 2\n", "config must hold valid YAML (line 2, column 1: the key 'seed'"),
        ("1: 2\n", "config must hold valid YAML (line 1, column 1: the key '1' must be a text"),
        ("on: 2\n", "config must hold valid YAML (line 1, column 1: the key 'on' must be a text"),
        ("- 1\n", "config must be a mapping of keys, got"),
        ("include: a.yaml\n", "include must be a list of files, got 'a.yaml'."),
        ("include: [3]\n", "include must be a list of files, got [3]."),
        ("include: [no.yaml]\n", "include must name a YAML file that can be read, got"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, top=text)
    with pytest.raises(ConfigError) as caught:
        read_with_parts(tmp_path / "top.yaml")
    assert str(caught.value).startswith(message)


def test_files_that_cannot_be_read_as_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^config must name a text file in UTF-8"):
        read_with_parts(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match=r"got .* Is a directory: check the path"):
        read_with_parts(tmp_path)
    with pytest.raises(ConfigError, match=r"got .* No such file or directory: check the path"):
        read_with_parts(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("override", ["seed", "=1", "data.=1", "data..rho=1", ""])
def test_an_override_without_a_key_or_a_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set must have the form key=value, got"):
        parse_override(override)


def test_an_override_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--set must hold YAML \(line 1, column 2: "):
        parse_override("seed=[")


def bomb(first: str, level: str) -> str:
    """Return a short text of ten levels that each name the one before ten times."""
    levels = [level.format(i, ", ".join([f"*l{i - 1}"] * 10)) for i in range(1, 10)]
    return "\n".join([first, *levels])


HOSTILE_YAML = {
    "nested": ("attack: " + "[" * 2_000, "config must be nested less deeply"),
    "alias of itself": ("cells: &a [*a]", "config must be nested less deeply"),
    "aliases": (
        bomb("l0: &l0 [x]", "l{0}: &l{0} [{1}]") + "\ncells: [*l9]",
        "more than 1,000,000 values, each alias counted",
    ),
    "merges": (
        bomb("l0: &l0 {x: 1, y: 2}", "l{0}: &l{0} {{<<: [{1}]}}"),
        "more than 1,000,000 keys, each merge counted",
    ),
    "no date": ("seed: 2026-13-01", "hold valid YAML (line 1, column 7: month must be in 1..12)"),
    "no number": (f"seed: {'9' * 5000}", "hold valid YAML (line 1, column 7: Exceeds the limit"),
    "tag": ("seed: !!python/object/apply:os.system [x]", "hold valid YAML"),
    "escape": ("seed: \x1b", "hold valid YAML"),
    "nul in a part": ('include: ["a\\0.yaml"]', "include must be a path that can be"),
    "half a character": ('include: ["\\ud800.yaml"]', "line 1, column 11: half of a character"),
    "long part": (f"include: [{'x' * 300}.yaml]", "include must name a YAML file that can be"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("text", "message"), HOSTILE_YAML.values(), ids=HOSTILE_YAML.keys())
def test_a_file_that_is_made_to_harm_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, top=text)
    with pytest.raises(ConfigError) as refused:
        read_with_parts(tmp_path / "top.yaml")
    assert message in str(refused.value)


@pytest.mark.parametrize("value", ["[" * 2_000, "2026-13-01", "9" * 5000, "&a [*a]", r'"\uD800"'])
def test_a_setting_that_is_made_to_harm_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^--set must (hold YAML|be nested less deeply)"):
        parse_override(f"seed={value}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('include: ["\\0"]\n', "include must be a path that can be"),
        (f'include: ["{"x" * 5000}"]\n', "include must name a YAML file that can be read"),
        ("data: {}\n\nseed: 12:30\n", "(line 3, column 7: 12:30 is read to the base 60 or 8"),
        ("seed: 010\n", "(line 1, column 7: 010 is read to the base 60 or 8"),
        (f"seed: {'9' * 25}\n", "(line 1, column 7: an integer of more than 64 bits)"),
        ("seed: 0\nname: a\x07\n", "hold valid YAML (line 2: the character '\\x07')"),
        ("? [a]\n: 1\n", "(line 1, column 3: the key before the colon must be a text"),
    ],
)
def test_an_error_in_a_file_has_its_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, top=text)
    with pytest.raises(ConfigError) as refused:
        read_with_parts(tmp_path / "top.yaml")
    assert message in str(refused.value)


def test_a_byte_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_bytes(b"seed: 0\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"config must name a text .* \(line 2: byte 0xe9\), got"):
        read_with_parts(tmp_path / "top.yaml")


def test_a_file_that_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="config must name a file of at most 4 MiB"):
        read_with_parts(Path("/dev/zero"))


def test_a_part_that_is_not_there_is_told_with_the_file_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, top="include: [nowhere.yaml]\n")
    with pytest.raises(ConfigError, match=r"check the path, from the folder of .*/top\.yaml"):
        read_with_parts(tmp_path / "top.yaml")


@pytest.mark.timeout(20)
def test_parts_that_include_each_other_over_and_over_are_each_read_once(tmp_path: Path) -> None:
    write(tmp_path, part0="seed: 1\n")
    for i in range(1, 40):
        write(tmp_path, **{f"part{i}": f"include: [part{i - 1}.yaml, part{i - 1}.yaml]\n"})
    assert read_with_parts(tmp_path / "part39.yaml") == {"seed": 1}
