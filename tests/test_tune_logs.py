"""What a run writes about itself: the log, TensorBoard's files, the picture, the card, the screen."""

from __future__ import annotations

import datetime
import io
import json
import math
import struct
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geode.cli.tune_screen import Screen
from geode.errors import FormatError
from geode.io import plain_yaml
from geode.io.catalogue import GEMMA_TERMS
from geode.tune import card, curve, logs, tensorboard
from geode.tune.events import Evaluation, Event, Finished, Sample, Saved, Started, Step
from geode.tune.progress import Listener, Listeners, Silent
from geode.tune.recipe import Data, Full, Lora, Objective, Recipe, Run

RECIPE = Recipe(model="gemma3:270m", data=Data(train=("a.jsonl",)), run=Run(samples=("Why?", "Who?")))


def begun(step: int = 0, steps: int = 10) -> Started:
    return Started(step, steps, RECIPE, "torch, float32, CPU", 1000, 50_000)


def done(i: int, loss: float | None = None, steps: int = 10) -> Step:
    loss = 3 - 0.1 * i if loss is None else loss
    return Step(i, steps, i / 5, loss, 1e-4, 0.5, 2048, 800, 0.5, 3_000_000, (f"a.jsonl:{i}",), {"margin": 0.25})


def tell(listener: Listener, *events: Event) -> None:
    names = {Started: "started", Step: "step", Evaluation: "evaluated", Sample: "sampled", Saved: "saved"}
    for event in events:
        getattr(listener, names.get(type(event), "finished"))(event)


def whole_run() -> list[Event]:
    best = Evaluation(10, 2.0, 500, True, {"accuracy": 0.5})
    return [
        begun(),
        Evaluation(0, 3.5, 500, True),
        *(done(i) for i in range(1, 11)),
        best,
        Sample(10, "Why?", "Because |\n```\nso"),
        Saved(10, Path("out/step-10")),
        Finished("done", 10, 61.0, 2.0, best),
    ]


# log.jsonl


def test_the_log_gives_back_the_events_that_went_in(tmp_path: Path) -> None:
    path = tmp_path / logs.NAME
    tell(logs.Log(path), *whole_run())
    assert list(logs.read(path)) == whole_run()
    first = json.loads(path.read_text().splitlines()[0])
    assert first["event"] == "started"
    assert datetime.datetime.fromisoformat(first["time"]).tzinfo is not None


def test_numbers_that_are_not_finite_or_not_python_stay_valid_json(tmp_path: Path) -> None:
    log = logs.Log(tmp_path / logs.NAME)
    odd = [math.nan, math.inf, -math.inf]
    tell(
        log, *(done(i, loss) for i, loss in enumerate(odd, 1)), replace(done(4), loss=np.float32(0.5), step=np.int64(4))
    )
    lines = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == ["NaN", "Infinity", "-Infinity", 0.5]
    found = [event.loss for event in logs.read(log.path) if isinstance(event, Step)]
    assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf, 0.5]


@pytest.mark.parametrize("torn", [b"", b'{"event": "step", "st', b"\0" * 40, b'\0\0\n{"event"\n'])
def test_a_killed_run_goes_on_where_its_checkpoint_is(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / logs.NAME
    tell(logs.Log(path), begun(), *(done(i) for i in range(1, 6)), Evaluation(5, 2.5, 9, True), Saved(5, Path("c")))
    tell(logs.Log(path), done(6), done(7))
    with path.open("ab") as file:
        file.write(torn)
    tell(logs.Log(path), begun(5), *(done(i, 1.0) for i in (6, 7, 8)))
    steps = [(event.step, event.loss) for event in logs.read(path) if isinstance(event, Step)]
    assert [i for i, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [loss for _, loss in steps[5:]] == [1.0, 1.0, 1.0]
    assert sum(isinstance(event, Evaluation | Saved) for event in logs.read(path)) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_run_from_the_beginning_begins_a_log(tmp_path: Path) -> None:
    path = tmp_path / logs.NAME
    tell(logs.Log(path), begun(), Evaluation(0, 9.0, 9, True), done(1))
    tell(logs.Log(path), begun(), done(1))
    assert len(list(logs.read(path))) == 2


def test_a_log_is_read_while_its_last_line_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / logs.NAME
    tell(logs.Log(path), begun(), done(1))
    with path.open("ab") as file:
        file.write(b'{"event": "step"')
    assert len(list(logs.read(path))) == 2


@pytest.mark.parametrize(
    "line", ["{}", "[]", "no json", '{"event": "step"}', '{"event": "step", "step": 1, "loss": "x"}']
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / logs.NAME
    tell(logs.Log(path), begun())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FormatError, match=r"log\.jsonl, line 2, is no event"):
        list(logs.read(path))


def test_fields_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / logs.NAME
    path.write_text('{"event": "saved", "step": 3, "path": "a/b", "digest": "00"}\n')
    assert list(logs.read(path)) == [Saved(3, Path("a/b"))]


# TensorBoard


def slow_crc(data: bytes) -> int:
    """CRC-32C by long division, bit for bit, without a table and not reflected: nothing in common with ours."""
    bits = [byte >> i & 1 for byte in data for i in range(8)] + [0] * 32
    bits[:32] = [bit ^ 1 for bit in bits[:32]]
    polynomial = [1] + [0x1EDC6F41 >> i & 1 for i in reversed(range(32))]
    for i in range(len(bits) - 32):
        if bits[i]:
            bits[i : i + 33] = [a ^ b for a, b in zip(bits[i : i + 33], polynomial, strict=True)]
    return sum((bit ^ 1) << i for i, bit in enumerate(bits[-32:]))


def unmasked(stored: bytes) -> int:
    turned = (int.from_bytes(stored, "little") - 0xA282EAD8) % 2**32
    return (turned << 15 | turned >> 17) % 2**32


def records(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert unmasked(data[8:12]) == slow_crc(data[:8])
        payload = data[12 : 12 + length]
        assert unmasked(data[12 + length : 16 + length]) == slow_crc(payload)
        yield payload
        data = data[16 + length :]


def message(data: bytes) -> dict[int, list[object]]:
    """The fields of a protobuf by number."""

    def varint() -> int:
        nonlocal data
        value = shift = 0
        while True:
            byte, data = data[0], data[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found: dict[int, list[object]] = {}
    while data:
        key = varint()
        if key & 7 == 0:
            value: object = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            value, data = data[:size], data[size:]
        found.setdefault(key >> 3, []).append(value)
    return found


def test_the_checksum_is_castagnolis() -> None:
    assert tensorboard.crc32c(b"123456789") == 0xE3069283  # the check value of every catalogue of checksums
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert slow_crc(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(b"") == 0


def test_event_files_hold_what_event_proto_says(tmp_path: Path) -> None:
    board = tensorboard.TensorBoard(tmp_path, clock=lambda: 1_700_000_000.5)
    tell(board, *whole_run())
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("events.out.tfevents.1700000000.")
    events = [message(record) for record in records(path)]
    assert events[0][3] == [b"brain.Event:2"]
    assert all(struct.unpack("<d", event[1][0]) == (1_700_000_000.5,) for event in events)
    steps = [event for event in events if 5 in event and b"train/loss" in event[5][0]]
    assert [event[2] for event in steps] == [[i] for i in range(1, 11)]
    values = {one[1][0]: one for one in map(message, message(steps[0][5][0])[1])}
    assert struct.unpack("<f", values[b"train/loss"][2][0])[0] == pytest.approx(2.9)
    assert struct.unpack("<f", values[b"train/tokens_per_second"][2][0]) == (4096.0,)
    assert struct.unpack("<f", values[b"train/margin"][2][0]) == (0.25,)


def test_numbers_beyond_float32_do_not_stop_the_run(tmp_path: Path) -> None:
    tell(tensorboard.TensorBoard(tmp_path), begun(), done(1, 1e300), done(2, math.nan), done(3, -1e300))


def test_files_of_one_run_sort_in_their_order(tmp_path: Path) -> None:
    for step in (0, 3, 5):
        tell(tensorboard.TensorBoard(tmp_path, clock=lambda: 7.0), begun(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    sessions = [message(message(list(records(tmp_path / name))[1])[7][0]) for name in names]
    assert sessions == [{1: [1]}] * 3
    starts = [message(list(records(tmp_path / name))[1])[2] for name in names]
    assert starts == [[0], [4], [6]]  # all of a run begun anew, or what comes after the checkpoint, counts no more


def test_tensorboard_reads_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="reads what was written; pip install tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))  # its own reader, not TF's
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    tell(tensorboard.TensorBoard(tmp_path), begun(), *(done(i) for i in range(1, 6)), Evaluation(5, 2.0, 9, True))
    tell(tensorboard.TensorBoard(tmp_path), begun(3), *(done(i, 1.5) for i in range(4, 7)), Evaluation(6, 1.0, 9, True))
    tell(board := tensorboard.TensorBoard(tmp_path), begun(6), Sample(6, "Who?", "*I*\n# am"))
    assert board.folder == tmp_path
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    loss = {event.step: event.value for event in found.Scalars("train/loss")}
    assert list(loss) == [1, 2, 3, 4, 5, 6]
    assert [loss[i] for i in (3, 4, 5, 6)] == pytest.approx([2.7, 1.5, 1.5, 1.5])
    assert [event.step for event in found.Scalars("eval/loss")] == [6]
    (text,) = found.Tensors("sample/2")
    assert make_ndarray(text.tensor_proto).reshape(-1)[0].decode().endswith("    *I*\n    # am")
    assert found.SummaryMetadata("sample/2").plugin_data.plugin_name == "text"


# loss.svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_picture_is_svg_that_tells_the_run() -> None:
    svg = curve.draw(whole_run())
    assert {"Tuning gemma3:270m", "loss, nats a token", "learning rate", "1e-4", "10", "2.000"} <= set(texts(svg))
    assert "over 10 steps; validation loss at best 2.000, at step 10." in svg
    assert "prefers-color-scheme: dark" in svg
    coordinates = [
        float(x)
        for line in ET.fromstring(svg).iter(f"{SVG}polyline")
        for x in line.get("points", "").replace(",", " ").split()
    ]
    assert len(coordinates) > 40
    assert all(0 <= x <= curve.WIDTH for x in coordinates)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_picture_of_hardly_any_run_is_whole(count: int) -> None:
    ET.fromstring(curve.draw([begun(), *(done(i, 2.0) for i in range(1, count + 1))]))
    ET.fromstring(curve.draw([done(i, 0.0) for i in range(1, count + 1)], "a < b & c"))
    ET.fromstring(curve.draw([Evaluation(0, math.nan, 3, False), *(done(i, math.inf) for i in range(1, count + 1))]))
    ET.fromstring(curve.draw([Evaluation(0, 2.0, 3, True)]))


def test_a_long_run_makes_a_small_picture_and_a_spike_does_not_press_it_flat() -> None:
    def heights(svg: str) -> list[float]:
        line = next(ET.fromstring(svg).iter(f"{SVG}polyline"))
        return [float(pair.split(",")[1]) for pair in line.get("points", "").split()]

    calm = [done(i, 3 - i / 20_000, 20_000) for i in range(1, 20_001)]
    spiky = [replace(one, loss=500.0) if one.step == 9000 else one for one in calm]
    svg = curve.draw(spiky)
    assert len(svg) < 80_000
    assert max(heights(svg)) - min(heights(svg)) > 200
    assert heights(curve.draw(calm))[-1] == pytest.approx(heights(svg)[-1], abs=3)
    assert 'class="stray"' in svg and 'class="stray"' not in curve.draw(calm)


def test_steps_taken_again_are_drawn_as_they_came_out_last() -> None:
    again = [begun(), *(done(i, 5.0) for i in range(1, 9)), begun(3), *(done(i, 2.0) for i in range(1, 11))]
    assert curve.draw(again) == curve.draw([begun(), begun(3), *(done(i, 2.0) for i in range(1, 11))])


def test_the_picture_is_drawn_at_evaluations_and_at_the_end(tmp_path: Path) -> None:
    path, log = tmp_path / curve.NAME, logs.Log(tmp_path / logs.NAME)
    listeners = Listeners([log, curve.Picture(path, lambda: logs.read(log.path))], say=pytest.fail)
    tell(listeners, begun(), done(1))
    assert not path.exists()
    tell(listeners, Evaluation(1, 2.0, 9, True))
    first = path.read_text()
    tell(listeners, done(2), Finished("done", 2, 1.0))
    assert ET.fromstring(path.read_text()) is not None and path.read_text() != first


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1.3, 3.6, [1.5, 2, 2.5, 3, 3.5]), (0, 0.001, [0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert curve._Scale(low, high, 0, 1).ticks(5) == pytest.approx(expected)


# README.md


def facts(**changes: object) -> card.Facts:
    sources = [card.DataFile("/home/joe/a.jsonl", "ab" * 32, 120, licence="CC-BY-4.0")]
    recipe = replace(RECIPE, data=Data(train=("/home/joe/a.jsonl", "hf:some/set/main:train")))
    given = {"recipe": recipe, "base": "google/gemma-3-270m", "licence": GEMMA_TERMS, "data": sources}
    return card.Facts(**(given | {"counts": {"documents dropped, too long": 1200}} | changes))


def front(text: str) -> dict[str, object]:
    return plain_yaml.loads(text.split("---\n")[1], "the card")


def test_the_card_has_the_front_matter_of_pefts_cards() -> None:
    assert front(card.card(facts(), whole_run())) == {
        "base_model": "google/gemma-3-270m",
        "library_name": "peft",
        "license": "gemma",
        "datasets": ["some/set"],
        "pipeline_tag": "text-generation",
        "tags": ["geode", "sft", "lora"],
    }


def test_what_the_hub_would_refuse_is_left_out_of_the_front_matter() -> None:
    other = replace(GEMMA_TERMS, name="Mine", url="https://example.org")
    recipe = Recipe(model="/home/joe/model", method=Full(), objective=Objective("dpo"))
    text = card.card(facts(recipe=recipe, base="", licence=other), whole_run())
    assert front(text) == {
        "library_name": "transformers",
        "license": "other",
        "license_name": "Mine",
        "license_link": "https://example.org",
        "pipeline_tag": "text-generation",
        "tags": ["geode", "dpo"],
    }
    assert "perplexity" not in text


def test_the_card_tells_the_run_and_nothing_of_the_machine() -> None:
    text = card.card(facts(), whole_run())
    assert "| before | 0 | 3.5000 | 33.12 | 500 |  |" in text
    assert "| best | 10 | 2.0000 | 7.389 | 500 | 0.5 |" in text
    assert f"| `a.jsonl` | training | 120 | CC-BY-4.0 | `{'ab' * 32}` |" in text
    assert "documents dropped, too long: 1,200" in text
    assert "1,000 of 50,000 (2.00%)" in text
    assert "Gemma Terms of Use" in text
    assert "````\nBecause |\n```\nso\n````" in text  # as it came, whatever is in it
    assert "/home" not in text


def test_further_tables_are_shown() -> None:
    table = card.Table("Short answers", ["", "base", "tuned"], [["accuracy", "0.1 | 5", "0.4"]], "120 questions.")
    assert "| accuracy | 0.1 \\| 5 | 0.4 |\n\n120 questions." in card.card(facts(tables=[table]), whole_run())


@pytest.mark.parametrize("method", [Lora(dora=True), Lora(rslora=True, quantize="int4"), Full(("blk.*",))])
def test_the_card_names_the_method(method: Lora | Full) -> None:
    text = card.card(facts(recipe=replace(RECIPE, method=method)), [])
    words = {"dora": "DoRA", "rslora": "rsLoRA", "quantize": "int4"}
    for name, word in words.items():
        assert (word in text) == bool(getattr(method, name, False))
    assert ("rank 16" in text) == isinstance(method, Lora)


def test_the_terms_are_passed_on(tmp_path: Path) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    out.mkdir()
    base.mkdir()
    (base / "LICENSE").write_text("theirs")
    (out / "NOTICE").write_text("Made by Them.\n")
    told = facts(licence=replace(GEMMA_TERMS, files=(str(base / "LICENSE"),)))
    for _ in range(2):
        card.write(out, told, whole_run())
    notice = (out / "NOTICE").read_text()
    assert notice.startswith(
        "Made by Them.\n\nGemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    )
    assert notice.count("was fine-tuned") == 1
    assert (out / "LICENSE").read_text() == "theirs"
    assert "loss.svg" not in (out / card.NAME).read_text()  # there is no picture here


# Listeners


class Broken(Silent):
    name = "log.jsonl"
    told = 0

    def step(self, event: Step) -> None:
        self.told += 1
        raise OSError("No space left on device.")


def test_a_listener_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    broken, log = Broken(), logs.Log(tmp_path / logs.NAME)
    tell(Listeners([broken, log], said.append), *whole_run())
    assert said == ["log.jsonl is not written any further, the run goes on: No space left on device."]
    assert broken.told == 1
    assert list(logs.read(log.path)) == whole_run()


def test_an_interrupt_is_no_failure_of_a_listener() -> None:
    class Interrupted(Silent):
        def step(self, event: Step) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell(Listeners([Interrupted()], pytest.fail), done(1))


def test_a_folder_that_is_gone_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    gone = tmp_path / "gone"
    tell(Listeners([logs.Log(gone / "log.jsonl"), curve.Picture(gone / "loss.svg", list)], said.append), *whole_run())
    assert len(said) == 2
    assert said[0].startswith("log.jsonl is not written")


# The screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO, events: list[Event], seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    now = iter(i * seconds for i in range(1000))
    tell(Screen(out=out, clock=lambda: next(now)), *events)
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_lines_come_at_most_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Event] = [done(i, steps=100) for i in range(1, 101)]
    text = shown(io.StringIO(), [begun(steps=100), *steps], 1.0, monkeypatch)
    lines = text.splitlines()
    assert lines[0] == "torch, float32, CPU; 1,000 numbers trained (2.00% of 50,000); 100 steps."
    assert lines[1] == "step 1/100  epoch 0.20  loss 2.9000  3.0 MB"
    assert lines[2] == "step 6/100  epoch 1.20  loss 2.4000  4,096 tokens/s  3.0 MB  1:34 left"
    assert lines[-1].startswith("step 100/100")
    assert len(lines) == 22
    assert "\r" not in text


def test_a_terminal_has_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), whole_run(), 1.0, monkeypatch)
    assert text.count("\rstep") + text.count("\r[") == 10
    final = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    assert "Step 10: validation loss 2.0000 over 500 tokens, accuracy 0.5, the best so far." in final
    assert "Step 10: saved as out/step-10." in final
    assert "All 10 steps done after 1:01. Best validation loss 2.0000, at step 10." in final
    assert all(len(piece) < 120 for piece in text.replace("\n", "\r").split("\r"))


def test_a_model_does_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), [Sample(1, "Hi", "\x1b[2Jgone\nnext")], 1.0, monkeypatch)
    assert "\x1b" not in text
    assert "  > Hi\n" in text and "  | [2Jgone\n" in text and "  | next\n" in text


def test_a_quiet_screen_says_nothing() -> None:
    out = Terminal()
    tell(Screen(quiet=True, out=out), *whole_run())
    assert out.getvalue() == ""


@pytest.mark.parametrize("reason", ["done", "early", "interrupted", "failed"])
def test_every_end_is_told(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(
        io.StringIO(),
        [Finished(reason, 7, 3.0, message="loss is not finite" if reason == "failed" else "")],
        1.0,
        monkeypatch,
    )
    assert "7" in text and "0:03" in text
    assert ("loss is not finite" in text) == (reason == "failed")
