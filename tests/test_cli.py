"""The command line: verbs run in this process on a model that says what it is told, a few as real commands."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from geode import Fake, lm
from geode.cli import chat, doctor, draw, main, options, screen
from geode.config import Attn, Bands, Config, Factors, Norm, Rope, Stretch, Yarn
from geode.io import gguf, hub, safetensors
from geode.native import extension
from geode.tensors import shapes


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GEODE_HOME", str(tmp_path / "home"))


@pytest.fixture
def fake(monkeypatch):
    """A factory: `fake(answers, template=True)` is what the commands open; returns what `open` was asked for."""

    def make(answers=None, template=True, **changes):
        opened = []
        model = Fake(answers)
        for name, value in changes.items():
            setattr(model, name, value)

        def open_it(name, **how):
            opened.append((name, how))
            return model

        model.own_template = template and model.template is not None
        monkeypatch.setattr(lm, "open", open_it)
        return opened

    return make


@pytest.fixture
def piped(monkeypatch):
    """A factory: `piped(text)` is what stdin holds, without a terminal."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class Keyboard(io.StringIO):
    def isatty(self):
        return True


# --- the command itself ------------------------------------------------------------------------------------------


def python(*words, **how):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, **how)


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from geode.cli import main; code = main(['--help']);"
        "heavy = {'numpy', 'keras', 'jax', 'torch', 'tensorflow', 'urllib.request'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "chat", "pull", "list", "remove", "info", "doctor"):
        assert f"    {verb} " in done.stdout


def test_a_closed_pipe_is_quiet():
    words = [sys.executable, "-m", "geode", "doctor", "--quick", "--json"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 0
    child.stderr.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "invalid choice"),
        (["run"], "MODEL"),
        (["run", "m", "--temperature", "warm"], "invalid float"),
        (["run", "m", "--ids", "1,x"], "numbers with commas"),
        (["run", "m", "--chat", "--raw", "x"], "not allowed with"),
        ([], "usage"),
    ],
)
def test_wrong_usage_is_2(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("geode ")


def test_an_error_is_one_paragraph_and_its_code(capsys):
    assert main(["run", "gema3", "x"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("geode: 'gema3' is neither") and told.err.count("\n") == 1
    assert main(["--debug", "run", "gema3", "x"]) == main(["run", "gema3", "--debug", "x"]) == 2
    assert capsys.readouterr().err.count("Traceback") == 2


def test_a_surprise_is_1_and_ctrl_c_is_130(monkeypatch, capsys):
    def fail(error):
        def open_it(*_, **__):
            raise error

        monkeypatch.setattr(lm, "open", open_it)

    fail(ZeroDivisionError("division by zero"))
    assert main(["run", "m", "x"]) == 1
    assert "ZeroDivisionError: division by zero. Run the same command with --debug" in capsys.readouterr().err
    fail(KeyboardInterrupt())
    assert main(["run", "m", "x"]) == 130


def test_a_paragraph_is_wrapped_only_for_people(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "geode: " + "word " * 30
    assert screen.paragraph(text, io.StringIO()) == text
    lines = screen.paragraph(text, Keyboard()).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 40


def test_a_model_cannot_steer_the_terminal():
    assert screen.harmless("a\x1b[2Jb\x07\n\tc\x9b\r") == "a[2Jb\n\tc"


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_streams_text_to_stdout_and_speed_to_stderr(fake, capsys):
    opened = fake(["Grüße."], template=False)
    assert main(["run", "stone", "--temperature", "0", "The capital", "--on", "jax", "of France"]) == 0
    told = capsys.readouterr()
    assert told.out == "Grüße.\n"
    assert "prompt 22 tokens" in told.err and "answer 9 tokens" in told.err and "loaded in" in told.err
    plain = {"dtype": "auto", "adapter": None, "threads": None, "kv_type": None, "quantize": None, "check": False}
    assert opened == [("stone", {"on": "jax"} | plain)]
    assert main(["run", "stone", "--threads", "2", "--kv-type", "q8_0", "--quantize", "q4_0", "x"]) == 0
    given = {"on": "auto", "threads": 2, "kv_type": "q8_0", "quantize": "q4_0"}
    assert opened[1] == ("stone", plain | given)


@pytest.mark.parametrize(
    ("flags", "template", "prompt"),
    [
        ([], False, "Hi"),
        ([], True, "user: Hi\nassistant: "),
        (["--raw"], True, "Hi"),
        (["--chat"], False, "user: Hi\nassistant: "),
        (["--system", "Be kind."], False, "system: Be kind.\nuser: Hi\nassistant: "),
    ],
)
def test_run_chats_where_the_checkpoint_has_a_template(fake, capsys, flags, template, prompt):
    fake(lambda seen: f"<{seen}>", template=template)
    assert main(["run", "m", *flags, "Hi"]) == 0
    assert capsys.readouterr().out == f"<{prompt}>\n"


def test_run_raw_and_system_exclude_each_other(fake, capsys):
    fake()
    assert main(["run", "m", "--raw", "--system", "x", "Hi"]) == 2
    assert "--system belongs to a conversation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        ([], "from a pipe\n", "from a pipe"),
        (["-"], "from a pipe\n", "from a pipe"),
        (["Sum up:", "-"], "a\nb\n", "Sum up: a\nb"),
        (["no", "pipe"], "ignored", "no pipe"),
        (["--", "-5 is"], "", "-5 is"),
    ],
)
def test_run_takes_words_and_stdin(fake, piped, capsys, words, stdin, prompt):
    fake(template=False)
    piped(stdin)
    assert main(["run", "m", *words]) == 0
    assert capsys.readouterr().out == f"{prompt}\n"


def test_run_without_a_prompt_says_so_before_it_loads(fake, piped, monkeypatch, capsys):
    opened = fake()
    piped(" \n")
    assert main(["run", "m"]) == 2
    monkeypatch.setattr(sys, "stdin", Keyboard())
    assert main(["run", "m"]) == 2
    told = capsys.readouterr().err
    assert "The prompt is empty" in told and "There is no prompt" in told and opened == []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
    assert main(["run", "m"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_run_hands_every_sampling_flag_to_the_model(fake, capsys):
    asked = {}
    model = Fake(["x"])
    fake(template=False, stream=lambda prompt, **how: asked.update(how) or model.stream(prompt))
    flags = {knob.flag: "1" for knob in options.KNOBS}
    words = [word for pair in flags.items() for word in pair]
    assert main(["run", "m", "Hi", *words, "--stop", "a", "--stop", "b", "--logprobs", "3", "--json"]) == 0
    assert asked == {knob.name: 1 for knob in options.KNOBS} | {"stop": ["a", "b"], "logprobs": 3}
    assert main(["run", "m", "Hi"]) == 0
    assert asked == {knob.name: knob.default for knob in options.KNOBS} | {
        "max_tokens": 256,
        "stop": None,
        "logprobs": None,
    }


def test_run_json(fake, capsys):
    fake(["ok"])
    assert main(["run", "m", "Hi", "--json", "--logprobs", "2", "--temperature", "0"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert document["text"] == "ok" and document["tokens"] == [*b"ok", 257] and document["finish_reason"] == "stop"
    assert document["usage"]["completion_tokens"] == 3 and len(document["top_logprobs"][0]) == 2
    assert document["logprobs"] == pytest.approx([0, 0, 0], abs=1e-6) and told.err == ""


def test_run_shows_logprobs_token_by_token(fake, capsys):
    fake(["ok"])
    assert main(["run", "m", "Hi", "--logprobs", "1", "--temperature", "0", "--quiet"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["'o'", "'k'", "''"] and [row[2] for row in rows] == ["'o'", "'k'", "''"]
    assert all(abs(float(row[1])) < 1e-3 for row in rows)


def test_run_on_ids_without_a_tokenizer_prints_ids(fake, capsys):
    fake(["ok"], template=None, tokenizer=None, ends=frozenset({257}))
    assert main(["run", "m", "--ids", "72, 105", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "111 107 257 \n"
    assert main(["run", "m", "Hi", "--raw"]) == 2
    assert "token ids" in capsys.readouterr().err


def test_run_says_when_the_text_was_cut(fake, capsys):
    fake(["a long answer"])
    assert main(["run", "m", "Hi", "--max-tokens", "4"]) == 0
    told = capsys.readouterr()
    assert told.out == "a lo\n" and "Stopped after 4 tokens; --max-tokens" in told.err


def test_run_passes_the_models_complaints_on(fake, capsys):
    fake()
    assert main(["run", "m", "Hi", "--top-p", "7"]) == 2
    assert "top_p" in capsys.readouterr().err


# --- chat --------------------------------------------------------------------------------------------------------


def test_chat_remembers_through_a_pipe(fake, piped, capsys):
    fake(lambda seen: f"<{seen.count('user: ')}>")
    piped("one\ntwo\n/reset\nthree\n")
    assert main(["chat", "m"]) == 0
    told = capsys.readouterr()
    assert told.out == "<1>\n<2>\n<1>\n" and ">>>" not in told.out


def test_chat_sends_the_whole_conversation(fake, piped, capsys):
    seen = []
    fake(lambda prompt: seen.append(prompt) or "Yes.")
    piped("Hi\n/system Be brief.\nAnd?\n/exit\nnever\n")
    assert main(["chat", "m", "--system", "Be kind."]) == 0
    assert seen == [
        "system: Be kind.\nuser: Hi\nassistant: ",
        "system: Be brief.\nuser: Hi\nassistant: Yes.\nuser: And?\nassistant: ",
    ]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("one\\\ntwo\\\nthree\n", "one\ntwo\nthree"),
        ('"""one\ntwo"""\n', "one\ntwo"),
        ('"""\n/not a command\n\n  two\n"""\n', "/not a command\n\n  two"),
        ('"""all in one line"""\n', "all in one line"),
        ("/\\\nx\n", "/\nx"),
    ],
)
def test_chat_takes_messages_of_many_lines(fake, piped, capsys, typed, message):
    seen = []
    fake(lambda prompt: seen.append(prompt) or "ok")
    piped(typed)
    assert main(["chat", "m"]) == 0
    assert seen == [f"user: {message}\nassistant: "]


def test_chat_saves_and_loads(fake, piped, capsys, tmp_path):
    file = tmp_path / "talk.json"
    fake(["Yes."])
    piped(f"/params temperature 0.25\n/params max-tokens 9\nHi\n/save {file}\n")
    assert main(["chat", "m", "--system", "Be kind."]) == 0
    document = json.loads(file.read_text())
    assert document["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    assert (document["system"], document["params"]["temperature"], document["params"]["max_tokens"]) == (
        "Be kind.",
        0.25,
        9,
    )
    seen = []
    fake(lambda prompt: seen.append(prompt) or "ok")
    piped(f"/load {file}\nAnd?\n/params\n")
    assert main(["chat", "m"]) == 0
    assert seen == ["system: Be kind.\nuser: Hi\nassistant: Yes.\nuser: And?\nassistant: "]
    assert "temperature 0.25" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["talk.json"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/frob", "no command /frob"),
        ("/save", "needs the name"),
        ("/save /no/such/place/x", "cannot be written"),
        ("/load /no/such/file", "cannot be read"),
        (f"/load {__file__}", "is not a conversation"),
        ("/params warmth 3", "no setting 'warmth'"),
        ("/params temperature hot", "is a number"),
        ("/params temperature -3", "temperature must be"),
        ("/params top_p off", "is a number"),
    ],
)
def test_chat_goes_on_after_a_wrong_command(fake, piped, capsys, line, said):
    fake(["still here"])
    piped(f"{line}\nHi\n")
    assert main(["chat", "m"]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.out == "still here\n"


def test_chat_params_reach_the_model_and_can_be_switched_off(fake, piped):
    asked = []
    model = Fake(["x"])
    fake(stream=lambda prompt, **how: asked.append(how) or model.stream(prompt))
    piped("/params seed 7\nHi\n/params seed off\nHi\n")
    assert main(["chat", "m", "--top-k", "3"]) == 0
    assert [(how["seed"], how["top_k"]) for how in asked] == [(7, 3), (None, 3)]


def test_chat_tells_of_a_full_context_and_forgets_the_message(fake, piped, capsys):
    fake(executor=Fake(["ok"], context=80).executor)
    piped("Hi\n" + "long " * 40 + "\nHi\n")
    assert main(["chat", "m"]) == 2
    told = capsys.readouterr()
    assert told.out == "ok\nok\n" and "context holds 80" in told.err and "/reset" in told.err


def test_chat_needs_a_template(fake, piped, capsys):
    fake(template=None)
    lm.open("m").template = None
    piped("Hi\n")
    assert main(["chat", "m"]) == 2
    assert "brings no chat template" in capsys.readouterr().err


def test_chat_warns_of_a_template_that_is_only_the_familys(fake, piped, capsys):
    fake(["x"], template=False)
    piped("Hi\n")
    assert main(["chat", "m"]) == 0
    assert "hardly tuned to talk" in capsys.readouterr().err


class Interrupted:
    """A model whose answers Ctrl-C ends after one piece, or before the first."""

    template, context = object(), 100

    def __init__(self, *first):
        self.first = list(first)
        self.seen = []

    def stream(self, messages, **_):
        self.seen.append([message["content"] for message in messages])
        text = self.first.pop(0)
        if text:
            yield SimpleNamespace(text=text)
        raise KeyboardInterrupt


def keys(*events):
    """What a person types: texts, and exceptions for the keys that make them."""
    left = iter(events)

    def ask(prompt):
        event = next(left)
        if isinstance(event, str):
            return event
        raise event

    return ask


def test_ctrl_c_stops_the_answer_and_not_the_program(capsys):
    model = Interrupted("Half an ans", "", "x")
    talk = chat.Chat(model, "m", {})
    assert talk.loop(keys("one", "two", "three", EOFError())) == 0
    assert model.seen == [["one"], ["one", "Half an ans", "two"], ["one", "Half an ans", "three"]]
    assert capsys.readouterr().err.count("[stopped]") == 3


def test_ctrl_c_at_the_prompt_leaves_the_second_time(capsys):
    model = Interrupted("x", "x")
    talk = chat.Chat(model, "m", {})
    typed = keys(KeyboardInterrupt(), "/help", KeyboardInterrupt(), KeyboardInterrupt(), "never")
    assert talk.loop(typed) == 0
    assert model.seen == [] and capsys.readouterr().err.count("leaves") == 2
    assert talk.loop(keys("one", KeyboardInterrupt(), "never")) == 0
    assert model.seen == [["one"]]


def test_chat_keeps_what_was_typed_for_the_next_time(tmp_path):
    readline = pytest.importorskip("readline")
    with chat._history():
        readline.add_history("what is a geode?")
    assert "what is a geode?" in (hub.home() / "history").read_text().replace("\\040", " ")


# --- pull, list, remove ------------------------------------------------------------------------------------------


def test_list_without_models_says_how_to_get_one(capsys):
    assert main(["list"]) == 0
    told = capsys.readouterr()
    assert told.out == "" and "geode pull NAME" in told.err
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["list", "--all"]) == 0
    assert "gemma3:270m" in capsys.readouterr().out


def test_pull_prints_paths(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub, "pull", lambda name, quiet: tmp_path / name)
    assert main(["pull", "a", "b", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n{tmp_path / 'b'}\n"
    assert main(["pull", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": str(tmp_path / "a")}


def test_pull_interrupted_says_that_nothing_is_lost(monkeypatch, capsys):
    def interrupt(name, quiet):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "pull", interrupt)
    assert main(["pull", "a"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_remove_of_nothing_is_2(capsys):
    assert main(["remove", "smollm2"]) == 2
    assert "not on this disk" in capsys.readouterr().err


# --- info --------------------------------------------------------------------------------------------------------

LLAMA = {
    **dict(model_type="llama", vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4),
    **dict(num_key_value_heads=2, intermediate_size=24, max_position_embeddings=4096, tie_word_embeddings=True),
}


@pytest.fixture
def tiny_llama(tmp_path):
    """A directory of only config.json and model.safetensors."""
    c = Config(vocab=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=4, ffn=24, context=4096, tied=True)
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    inside = {
        **dict(attn_q="self_attn.q_proj", attn_k="self_attn.k_proj", attn_v="self_attn.v_proj"),
        **dict(
            attn_output="self_attn.o_proj", ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj"
        ),
        **dict(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
    }
    for i in range(2):
        names |= {f"blk.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight" for ours, theirs in inside.items()}
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    arrays = {names[name]: np.ones(shape, np.float32) for name, shape in shapes(c).items()}
    safetensors.write(folder / "model.safetensors", arrays)
    return folder


def test_info_tells_what_a_model_is(tiny_llama, capsys):
    assert main(["info", str(tiny_llama), "--tensors", "--template", "--check"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    for said in (
        *("llama, 0.0 million parameters", "x ─┬─ norm ─ attention ─ + ─┬─ norm ─ ffn ─ + ─", "4 heads of 4 on 2"),
        *("model.layers.1.mlp.down_proj.weight 16 × 24 F32 1.5 kB", "4,096 tokens", "tokenizer none", "(no template)"),
        *("licence not known", "All weights are finite"),
    ):
        assert said in page


def test_info_json_adds_up(tiny_llama, capsys):
    assert main(["info", str(tiny_llama), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "llama" and facts["config"]["width"] == 16
    assert facts["parameters"] * 4 == facts["bytes"] == facts["types"]["F32"]["bytes"]
    assert sum(tensor["bytes"] for tensor in facts["tensors"]) == facts["bytes"]
    last = facts["memory"][-1]
    assert last["context"] == 4096 and last["kv"] == 2 * 2 * 4096 * 8 * 2
    assert last["as_stored"] - facts["bytes"] == last["kv"] == last["bfloat16"] - 2 * facts["parameters"]
    assert facts["licence"] is None and facts["template"] is None and facts["tokenizer"] is None


def test_info_check_names_the_broken_tensors(tiny_llama, capsys):
    stored = safetensors.read(tiny_llama)
    arrays = {name: np.array(stored[name]) for name in stored}
    arrays["model.norm.weight"][3] = np.nan
    safetensors.write(tiny_llama / "model.safetensors", arrays)
    assert main(["info", str(tiny_llama)]) == 0
    assert main(["info", str(tiny_llama), "--check"]) == 2
    assert "1 tensors hold numbers that are not finite: model.norm.weight" in capsys.readouterr().err


def test_info_of_a_name_that_is_not_here_downloads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(hub, "pull", lambda *_, **__: pytest.fail("info must not download"))
    assert main(["info", "gemma3"]) == 0
    page = capsys.readouterr().out
    assert "Gemma Terms of Use" in page and "geode pull gemma3:270m" in page and "253.1 MB" in page
    assert main(["info", "hf:a/b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "hf:a/b"}
    assert main(["info", "nothing/like/this.gguf"]) == 2


def test_info_shows_the_licence_again(tiny_llama, capsys, monkeypatch):
    terms = hub.Licence("Tiny Terms", "https://example.com", "Be good.", ("TERMS.html",))
    monkeypatch.setattr(hub, "licence", lambda path: terms)
    assert main(["info", str(tiny_llama)]) == 0
    page = capsys.readouterr().out
    assert "licence    Tiny Terms, https://example.com" in page and "Be good." in page and "TERMS.html" in page


def test_info_of_a_damaged_file_is_one_paragraph(tmp_path, capsys):
    file = tmp_path / "bad.gguf"
    gguf.write(file, {"general.architecture": "llama"}, {"x": np.ones(4, np.float32)})
    file.write_bytes(file.read_bytes()[:40])
    assert main(["info", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


TINY = Config(vocab=100, width=8, depth=4, heads=2, kv_heads=1, head_dim=4, ffn=16, context=64)


def test_the_drawing_of_a_sandwich_with_windows():
    config = TINY.replace(
        **dict(block="sandwich", pattern=(Attn(16, Rope(1e4)), Attn(16, Rope(1e4)), Attn(None, Rope(1e6)))),
        **dict(scale_embedding=True, tied=True, qk_norm="shared", final_softcap=30.0),
    )
    assert draw.network(config).splitlines() == [
        "tokens ─ embedding 100 × 8, times √width",
        "┌─ 4 blocks",
        "│  x ─┬─ norm ─ attention ─ norm ─ + ─┬─ norm ─ ffn ─ norm ─ + ─",
        "│     └────────────────────────────┘  └──────────────────────┘",
        "│",
        "│  norm       rms, eps 1e-05, weight",
        "│  attention  2 heads of 4 on 1 of keys and values, scale 0.5, q and k normed head by head",
        "│  sees       2 × last 16, 1 × all; repeated over the layers; context 64 tokens",
        "│  rope       theta 10,000 (layers with a window)",
        "│  rope       theta 1,000,000 (layers that see all)",
        "│  ffn        8 → 16 → 8, gated silu",
        "└─",
        "norm ─ head 100 × 8, tied to the embedding, logits capped at ±30",
    ]


@pytest.mark.parametrize("block", ["pre", "post", "sandwich", "parallel", "parallel_shared"])
def test_every_block_is_drawn_with_its_own_norms(block):
    picture = "\n".join(draw.DRAWINGS[block]())
    norms = {"pre": 2, "post": 2, "sandwich": 4, "parallel": 2, "parallel_shared": 1}
    assert picture.count("norm") == norms[block] and picture.count("attention") == picture.count("ffn") == 1
    assert len({len(line) for line in picture.splitlines()[1:]}) == 1, "the lower edge is crooked"


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        (Stretch(4.0), "positions divided by 4"),
        (Bands(8.0, 1.0, 4.0, 8192), "long waves divided by 8"),
        (Yarn(16.0, 4096), "YaRN 16"),
        (Factors((1.0, 2.0)), "one factor a channel"),
    ],
)
def test_the_drawing_names_rope_rules_and_extras(scaling, said):
    config = TINY.replace(
        **dict(pattern=(Attn(None, Rope(5e5, 0.5, scaling)),), norm=Norm("layer", weight=False), gated=False),
        **dict(qkv_bias=True, out_bias=True, ffn_bias=True, clip_qkv=8.0, attn_softcap=50.0, activation="gelu_tanh"),
    )
    text = draw.network(config)
    for part in (
        *(
            said,
            "theta 500,000, 2 of 4 channels",
            "layer, eps 1e-05, neither weight nor bias",
            "gelu tanh, with biases",
        ),
        *("biases on q, k, v and output", "q, k, v clipped at ±8", "scores capped at ±50", "all of up to 64 tokens"),
    ):
        assert part in text


# --- doctor ------------------------------------------------------------------------------------------------------


def test_doctor_quick_tells_versions_machine_and_what_is_missing(capsys):
    assert main(["doctor", "--quick", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["numpy"] == np.__version__ and facts["backends"] == {}
    assert facts["machine"]["cores"] >= 1 and facts["machine"]["disk_free"] > 0
    assert main(["doctor", "--quick"]) == 0
    assert f"numpy            {np.__version__}" in capsys.readouterr().out


def test_doctor_tells_what_the_native_engine_would_use(capsys, monkeypatch):
    module = SimpleNamespace(isas=lambda: ["fast", "slow"], usable_cores=lambda: 3)
    monkeypatch.setattr(extension, "module", lambda: module)
    monkeypatch.setattr(extension, "is_there", lambda: True)
    monkeypatch.delenv("GEODE_ISA", raising=False)
    assert main(["doctor", "--quick"]) == 0
    assert "native  fast, 3 threads; GEODE_ISA may be slow\n" in capsys.readouterr().out
    monkeypatch.setenv("GEODE_ISA", "slow")
    assert main(["doctor", "--quick", "--json"]) == 0
    facts = {"built": True, "isa": "slow", "isas": ["fast", "slow"], "threads": 3, "problem": None}
    assert json.loads(capsys.readouterr().out)["native"] == facts
    monkeypatch.setenv("GEODE_ISA", "none")
    assert main(["doctor", "--quick"]) == 0
    assert "GEODE_ISA asks for 'none'" in capsys.readouterr().out


def test_doctor_without_the_native_engine(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "geode.native._native", None)
    monkeypatch.setattr(extension, "is_there", lambda: False)
    assert main(["doctor", "--quick"]) == 0
    assert "pip install ." in capsys.readouterr().out


def test_doctor_multiplies_natively():
    if not extension.is_there():
        pytest.skip("the native engine was not built")
    assert doctor._try("native") == {"works": True, "devices": [extension.isa()], "problem": None}


TRIES = {
    "good": "y = 8; devices = ['cpu']",
    "wrong": "y = 7; devices = ['cpu']",
    "broken": "raise ImportError('libstone.so is missing')",
    "dead": "import os; os._exit(3)",
}


def test_doctor_tries_backends_in_processes_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "TRIES", TRIES)
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    monkeypatch.setattr(doctor, "PACKAGES", tuple(TRIES))
    assert main(["doctor"]) == 1
    page = capsys.readouterr().out
    for said in (
        "good    works on cpu",
        "gave 7.0, not 8",
        "libstone.so is missing",
        "exit code 3",
    ):
        assert said in page


def test_doctor_does_not_wait_for_ever(monkeypatch):
    def wait(words, timeout, **_):
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(doctor.subprocess, "run", wait)
    found = doctor._try("torch")
    assert not found["works"] and found["problem"] == f"no answer within {doctor.TRY_SECONDS} s"


class Distribution(SimpleNamespace):
    def read_text(self, name):
        return json.dumps(self.url)


@pytest.mark.parametrize(
    ("editable", "command"), [(True, "pip install -e '.[jax]'"), (False, "pip install 'geode[jax]'")]
)
def test_doctor_reads_the_extras_from_the_package_itself(monkeypatch, editable, command):
    requires = ["numpy>=1", 'jax[cpu]>=0.4; extra == "jax"', "keras; extra == 'jax'", 'here; extra == "other"']
    found = Distribution(requires=requires, url={"dir_info": {"editable": editable}})
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: found)
    monkeypatch.setattr(doctor, "_version", lambda name: "1" if name == "here" else None)
    assert doctor._missing() == {"jax": {"packages": ["jax", "keras"], "install": command}}
