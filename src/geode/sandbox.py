"""A chat template's program, run where it can neither reach out nor run on: Jinja, sandboxed and metered.

Messages, tokens and models are not known here. Templates come with checkpoints, from strangers. Jinja's sandbox keeps
them from Python; the meter keeps them from time and memory: every turn of a loop, every call and every character that
an expression makes is counted, and a template that goes beyond the limits is stopped. The dialect (extensions,
filters, functions) is that of transformers' utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from .errors import ChatError

STEPS = 500_000  # turns of loops, calls, elements looked at
CHARACTERS = 300_000_000  # made or looked at
SOURCE = 1_000_000  # characters of a template
DIGITS = 1 << 14  # bits of an integer

_METER = "geode-meter"  # names that no template can spell
_SPAN = "geode-span"


class TooMuch(jinja2.TemplateError):
    """The meter's limit."""


class Meter:
    """What one rendering has spent."""

    def __init__(self) -> None:
        self.steps = self.characters = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise TooMuch(f"it takes more than {STEPS:,} steps")

    def charge(self, characters: int) -> None:
        self.characters += characters
        if self.characters > CHARACTERS:
            raise TooMuch(f"it makes more than {CHARACTERS:,} characters")

    def weigh(self, value: Any) -> None:
        """Charges for a value as large as it is written out, however its parts are shared."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                self.charge(len(value))
            elif isinstance(value, list | tuple | dict | set):
                self.charge(len(value))
                self.step()
                waiting += [*value, *value.values()] if isinstance(value, dict) else value


class Program:
    """A compiled template. Raises ChatError when the source is no template."""

    def __init__(self, source: str):
        if len(source) > SOURCE:
            raise ChatError(f"A chat template of {len(source):,} characters is too long; at most {SOURCE:,} are read.")
        self._environment = _Environment()
        try:
            tree = _Metering(self._environment).visit(self._environment.parse(source))
            code = self._environment.compile(tree)
            self._template = self._environment.template_class.from_code(
                self._environment, code, self._environment.make_globals(None)
            )
        except Exception as problem:
            raise ChatError(
                f"The chat template is not one that Jinja reads: {_words(problem)}. Use another template."
            ) from None

    def render(self, variables: Mapping[str, Any], span: tuple[str, str] = ("", "")) -> str:
        """The text, `span` around what {% generation %} blocks hold. Raises ChatError with the template's words."""
        try:
            return self._template.render({**variables, _METER: Meter(), _SPAN: span})
        except TooMuch as problem:
            raise ChatError(f"The chat template was stopped: {problem}. Use another template.") from None
        except Exception as problem:  # whatever a stranger's program may raise
            raise ChatError(f"The chat template refuses this conversation: {_words(problem)}") from None


def _words(problem: Exception) -> str:
    words = str(problem).strip() or type(problem).__name__
    if isinstance(problem, jinja2.TemplateSyntaxError):
        return f"{words} (line {problem.lineno})"
    return words if isinstance(problem, jinja2.TemplateError) else f"{type(problem).__name__}: {words}"


# The language


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what the assistant wrote."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_spanned"), [], [], body).set_lineno(line)

    @pass_context
    def _spanned(self, context: Context, caller: Callable[[], str]) -> str:
        start, end = context.get(_SPAN)
        return f"{start}{caller()}{end}"


class _Names(Namespace):
    """`namespace()`, without the names by which a template could reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name one of its values `self`
        for name in dict(*args[1:], **kwargs):
            _allowed(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _allowed(name)
        super().__setitem__(name, value)


def _allowed(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.TemplateError(f"a namespace has no place for {name!r}: it begins with an underscore")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_finalize
        )
        del self.globals["lipsum"], self.filters["urlize"]
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Names}
        self.filters["tojson"] = _tojson
        filters: Any = self.filters
        tests: Any = self.tests
        self.filters = {name: _metered(name, function) for name, function in filters.items()}
        self.tests |= {name: _metered(name, tests[name]) for name in COMPARING}
        self.filters |= {"geode-each": _each, "geode-weighed": _weighed, "geode-charged": _charged, "geode-join": _join}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter: Meter = context.get(_METER)
        meter.step()
        meter.charge(_bound(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter: Meter = __context.get(_METER)
        meter.step()
        meter.weigh([*args, *kwargs.values()])
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            meter.charge(_grown(name, owner, [*args, *kwargs.values()]) if name in GROWING else len(owner))
        elif isinstance(owner, list | tuple):
            meter.weigh(owner)
        return super().call(__context, __obj, *args, **kwargs)


class _Metering(NodeTransformer):
    """Puts the meter's filters where a template repeats, joins, compares, copies or writes."""

    def __init__(self, environment: jinja2.Environment):
        self.environment = environment

    def _filtered(self, node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, list(args), [], None, None)
        return made.set_environment(self.environment).set_lineno(node.lineno)  # type: ignore[return-value]

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, "geode-each")  # type: ignore[arg-type]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filtered(nodes.List(node.nodes).set_lineno(node.lineno), "geode-join")  # type: ignore[arg-type]

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._filtered(node.expr, "geode-weighed")
        for operand in node.ops:
            operand.expr = self._filtered(operand.expr, "geode-weighed")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filtered(node.node, "geode-charged")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        written = sum(len(each.data) for each in node.nodes if isinstance(each, nodes.TemplateData))
        if written:
            nothing = nodes.Const("").set_lineno(node.lineno)
            node.nodes.insert(0, self._filtered(nothing, "geode-charged", nodes.Const(written)))  # type: ignore[arg-type]
        return node


# The meter's filters

FLAT = frozenset(
    "attr count d default first items last length list map reject rejectattr reverse select selectattr".split()
)
"""Filters that pass the elements of a list on without looking into them."""

FORMATTING = frozenset({"%", "format", "format_map"})

GROWING = (
    FORMATTING
    | {"batch", "slice", "center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap"}
    | {
        "join",
        "replace",
    }
)
"""Filters and methods of strings whose result can be far larger than what they are given."""

COMPARING = frozenset({"!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "gt", "in", "le", "lt", "ne"}) | {
    "greaterthan",
    "lessthan",
}


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is charged for what it is given and for what it makes."""
    wants = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def metered(context: Context, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.get(_METER)
        meter.step()
        if name not in FLAT:
            meter.weigh([value, *args, *kwargs.values()])
        if name in GROWING:
            meter.charge(_grown(name, value, [*args, *kwargs.values()]))
        before = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = () if wants is None else (before[wants.name],)
        made = function(*first, value, *args, **kwargs)
        if isinstance(made, str):
            meter.charge(len(made))
        return made

    return metered


@pass_context
def _each(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    meter: Meter = context.get(_METER)
    for item in items:
        meter.step()
        yield item


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    context.get(_METER).weigh(value)
    return value


@pass_context
def _charged(context: Context, value: Any, characters: int = 0) -> Any:
    context.get(_METER).charge(characters or _length(value))
    return value


@pass_context
def _join(context: Context, parts: list[Any]) -> str:
    context.get(_METER).weigh(parts)
    return "".join(map(str, parts))


@pass_context
def _finalize(context: Context, value: Any) -> str:
    context.get(_METER).weigh(value)
    return str(value)


def _bound(operator: str, left: Any, right: Any) -> int:
    """The most characters, elements or bits that the result of an operator can have."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
        if bits > DIGITS:
            raise TooMuch("it computes with numbers of thousands of digits")
        return 0
    if operator == "*":
        return _size(left) * _size(right)
    if operator == "%" and isinstance(left, str):
        return _grown("%", left, right if isinstance(right, tuple) else (right,))
    return _length(left) + _length(right)


def _grown(name: str, value: Any, args: Iterable[Any]) -> int:
    """The most characters of a string that this filter or method makes."""
    parts = list(args)
    if name in FORMATTING and isinstance(value, str):
        widths = [int(width) for width in re.findall(r"\d{5,18}", value)]
        takes_widths = re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*\{", value)
        return max([len(value), *widths, *(_size(part) for part in parts if takes_widths)])
    return max(1, _length(value)) * (1 + sum(map(_size, parts)))


def _size(value: Any) -> int:
    return abs(value) if isinstance(value, int) else _length(value)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


# What templates may call


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    meter: Meter = context.get(_METER)
    meter.charge(indent if isinstance(indent, int) else 0)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts = []
    for part in encoder.iterencode(value):
        meter.charge(len(part))
        parts.append(part)
    return "".join(parts)
