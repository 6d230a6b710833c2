"""Files, directories and data sets of the hub to rows: what is read, and what is said of what cannot be."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_hub

from geode.errors import BackendError, FormatError, MissingExtra, ModelNotFound, OptionError
from geode.tune import hub, hub_names, sources, splits

ROWS = [{"prompt": "Größe?", "completion": "7 m"}, {"prompt": "a\u2028b", "completion": 'so "far", x'}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def values(*places: str, **options) -> list[dict]:
    return [row.values for row in sources.rows(*places, **options)]


def where(*places: str, **options) -> list[str]:
    return [row.source for row in sources.rows(*places, **options)]


# --- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", "\ufeff" + LINES),
        ("a.JSONL", LINES.replace("\n", "\r\n") + "\r\n\r\n"),
        ("a.jsonl", LINES.rstrip("\n")),
        ("lines.json", "\n" + LINES),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("list.jsonl", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 2, "about": "x", "data": ROWS})),
        ("pretty.json", "\ufeff" + json.dumps({"rows": ROWS}, indent=2)),
    ],
)
def test_json_in_all_its_forms(tmp_path, name, text):
    assert values(write(tmp_path, name, text)) == ROWS


def test_a_single_object_is_a_row(tmp_path):
    talk = {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "f"}]}
    assert values(write(tmp_path, "a.json", json.dumps(talk))) == [talk]
    assert values(write(tmp_path, "a.jsonl", json.dumps(talk))) == [talk]
    assert values(write(tmp_path, "b.jsonl", json.dumps({"data": ROWS}))) == [{"data": ROWS}]


def test_rows_know_their_lines(tmp_path):
    assert where(write(tmp_path, "a.jsonl", "\n\n" + LINES)) == ["a.jsonl:3", "a.jsonl:4"]
    assert where(write(tmp_path, "a.json", json.dumps(ROWS, indent=2))) == ["a.json:1", "a.json:2"]
    assert where(write(tmp_path, "a.csv", 'a,b\n"x\ny",z\n\n1,2\n')) == ["a.csv:2", "a.csv:5"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", LINES + '{"prompt":\n', r"a\.jsonl:3 is not JSON, column 11: Expecting value\. Each line"),
        ("a.jsonl", '{\n "prompt": "x"\n}\n', r"a\.jsonl:1 is not JSON.*should be called \.json"),
        ("a.jsonl", LINES + "[1]\n", r"a\.jsonl:3 is a list; expected an object"),
        ("a.jsonl", LINES + '"x"\n', r"a\.jsonl:3 is a text; expected an object"),
        ("a.jsonl", LINES + "null\n", r"a\.jsonl:3 is null"),
        ("a.jsonl", '{"a":' * 100_000, r"a\.jsonl:1 is not JSON: maximum recursion"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", r"a\.jsonl:1 is not JSON: .*digits"),
        ("a.json", json.dumps([*ROWS, 7]), r"a\.json:3 is a number"),
        ("a.json", '[{"a": 1},\n{"a": 2}\n{"a": 3}]', r"a\.json:3 is not JSON, column 1.*list of objects"),
        ("a.json", "true", r"a\.json holds true or false; expected a list of objects"),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}), r"several lists: train, test"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "caf\xe9"}\n', r"a\.jsonl:2 is not UTF-8: byte 11 of the line is 0xe9.*iconv"),
        ("a.jsonl", LINES.encode("utf-16"), r"a\.jsonl:1 is UTF-16"),
        ("a.jsonl", "\n \n", r"a\.jsonl has no rows"),
        ("a.json", "", r"a\.json has no rows"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.json", '{"data": []}', r"a\.json has no rows"),
    ],
)
def test_json_that_is_none(tmp_path, name, text, said):
    with pytest.raises(FormatError, match=said):
        values(write(tmp_path, name, text))


def test_rows_before_a_bad_line_are_read_as_they_come(tmp_path):
    rows = sources.rows(write(tmp_path, "a.jsonl", LINES + "nonsense\n"))
    assert [next(rows).values, next(rows).values] == ROWS
    with pytest.raises(FormatError, match=r"a\.jsonl:3"):
        next(rows)


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,completion\nGröße?,7 m\na\u2028b,"so ""far"", x"\n'),
        ("a.csv", '\ufeffprompt;completion\r\nGröße?;7 m\r\na\u2028b;"so ""far"", x"\r\n'),
        ("a.csv", 'prompt\tcompletion\nGröße?\t7 m\n"a\u2028b"\t"so ""far"", x"'),
        ("a.tsv", 'prompt\tcompletion\nGröße?\t7 m\na\u2028b\t"so ""far"", x"\n'),
        ("a.tsv", 'prompt\tcompletion\nGröße?\t7 m\na\u2028b\tso "far", x\n'),
    ],
)
def test_tables_with_a_header(tmp_path, name, text):
    assert values(write(tmp_path, name, text)) == ROWS


def test_quotation_marks_of_a_tsv_are_text_where_they_do_not_enclose_cells(tmp_path):
    text = 'claim\tis\n"Pink" is pink\tyes\n"a\tno\n'
    found = values(write(tmp_path, "a.tsv", text))
    assert found == [{"claim": '"Pink" is pink', "is": "yes"}, {"claim": '"a', "is": "no"}]


def test_tables_without_a_header_have_numbered_columns(tmp_path):
    text = "What is it that one sees when one looks at the sky on a clear day in the middle of summer?\tblue\n"
    place = write(tmp_path, "a.tsv", text + "And at night?\tblack\n")
    with pytest.raises(
        FormatError, match=r'a\.tsv:1 should be the header.*columns = \{"prompt": "0", "completion": "1"\}'
    ):
        values(place)
    assert values(place, numbered=True) == [
        {"0": text.split("\t", 1)[0], "1": "blue"},
        {"0": "And at night?", "1": "black"},
    ]
    assert where(place, numbered=True) == ["a.tsv:1", "a.tsv:2"]
    assert values(write(tmp_path, "b.csv", "0,1\nx,y\n"), numbered=True) == [{"0": "x", "1": "y"}]


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    book = "x" * 300_000
    assert values(write(tmp_path, "a.csv", f"text,n\n{book},1\n")) == [{"text": book, "n": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv:3 has 3 cells where the first line has 2"),
        ("a.tsv", "a\tb\n1\t2\n1\n", r"a\.tsv:3 has 1 cells"),
        ("a.csv", 'a,b\n1,2\n"x,2\n3,4\n', r"a\.csv:3 is no row of a table: unexpected end"),
        ("a.csv", 'a,b\n"x"y,2\n', r"a\.csv:2 is no row of a table.*twice"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv:1 .*two columns of one name: a, a"),
        ("a.csv", b"a,b\nx,\xff\n", r"a\.csv:2 is not UTF-8: byte 3 "),
        ("a.csv", "a,b\n", r"a\.csv has no rows"),
        ("a.csv", "", r"a\.csv has no rows"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, said):
    with pytest.raises(FormatError, match=said):
        values(write(tmp_path, name, text))


# --- Parquet, Arrow, text, packed files --------------------------------------------------------------------------


def test_parquet_and_arrow(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet, feather = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.feather")
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "n": i} for i in range(2500)]
    table = arrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=900)
    feather.write_feather(table, tmp_path / "a.feather")
    with arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.feather", "a.arrow"):
        place = str(tmp_path / name)
        assert values(place) == rows
        assert where(place)[-1] == f"{name}:2500"


def test_parquet_and_arrow_that_are_none(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(FormatError, match=f"{name} is truncated, or not what its name says"):
            values(write(tmp_path, name, LINES))
    parquet.write_table(arrow.table({"a": [1, 2]}), tmp_path / "whole.parquet")
    with pytest.raises(FormatError, match=r"cut\.parquet is truncated"):
        values(write(tmp_path, "cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-9]))
    parquet.write_table(arrow.table({"a": arrow.array([], arrow.int64())}), tmp_path / "none.parquet")
    with pytest.raises(FormatError, match=r"none\.parquet has no rows"):
        values(str(tmp_path / "none.parquet"))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"Reading a\.parquet needs the package 'pyarrow'.*geode\[tune\]"):
        values(write(tmp_path, "a.parquet", b"PAR1"))


def test_a_text_file_is_one_document(tmp_path):
    text = "First.\r\n\r\nSecond: 1,2\n"
    for name in ("a.txt", "b.md"):
        assert values(write(tmp_path, name, "\ufeff" + text)) == [{"text": text}]
    assert where(str(tmp_path / "a.txt")) == ["a.txt:1"]
    with pytest.raises(FormatError, match=r"c\.txt has no rows"):
        values(write(tmp_path, "c.txt", " \n"))
    with pytest.raises(FormatError, match=r"d\.txt:2 is not UTF-8"):
        values(write(tmp_path, "d.txt", b"a\n\xc3"))


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)])
def test_packed_files(tmp_path, ending, pack):
    assert values(write(tmp_path, f"a.jsonl.{ending}", pack(LINES.encode()))) == ROWS
    assert where(str(tmp_path / f"a.jsonl.{ending}"))[0] == f"a.jsonl.{ending}:1"
    packed = pack(os.urandom(4000).hex().join(['{"a": "', '"}\n']).encode())
    for broken in (packed[: len(packed) // 2], b"not packed at all"):
        with pytest.raises(FormatError, match=rf"b\.jsonl\.{ending} is truncated or not packed as \.{ending}"):
            values(write(tmp_path, f"b.jsonl.{ending}", broken))
    with pytest.raises(OptionError, match="is packed twice: parquet files compress themselves"):
        values(write(tmp_path, f"a.parquet.{ending}", b""))


def test_zstandard(tmp_path):
    zstd = pytest.importorskip("compression.zstd") if sys.version_info >= (3, 14) else None
    place = write(tmp_path, "a.jsonl.zst", zstd.compress(LINES.encode()) if zstd else b"x")
    if zstd:
        assert values(place) == ROWS
    else:
        with pytest.raises(BackendError, match="zstd -d"):
            values(place)


# --- places ------------------------------------------------------------------------------------------------------


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(ModelNotFound, match=r"There is no data at '.*nothing\.jsonl'"):
        sources.files(tmp_path / "nothing.jsonl")
    with pytest.raises(OptionError, match=r"'a\.pdf' is not a kind of data that Geode reads.*\.jsonl"):
        sources.files(write(tmp_path, "a.pdf", "x"))
    with pytest.raises(OptionError, match="No data was named"):
        sources.files()
    with pytest.raises(ModelNotFound, match=r"has no file of data.*it has: a\.pdf"):
        sources.files(tmp_path)
    if os.name == "posix" and os.geteuid():
        os.chmod(write(tmp_path, "shut.jsonl", LINES), 0)
        with pytest.raises(ModelNotFound, match=r"shut\.jsonl cannot be read: Permission denied"):
            values(str(tmp_path / "shut.jsonl"))


def test_several_places_in_order_and_apart_by_name(tmp_path):
    one, two = write(tmp_path, "one/a.jsonl", LINES), write(tmp_path, "two/a.jsonl", LINES)
    other = write(tmp_path, "b.csv", "x\n1\n")
    assert where(other, one) == ["b.csv:2", "a.jsonl:1", "a.jsonl:2"]
    assert where(one, two) == [f"{one}:1", f"{one}:2", f"{two}:1", f"{two}:2"]


def test_a_directory_is_its_data_files(tmp_path):
    for name in ("b.jsonl", "a/x.csv", "README.md", "notes.txt", ".hidden.json", "dataset_info.json", "_tmp/c.jsonl"):
        write(tmp_path, name, "x\n1\n" if name.endswith("csv") else LINES)
    assert [file.name for file in sources.files(tmp_path)] == ["a/x.csv", "b.jsonl"]
    assert where(str(tmp_path))[0] == "a/x.csv:2"
    prose = tmp_path / "prose"
    write(prose, "1.txt", "One."), write(prose, "2.md", "Two."), write(prose, "LICENSE.txt", "No data.")
    assert [row["text"] for row in values(str(prose))] == ["One.", "Two."]


def test_a_directory_with_splits(tmp_path):
    for name in ("train.jsonl", "valid.jsonl", "test-00000-of-00001.jsonl"):
        write(tmp_path, name, json.dumps({"text": name}) + "\n")
    assert values(str(tmp_path)) == [{"text": "train.jsonl"}]
    assert values(f"{tmp_path}:validation") == values(f"{tmp_path}:valid") == [{"text": "valid.jsonl"}]
    assert values(f"{tmp_path}:test") == [{"text": "test-00000-of-00001.jsonl"}]
    with pytest.raises(ModelNotFound, match=r"has no split 'dpo'. It has the splits test, train, validation;"):
        sources.files(f"{tmp_path}:dpo")


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["a.jsonl", "b.jsonl", "eval/c.jsonl"], None, ["a.jsonl", "b.jsonl"]),
        (["train_sft.jsonl", "train_gen.jsonl"], "train_gen", ["train_gen.jsonl"]),
        (["train_sft.jsonl", "test_sft.jsonl"], None, ["train_sft.jsonl"]),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/dev.parquet"], "train", 2),
        (["train/0.parquet", "latest.parquet", "contest.parquet"], None, ["train/0.parquet"]),
        (["latest.parquet", "contest.parquet"], None, 2),
        (["x/dev.csv"], "validation", ["x/dev.csv"]),
    ],
)
def test_splits_by_name(names, split, chosen):
    found = splits.choose(names, split, "here")
    assert len(found) == chosen if isinstance(chosen, int) else found == chosen


def test_only_other_splits(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no split 'train'.*splits test;.*as in here:test"):
        splits.choose(["test.jsonl"], None, "here")


# --- the hub -----------------------------------------------------------------------------------------------------


def test_names_of_the_hub():
    assert hub_names.parse("hf:a/b") == hub_names.Reference("a/b")
    found = hub_names.parse("hf:a/b@refs%2Fconvert%2Fparquet/main:train_sft")
    assert found == hub_names.Reference("a/b", "refs/convert/parquet", "main", "train_sft")
    assert found.whole == "hf:a/b@refs%2Fconvert%2Fparquet/main:train_sft"
    assert hub_names.parse("hf:a/b/data/x.jsonl").config == "data/x.jsonl"
    for bad in ("hf:", "hf:a", "hf:a/b:", "hf:a/b/../c", "hf:a/b//c", "hf:a b/c"):
        with pytest.raises(OptionError, match="not of the form hf:owner/name"):
            sources.files(bad)


NAMES = ["README.md", "x.trees.jsonl.gz", "data/train-0.parquet", "data/test-0.parquet", "en/train.csv", "de/train.csv"]
CARD = [
    {"config_name": "en", "data_files": [{"split": "train", "path": "en/*.csv"}, {"split": "all", "path": ["**.csv"]}]},
    {"config_name": "main", "data_files": {"train": "data/train-*", "test": ["data/test-[0-9]*"]}},
    {"config_name": "de", "data_dir": "de"},
    {"config_name": "gone", "data_files": "gone/*"},
]


@pytest.mark.parametrize(
    ("name", "card", "chosen"),
    [
        ("hf:a/b", [], ["data/train-0.parquet", "de/train.csv", "en/train.csv"]),
        ("hf:a/b:test", [], ["data/test-0.parquet"]),
        ("hf:a/b/en", [], ["en/train.csv"]),
        ("hf:a/b/x.trees.jsonl.gz", [], ["x.trees.jsonl.gz"]),
        ("hf:a/b/en", CARD, ["en/train.csv"]),
        ("hf:a/b/en:all", CARD, ["de/train.csv", "en/train.csv"]),
        ("hf:a/b/main:test", CARD, ["data/test-0.parquet"]),
        ("hf:a/b/de", CARD, ["de/train.csv"]),
        ("hf:a/b", [{**CARD[1], "default": True}, CARD[0]], ["data/train-0.parquet"]),
        ("hf:a/b", [CARD[1]], ["data/train-0.parquet"]),
        (
            "hf:a/b",
            [{"config_name": "default", "data_files": "*/train.csv"}, CARD[0]],
            ["de/train.csv", "en/train.csv"],
        ),
    ],
)
def test_which_files_of_a_repository_are_meant(name, card, chosen):
    assert hub_names.choose(hub_names.parse(name), NAMES, card) == chosen


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:a/b", r"4 configurations; name one of them, as in hf:a/b/en\. It has: de, en, gone, main"),
        ("hf:a/b/fr", r"no configuration, folder or file 'fr'.*data, de, en, gone, main; files: README"),
        ("hf:a/b/main:dev", r"hf:a/b/main has no split 'dev'\. Its splits are test, train"),
        ("hf:a/b/gone", r"The card of a/b says that 'train' is gone/\*, and no file"),
    ],
)
def test_files_of_a_repository_that_are_not_there(name, said):
    with pytest.raises(ModelNotFound, match=said):
        hub_names.choose(hub_names.parse(name), NAMES, CARD)


COMMIT = "c0ffee" * 6 + "abcd"
BIG = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(2000)).encode()
REPOSITORIES = {
    "ada/talks": ({"README.md": b"#", "train.jsonl": BIG, "test.jsonl": LINES.encode()}, {"license": "apache-2.0"}),
    "ada/card": (
        {"train.jsonl": b"no", "a/1.csv": b"x\n1\n"},
        {"configs": [{"config_name": "a", "data_files": [{"split": "train", "path": "a/*"}]}]},
    ),
    "ada/script": ({"script.py": b"print()"}, {}),
    "ada/wrong": ({"train.jsonl": BIG}, {}),
    "ada/shut": ({"train.jsonl": BIG}, {}),
}
PROGRAM = """
import json, sys
from geode.errors import GeodeError
from geode.tune import sources
for place in sys.argv[1:]:
    try:
        files = sources.files(place)
        answer = [[file.name, file.path.as_posix(), sum(1 for _ in file.rows())] for file in files]
    except GeodeError as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


def fill(server) -> None:
    """The hub's own answers, as far as data sets need them."""
    for repo, (files, card) in REPOSITORIES.items():
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            | (
                {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
                if len(data) > 999
                else {}
            )
            for name, data in files.items()
        ]
        path = f"/api/datasets/{repo}"
        document = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "cardData": card}
        server.files[path] = json.dumps(document).encode()
        server.headers[path] = {"Content-Type": "application/json"}
        for name, data in files.items():
            server.files[f"/datasets/{repo}/resolve/{COMMIT}/{name}"] = data
    server.faults[f"/datasets/ada/talks/resolve/{COMMIT}/train.jsonl"] = ["drop"]
    server.files[f"/datasets/ada/wrong/resolve/{COMMIT}/train.jsonl"] = BIG[::-1]
    server.faults["/api/datasets/ada/secret"] = [401] * 9
    server.faults[f"/datasets/ada/shut/resolve/{COMMIT}/train.jsonl"] = [403] * 9
    server.headers["/api/datasets/ada/nothing"] = {"X-Error-Code": "RepoNotFound"}


PLACES = {
    "talks": "hf:ada/talks",
    "again": "hf:ada/talks",
    "test": "hf:ada/talks:test",
    "card": "hf:ada/card",
    "script": "hf:ada/script",
    "wrong": "hf:ada/wrong",
    "shut": "hf:ada/shut",
    "secret": "hf:ada/secret",
    "nothing": "hf:ada/nothing",
}


@pytest.fixture(scope="module")
def hugging(tmp_path_factory):
    """The answer to each of PLACES: one process, because the library reads its endpoint when it is imported."""
    pytest.importorskip("huggingface_hub")
    folder = tmp_path_factory.mktemp("hf")
    serving = test_hub._serve()
    server = next(serving)
    fill(server)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
        "GEODE_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_secret",
    }
    words = [sys.executable, "-c", PROGRAM, *PLACES.values()]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    next(serving, None)
    assert done.returncode == 0, done.stderr
    answers = dict(zip(PLACES, map(json.loads, done.stdout.splitlines()), strict=True))
    return answers | {"said": done.stderr, "server": server, "home": folder / "home"}


def test_a_data_set_comes_once_and_whole(hugging):
    ((name, path, rows),) = hugging["talks"]
    assert (name, rows) == ("train.jsonl", 2000) and Path(path).read_bytes() == BIG
    assert hugging["again"] == hugging["talks"]
    asked = f"/datasets/ada/talks/resolve/{COMMIT}/train.jsonl"
    assert hugging["server"].asked(asked) == [None, f"bytes={len(BIG) // 2}-"]  # broken off, and gone on with
    assert hugging["server"].asked(asked, "Authorization") == ["Bearer hf_secret"] * 2
    assert sum(path == "/api/datasets/ada/talks" for path, _ in hugging["server"].seen) == 2  # ":test" was the second
    manifest = json.loads((Path(path).parents[1] / "manifest.json").read_text())
    assert manifest["licence"] == "apache-2.0" and manifest["source"].endswith(f"ada/talks/tree/{COMMIT}")
    assert manifest["files"] == [{"name": name, "size": len(BIG), "sha256": hashlib.sha256(BIG).hexdigest()}]
    assert "its licence: apache-2.0" in hugging["said"] and "ada/card, which names no licence" in hugging["said"]


def test_splits_and_configurations_of_the_hub(hugging):
    assert [(name, rows) for name, _, rows in hugging["test"]] == [("test.jsonl", 2)]
    assert [(name, rows) for name, _, rows in hugging["card"]] == [("a/1.csv", 1)]


def test_data_sets_that_cannot_be_had(hugging):
    kind, said = hugging["script"]
    assert kind == "ModelNotFound" and "has no file of data" in said and "script.py" in said
    kind, said = hugging["nothing"]
    assert kind == "ModelNotFound" and "https://huggingface.co/datasets/ada/nothing" in said
    kind, said = hugging["wrong"]
    assert kind == "DownloadError" and "sha256" in said
    for name, status in (("secret", "401"), ("shut", "403")):
        kind, said = hugging[name]
        assert kind == "DownloadError" and status in said and "HF_TOKEN" in said


def test_a_download_that_broke_off_serves_only_its_commit(tmp_path):
    write(tmp_path, "set/files/train.jsonl.part", "old")
    write(tmp_path, "set/commit", "one")
    hub._same_commit("one", tmp_path / "set")
    assert (tmp_path / "set/files/train.jsonl.part").exists()
    hub._same_commit("two", tmp_path / "set")
    assert [path.name for path in (tmp_path / "set").rglob("*")] == ["commit"]


def test_a_folder_without_its_files_is_not_whole(tmp_path):
    write(tmp_path, "manifest.json", json.dumps({"files": [{"name": "a.jsonl", "size": 3}]}))
    assert hub._here(tmp_path) is None
    write(tmp_path, "files/a.jsonl", "{}\n")
    assert hub._here(tmp_path) == ["a.jsonl"]
    write(tmp_path, "manifest.json", "[]")
    assert hub._here(tmp_path) is None


def test_the_hub_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setenv("GEODE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"geode\[hub\]"):
        sources.files("hf:ada/talks")
