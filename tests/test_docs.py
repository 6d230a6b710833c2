"""What a newcomer reads is true: links, the tree, commands, Python, and every table that the code has too.

Whether it is well said is not known here.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import geode
from geode import errors, families, quant
from geode.cli import app
from geode.generate import Options
from geode.io import catalogue
from geode.io.progress import size

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "geode"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
GENERATED = {"api.md", "cli.md", "parity.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row; a written \\| is a | again."""
    lines = [line.replace(r"\|", "¦") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("¦", "|") for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8")))
    local = [link.split("#")[0] for link in links if not link.startswith(("https://", "http://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_index_names_every_page() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w.-]+)\)", read("docs/index.md")))


def test_the_tree_is_the_tree() -> None:
    (tree,) = [block for block in blocks(read("README.md"), "") if block.startswith("src/geode/\n")]
    lines = re.findall(r"^( *)(\S+)(.*)$", tree, re.MULTILINE)
    inside = {name.rstrip("/") for indent, name, _ in lines if indent}
    beside = {name for indent, name, _ in lines if not indent}
    rooms = {path.name for path in HOUSE.iterdir()} - {"__pycache__", "py.typed"}
    assert inside == rooms
    assert [name for name in beside if not (ROOT / name).is_dir()] == []
    assert [name for _, name, words in lines if not words.strip()] == ["src/geode/"]


# Commands


def commands(page: Path) -> list[str]:
    """Every `geode …` of a page, in shell blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    shell = [line for block in blocks(text, "sh") for line in block.splitlines()]
    shown = [found for line in shell for found in re.findall(r"(?:^|[|;&$]\s*)(geode .*)", line)]
    return shown + re.findall(r"`(geode [^`]+)`", FENCE.sub("", text))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_commands_are_commands(page: Path) -> None:
    assert [command for command in commands(page) if not is_command(command)] == []


def is_command(command: str) -> bool:
    """Whether the parser takes it. A verb alone is the verb's name."""
    words = shlex.split(command, comments=True)[1:]
    if len(words) == 1 and words[0] in app.VERBS:
        return True
    try:
        app._parse(words)
    except SystemExit as done:  # of --help and --version with 0
        return not done.code
    return True


def test_commands_are_found() -> None:
    assert {command.split()[1] for command in commands(ROOT / "README.md")} >= set(app.VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_knows_its_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`make (\w+)`", text) + re.findall(r"^make (\w+)", "".join(blocks(text, "sh")), re.MULTILINE)
    assert set(named) <= targets


def test_the_command_line_page_is_the_programs_own() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "docs"))["page"]()
    assert read("docs/cli.md") == made, "run `make docs`"


def test_the_page_of_apis_is_the_schemas_own() -> None:
    pytest.importorskip("fastapi")
    made = runpy.run_path(str(ROOT / "scripts" / "docs_api"))["page"]()
    assert read("docs/api.md") == made, "run `make docs`"


# Python

RUNNER = """
import sys
for page, code in eval(sys.stdin.read()):
    print(f"\\n== {page}")
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that transformers wrote: a Llama of random weights, and bytes with ChatML's control tokens."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    file = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    file.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    config = transformers.LlamaConfig(
        vocab_size=file.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    file.save(str(folder / "tokenizer.json"))
    return folder


def test_python_runs(tiny: Path) -> None:
    names = ["README.md", *(f"docs/{page.name}" for page in PAGES if page.parent.name == "docs")]
    programs = [(name, block) for name in names for block in blocks(read(name), "python")]
    assert {name for name, _ in programs} >= {"README.md", "docs/python.md", "docs/chat.md"}
    real = re.compile(r'(?<=geode\.load\()"smollm2"')
    ready = [(name, real.sub(repr(str(tiny)), code)) for name, code in programs]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=repr(ready), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = done.stdout.split("\n== ")[1]
    assert f"({len('The capital of France is')}, 259)" in shown


def test_the_readmes_python_is_ten_lines() -> None:
    (block,) = blocks(read("README.md"), "python")
    assert len([line for line in block.splitlines() if line]) <= 12
    ast.parse(block)


# Tables


def test_the_readme_has_every_family_and_type() -> None:
    table = {cells[-1] for cells in rows(read("README.md"))}
    assert {f"`{family.name}`" for family in families.FAMILIES} <= table
    assert set(quant.BLOCKS) <= set(re.findall(r"Q\d_[\dK]", read("README.md")))


def test_the_chat_page_has_every_familys_format() -> None:
    table = rows(read("docs/chat.md"))
    for family in families.FAMILIES:
        found = [cells for cells in table if f"`{family.name}`" in cells[0]]
        assert [cells[2].strip("`") for cells in found] == [name for _, name in family.chat], family.name
        tokens = [cells[1].strip("`") for cells in found]
        assert [token if token.startswith("<") else "" for token in tokens] == [token for token, _ in family.chat]


@pytest.mark.parametrize("item", catalogue.CATALOGUE, ids=lambda item: item.name)
def test_the_catalogue_is_told(item: catalogue.Item) -> None:
    names = ", ".join(f"`{alias}`" for alias in item.aliases)
    told = [f"`{item.name}`", names, item.about, size(item.download), size(item.size), item.licence.name]
    assert told in rows(read("docs/models.md"))
    (row,) = [cells for cells in rows(read("README.md")) if cells[0].startswith(f"`{item.name}`")]
    assert row[:2] == [f"`{item.name}`, {names}", item.about]
    assert item.licence.name in row[2]


def test_the_tree_of_errors_is_the_codes() -> None:
    drawn = [line[4:] for line in str(errors.__doc__).splitlines() if re.match(r"    (├|│|└|GeodeError)", line)]
    assert len(drawn) > 10
    assert blocks(read("docs/errors.md"), "")[0].splitlines() == drawn


def test_every_option_and_name_is_told() -> None:
    text = read("docs/python.md")
    told = {cells[0].strip("`"): cells[1] for cells in rows(text.split("## Options")[1])}
    defaults = {field.name: str(getattr(Options(), field.name)) for field in fields(Options)}
    assert defaults == {name: told.get(name) for name in defaults}
    assert [name for name in geode.__all__ if name not in text] == []
