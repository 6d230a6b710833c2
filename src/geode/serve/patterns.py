"""Regular expressions of JSON schemas, as llguidance's library reads them, and the formats of texts that they spell.

What a schema is, is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError

MAX_PATTERN = 16 << 10  # bytes of a regular expression
MAX_REPEATS = 5000  # of parts of a pattern; 10,000 take some 100 ms a token

_LEAP = "([0-9]{2}([2468][048]|0[48]|[13579][26])|([02468][048]|[13579][26])00)-02-29"
_MONTHS = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"([0-9]{{4}}-({_MONTHS})|{_LEAP})"
_TIME = "([^:]*:){2}[0-5]"  # leap seconds come at few times only
_LETTER = "([A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PLAIN = "([^.]{1,2}|[^.]{2}-?[^.-][^.]*)"  # none that is coded for other scripts: xn--
_HOST = f"https?://{_LABEL}(\\.{_LABEL}){{0,3}}"
_AFTER = f"(\\?({_LETTER}|[:/?])*)?(#({_LETTER}|[:/?])*)?"
_REFERENCE = f"^({_HOST}(/{_LETTER}*)*|/?({_LETTER}+(/{_LETTER}*)*)?){_AFTER}$"
_POINTER = "(/([^/~]|~[01])*)*"
_BASE64 = "([A-Za-z0-9%s]{4})*([A-Za-z0-9%s][AQgw]==|[A-Za-z0-9%s]{2}[AEIMQUYcgkosw048]=)?"

# name: (llguidance's own format or None, what must hold besides). llguidance allows more than checkers of formats do:
# the 29th of February in any year, leap seconds at any time, parts of addresses of any length. International addresses
# and names keep to ASCII.
FORMATS: dict[str, tuple[str | None, *tuple[str, ...]]] = {
    "date": ("date", f"^{_DATE}"),
    "time": ("time", f"^{_TIME}"),
    "date-time": ("date-time", f"^{_DATE}.{_TIME}"),
    **dict.fromkeys(("email", "idn-email"), ("email", "^[^@]{1,64}@[^@]{1,63}$")),
    **dict.fromkeys(("hostname", "idn-hostname"), ("hostname", "^.{1,253}$", f"^{_PLAIN}(\\.{_PLAIN})*$")),
    **{name: (name,) for name in ("duration", "ipv4", "ipv6", "uuid", "uri")},
    **dict.fromkeys(("iri", "url"), ("uri",)),
    **dict.fromkeys(("uri-reference", "iri-reference"), (None, _REFERENCE)),
    "uri-template": (None, f"^({_HOST})?(/({_LETTER}|\\{{[A-Za-z0-9_]+\\}})*)*$"),
    "json-pointer": (None, f"^{_POINTER}$"),
    "relative-json-pointer": (None, f"^(0|[1-9][0-9]*)(#|{_POINTER})$"),
    **dict.fromkeys(("byte", "base64"), (None, f"^{_BASE64.replace('%s', '+/')}$")),
    **{f"uuid{n}": ("uuid", f"^.{{14}}{n}.{{4}}[89abAB]") for n in range(1, 9)},
    "base64url": (None, f"^{_BASE64.replace('%s', '_-')}$"),
}
NAMES = {  # as a whole, for names of properties
    "uuid": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    "date": f"^{_DATE}$",
}
# OpenAPI's formats of numbers, and those that say what a text is for, not how it looks.
RANGES = {
    **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
}
FREE = {"float", "double", "password", "binary", "path", "file-path", "directory-path", "text", "textarea", "markdown"}

BOUNDS = r"(?P<low>\d+)(,(?P<high>\d*))?"
ATOM = re.compile(rf"\\.|\[\^?\]?([^\]\\]|\\.)*\]|\((\?[^)]*?:)?|\)|\{{{BOUNDS}\}}|.", re.DOTALL)
COUNT = re.compile(r"(\{|~\s*)(?P<low>\d+)((,|\.\.)(?P<high>\d*))?")
PAIR = r"\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
ESCAPE = re.compile(rf"{PAIR}|\\u(?P<code>[0-9a-fA-F]{{4}})|\\c(?P<control>[A-Za-z])|\\.", re.DOTALL)
CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # what only \u spells in JSON
CODE = r"\\v|\\a|\\x(0[0-7bB]|0[eEfF]|1.|7[fF])|\\x\{0*([0-7bBeEfF]|1.|7[fF])\}|[\x00-\x07\x0b\x0e-\x1f\x7f]"
LONE = re.compile(rf"({CODE})|\[({CODE})\]")
PART = re.compile(r"\\x\{[^}]*\}|\\x..|\\.|\[\^?([^\]\\]|\\.)*\]|.", re.DOTALL)
SPACES = r"\t\n\x0b\x0c\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"


def ecma(pattern: str) -> str:
    """A pattern of JSON schemas, which are JavaScript's, in the notation of Rust's `regex`; where the two differ over
    white space and line ends, it matches what is right for both."""
    return PART.sub(lambda found: _part(found[0]), ESCAPE.sub(_escape, pattern))


def name_pattern(rule: Any) -> str | None:
    """A pattern for what a schema says of names; None where there is none for it. Raises OptionError."""
    if not isinstance(rule, Mapping) or rule.get("type", "string") != "string":
        return None
    words = {word: value for word, value in rule.items() if word not in ("type", "title", "description")}
    if set(words) == {"pattern"} and isinstance(words["pattern"], str):
        check_pattern(words["pattern"])
        return ecma(words["pattern"])
    if set(words) == {"format"}:
        return NAMES.get(str(words["format"]))
    low, high = words.pop("minLength", 0), words.pop("maxLength", "")
    if words or not isinstance(low, int) or not isinstance(high, int | str):
        return None
    pattern = f"^(?s:.{{{low},{high}}})$"
    check_pattern(pattern)
    return pattern


def check_pattern(pattern: str) -> None:
    """Raises OptionError for a regular expression that is too long or repeats too much."""
    check_size(pattern, "regular expression", MAX_PATTERN)
    check_repeats(_repeats(pattern), "regular expression")


def check_size(text: str, what: str, limit: int) -> None:
    """Raises OptionError for a text of more bytes."""
    size = len(text.encode(errors="replace"))
    if size > limit:
        raise OptionError(f"The {what} has {size} bytes; at most {limit} are taken. Make it smaller.")


def check_repeats(count: int, what: str) -> None:
    """Raises OptionError for parts that are repeated too often by counts."""
    if count > MAX_REPEATS:
        raise OptionError(
            f"The {what} repeats its parts {count} times by counts like {{n,m}}; at most {MAX_REPEATS} are taken. "
            "Use smaller counts, or * and +."
        )


def largest(found: re.Match[str]) -> int:
    """The larger bound of a repetition; one of more digits than any limit counts as that many nines."""
    return max(int(digits[:9]) for digits in (found["low"], found["high"] or "0"))


def _escape(found: re.Match[str]) -> str:
    if found["high"]:
        return f"\\x{{{0x10000 + ((int(found['high'], 16) & 0x3FF) << 10) + (int(found['low'], 16) & 0x3FF):x}}}"
    if found["code"]:
        return f"\\x{{{found['code']}}}"
    return f"\\x{{{ord(found['control']) % 32:x}}}" if found["control"] else found[0]


def _part(part: str) -> str:
    if LONE.fullmatch(part) or CONTROL.fullmatch(part):
        return "[a&&b]"  # llguidance would leave it out: nothing is written so in JSON here
    if part == ".":
        return r"[^\n\r\x{2028}\x{2029}]"
    if part == r"\s":
        return f"[{SPACES}]"
    if part == r"\S" or part.startswith("[^"):
        return r"[^\s\x{feff}]" if part == r"\S" else part.replace(r"\s", r"\s\x{feff}")
    return part.replace(r"\s", SPACES) if part.startswith("[") else part


def _repeats(pattern: str) -> int:
    """How many parts a pattern has at most once its counted repetitions are written out."""
    sums, last, at = [0], 0, 0
    while at < len(pattern):
        found = ATOM.match(pattern, at)
        at = found.end() if found else at + 1
        mark = pattern[found.start()] if found else ""
        if mark == "(":
            sums.append(0)
        elif mark == ")" and len(sums) > 1:
            last = sums.pop()
            sums[-1] += last
        elif found and found["low"]:
            sums[-1] += last * (max(largest(found), 1) - 1)
        else:
            last = 1
            sums[-1] += 1
    return sum(sums)
