"""Completion text to actions: character spans by line, by sentence, by token, by pattern, or the whole.

An action is what the policy is scored on as one step (P3, arXiv 2408.05541, stage I). The spans of a text are
contiguous and cover it, so every character, and with it every token, belongs to exactly one action.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

_BREAK = r"(?:\r\n|\n|\r)"
_BREAKS = rf"{_BREAK}(?:[^\S\r\n]*{_BREAK})*"  # a line break and the blank lines after it


def spans(text: str, rule: str) -> NDArray[np.int64]:
    r"""Cut a text into actions.

    Rules:
        line: a line with its break (``\r\n``, ``\n`` or ``\r``) and the blank lines after it; blank lines at the
            start belong to the first line, indentation to the line that it indents.
        sentence: a sentence with the white space after it. Line breaks end a sentence too, except around the
            display math that stands in it; math, LaTeX environments and fenced code are never cut.
        token: one span per character (:mod:`p3select.tokens` makes one action per token).
        whole: the whole text.
        re:PATTERN: each match of the regular expression ends an action; a match of width zero cuts where it is.

    Args:
        text: The text to cut.
        rule: One of the rules above.

    Returns:
        Array (a, 2) of [start, end) character positions: contiguous, from 0 to ``len(text)``, none empty;
        (0, 2) for an empty text.

    Raises:
        InputError: The rule is unknown, or its pattern is not a regular expression.
    """
    inner = np.array(list(_cuts(text, rule)), np.int64)
    edges = np.concatenate(([0], inner, [len(text)]))
    return np.stack((edges[:-1], edges[1:]), axis=1) if text else np.empty((0, 2), np.int64)


def _cuts(text: str, rule: str) -> Iterable[int]:
    """The positions strictly inside the text at which it is cut, ascending."""
    if rule == "line":
        return _inside(text, (match.end() for match in re.finditer(_BREAKS, text)))
    if rule == "sentence":
        return _inside(text, _sentence_ends(text))
    if rule == "token":
        return range(1, len(text))
    if rule == "whole":
        return ()
    if rule.startswith("re:") and len(rule) > len("re:"):
        try:
            matches = re.finditer(rule.removeprefix("re:"), text)
        except re.error as error:
            raise InputError(
                f"actions={rule!r}: {rule.removeprefix('re:')!r} is not a regular expression: {error}"
            ) from None
        return sorted({match.end() for match in matches} - {0, len(text)})
    raise InputError(f"actions={rule!r}: unknown rule; use line, sentence, token, whole or re:PATTERN")


def _inside(text: str, ends: Iterable[int]) -> Iterator[int]:
    """The cuts with something other than white space on both sides."""
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    return (end for end in ends if first < end < last)


# Sentences are found in a copy of the text, of the same length, in which each formula, environment and code block
# is overwritten with private characters, so that nothing inside it looks like an end.
_INLINE, _DISPLAY, _CODE = "\ue000", "\ue001", "\ue002"
_ENDED = "\ue003"  # the last character of a formula that ends with a full stop, as in "$x = 5.$ Then"

_OPENER = re.compile(
    r"(?P<code>```)|(?P<display>\$\$|\\\[|\\begin\{(?P<environment>[A-Za-z]+\*?)\}|\[asy\])"
    r"|(?P<inline>\\\(|\$)|\\.",  # the last: any other escape, such as \$, opens nothing
    re.DOTALL,
)
_CLOSER = {"```": "```", "$$": "$$", r"\[": r"\]", r"\(": r"\)", "[asy]": "[/asy]"}
_DOLLARS = re.compile(r"\$((?:[^$\\]|\\.)+)\$", re.DOTALL)
_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|operatorname)[a-z]*\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(rf"(?<![A-Za-z])[A-Za-z]{{2,}}[,;]?\s+[A-Za-z]{{2,}}|[.!?]\s+[A-Z][a-z]|{_BREAK}\s*?{_BREAK}")
_FULL_STOP = re.compile(r"(?<![.\\])(?<!\\left)(?<!\\right)\.[}\s]*(?:(?:\$\$?|\\[\])]|\\end\{[^}]*\})\s*)+\Z")


def _formulas(text: str) -> Iterator[tuple[int, int, str]]:
    """The formulas, environments and code blocks: (start, end, what to overwrite them with)."""
    position = 0
    missing = set()  # closers that do not come any more: an unclosed opener costs one search, not one each
    while opener := _OPENER.search(text, position):
        start, position = opener.span()
        end = -1
        if opener[0] == "$":
            end = _dollar_end(text, start)
        elif opener["code"] or opener["display"] or opener["inline"]:
            closer = _CLOSER.get(opener[0]) or rf"\end{{{opener['environment']}}}"
            if closer not in missing:
                end = text.find(closer, position)
                if end < 0:
                    missing.add(closer)
                else:
                    end += len(closer)
        if end > 0:
            yield start, end, _CODE if opener["code"] else _DISPLAY if opener["display"] else _INLINE
            position = end


def _dollar_end(text: str, start: int) -> int:
    """Where the formula ends that the $ at ``start`` opens; -1 where this $ is no formula but an amount."""
    match = _DOLLARS.match(text, start)
    if not match:
        return -1
    inner, end = match[1], match.end()
    if inner[0].isdigit() and (inner[-1].isspace() or text[end : end + 1].isdigit()):  # "$5 or $6"
        return -1
    return -1 if _PROSE.search(_COMMAND.sub("=", inner)) else end


def _masked(text: str) -> str:
    """The text with its formulas, environments and code blocks overwritten; the length stays."""
    parts, position = [], 0
    for start, end, filler in _formulas(text):
        last = _ENDED if filler != _CODE and _FULL_STOP.search(text, start, end) else filler
        parts += [text[position:start], filler * (end - start - 1), last]
        position = end
    return "".join((*parts, text[position:]))


_END = re.compile(
    rf"(?:(?P<mark>[.!?…。！？]+|{_ENDED})(?P<closing>[\"'”’»」』)\]}}】）*_`]*)"
    rf"|(?P<display>{_DISPLAY})(?![{_DISPLAY}{_ENDED}]))(?P<gap>[^\S\r\n]*(?:{_BREAKS})?)"
    rf"|(?P<break>{_BREAKS})"
)
_NEXT = re.compile(r"\S")
_LIST_MARKER = re.compile(r"(?:[A-Z][a-z]+ )?\d{1,3}|[A-Za-z]|[ivx]{1,5}|[IVX]{1,5}")
_LAST_WORD = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]+\Z")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[A-Z]|v|(?:[^\W\d_]\.)+[^\W\d_]{1,2}")
# Always before a name, a number or an example: never the end of a sentence.
_TITLE = re.compile(
    r"mrs?|ms|dr|prof|st|mt|gen|col|sgt|capt|lt|gov|sen|rep|rev|hon|messrs|mme|mlle"
    r"|e\.?g|i\.?e|vs|cf|viz|approx|resp|figs?|eqs?|sq",
    re.IGNORECASE,
)
# An abbreviation before a number only: "No. 5", "p. 12".
_COUNTED = re.compile(r"nos?|pp?|vol|ch|sec|art|thm|prop|ex", re.IGNORECASE)
# Abbreviations that may end a sentence: they do before a capital.
_ENDING = re.compile(
    r"etc|al|inc|ltd|co|corp|jr|sr|bros|dept|est|[ap]\.?m|ft|lbs?|oz|hrs?|mins?|yrs?|mi|mph|gal"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun",
    re.IGNORECASE,
)
# After an initial, a capital begins a sentence only if it is one of these: "J. Smith", but "plan B. Then".
_STARTER = re.compile(
    r"(?:A|After|Again|All|Also|An|And|Another|Any|Are|As|At|Because|Before|Both|But|By|Can|Consider|Do|Does|Each|Every"
    r"|Finally|First|For|From|Given|He|Hence|Her|Here|His|How|However|I|If|In|Instead|Is|It|Its|Let|Likewise|Many|Most"
    r"|My|Next|No|Not|Note|Now|Of|On|Once|One|Only|Or|Otherwise|Our|Please|Recall|Second|She|Similarly|Since|So|Some"
    r"|Such|Suppose|That|The|Their|Then|There|Therefore|These|They|This|Those|Three|Thus|To|Two|Using|We|What|When|Where"
    r"|While|Who|Why|With|Without|Yes|You|Your)\b"
)


def _sentence_ends(text: str) -> Iterator[int]:
    masked = _masked(text)
    begin = 0
    for match in _END.finditer(masked):
        following = _NEXT.search(masked, match.end())
        if following and _is_end(masked, begin, match, following.start()):
            begin = match.end()
            yield begin


def _is_end(masked: str, begin: int, match: re.Match[str], following: int) -> bool:
    """Whether the sentence that began at ``begin`` ends with this mark, formula or line break.

    ``following`` is the position of the next character that is not white space.
    """
    upcoming = masked[following]
    continues = upcoming.islower() or upcoming in ",;:.)"
    if match["break"]:
        before = masked[begin : match.start()].rstrip()[-1:]
        return upcoming != _DISPLAY and not (before == _DISPLAY and continues)
    broken = bool(set(match["gap"]) & {"\n", "\r"})
    if match["display"]:
        return upcoming != _DISPLAY and not continues if broken else upcoming.isupper()
    mark, closing = match["mark"], match["closing"]
    if broken:
        return True
    if mark == _ENDED:
        return not continues and bool(match["gap"] or masked[match.start() - 1] == _DISPLAY)
    if not match["gap"] and not set(mark) & set("。！？"):
        return False
    if continues and (not upcoming.islower() or closing or mark.endswith(("…", ".."))):
        return False
    if mark == "!" and upcoming.islower() and masked[match.start() - 1 : match.start()].isdigit():  # 5! ways
        return False
    return mark != "." or not _abbreviates(masked, begin, match.start(), following)


def _abbreviates(masked: str, begin: int, dot: int, following: int) -> bool:
    """Whether the full stop at ``dot`` only marks an abbreviation, an initial or the number of a list item."""
    if dot - begin < 30 and _LIST_MARKER.fullmatch(masked[begin:dot].strip(' \t\r\n*_#>(["-')):
        return True
    if masked.endswith((": 1", ": a", ": A"), begin, dot):
        return True
    last = _LAST_WORD.search(masked, max(begin, dot - 20), dot)
    if not last:
        return False
    word, upcoming = last[0], masked[following]
    if _TITLE.fullmatch(word):
        return True
    if _COUNTED.fullmatch(word):
        return upcoming.isdigit() or upcoming == _INLINE
    if _ENDING.fullmatch(word):
        return upcoming.islower() or upcoming.isdigit()
    return bool(_INITIALS.fullmatch(word)) and upcoming.isalpha() and not _STARTER.match(masked, following)
