"""CUDA C++ source -> C++ for a CPU: shared memory, and inline PTX as calls of functions named after instructions."""

from __future__ import annotations

import re

_INSTRUCTION = re.compile(r"(?<![.\w])([a-z_]\w*(?:(?:\.|::)\w+)+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SHARED = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?unsigned char (\w+)\[\];")
_STATIC_SHARED = re.compile(r"__shared__ ")


def translate(source: str) -> str:
    """Flattened kernel source -> C++ that includes `ptx.hpp`."""
    source = _SHARED.sub(r"unsigned char* const \1 = emulator::shared + emulator::DYNAMIC_START;", source)
    source = _STATIC_SHARED.sub("static ", source)  # blocks run one after another
    return '#include "ptx.hpp"\n' + _translate_asm(source)


def _translate_asm(source: str) -> str:
    parts: list[str] = []
    at = 0
    for match in re.finditer(r"\basm(?: volatile)?\s*\(", source):
        end = _closing(source, match.end())
        parts += [source[at : match.start()], _call(source[match.end() : end])]
        at = end + 1
    return "".join([*parts, source[at:]])


def _closing(text: str, at: int) -> int:
    """Index of the parenthesis that closes the one before `at`, strings skipped."""
    depth = 1
    while depth:
        if text[at] == '"':
            match = _STRING.match(text, at)
            assert match is not None
            at = match.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at - 1


def _call(body: str) -> str:
    """`"instruction ..." : outputs : inputs : clobbers` -> `instruction(outputs, inputs)`."""
    sections = _split(body, ":")
    template = " ".join(_STRING.findall(sections[0])).replace("\\n", " ")
    operands = [
        piece[piece.index("(") + 1 : piece.rindex(")")]
        for section in sections[1:3]
        for piece in _split(section, ",")
        if "(" in piece
    ]
    names = [name for name in _INSTRUCTION.findall(template) if not name.startswith("setp")]
    if not names:
        assert not template.strip(), template
        return "(void)0"
    order = [int(i) for i in re.findall(r"%(\d+)", template)]
    first_seen = list(dict.fromkeys(order))
    assert sorted(first_seen) == list(range(len(operands))), f"{names[0]}: operands {order}"
    name = re.sub(r"\W+", "_", names[0])
    return f"{name}({', '.join(operands)})"


def _split(text: str, separator: str) -> list[str]:
    """Split outside strings and parentheses."""
    pieces, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == '"':
            match = _STRING.match(text, at)
            assert match is not None
            at = match.end()
            continue
        depth += {"(": 1, ")": -1, "[": 1, "]": -1, "{": 1, "}": -1}.get(text[at], 0)
        if text[at] == separator and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
        at += 1
    return [*pieces, text[start:]]
