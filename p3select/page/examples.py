"""Rows of the data as text, each action shaded by how certain the policy was of it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from p3select import actions, tokenised, tokens
from p3select.errors import MismatchError
from p3select.page import tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

# Characters of a prompt and of a target that are shown.
SHOWN = 1_500
SHADES = 10


def row(
    line: Mapping[str, Any],
    settings: Mapping[str, Any],
    scored: tuple[Values, NDArray[np.int64], str],
    loaded: Any,
    about: Sequence[str],
    *,
    opened: bool,
) -> str:
    """A row that opens to its text.

    Args:
        line: As of :meth:`p3select.Dataset.rows`.
        settings: What it was scored with.
        scored: Its actions' log-probabilities (a,) and tokens (a,), and its status.
        loaded: The tokenizer, or None.
        about: Its name, and what is known of it.
        opened: Whether its text is to be seen at once.
    """
    prompt, turns = _texts(line)
    first = beginning(line)
    brief = escape(first[:110] + ("…" if len(first) > 110 else ""))
    found = pieces(turns, settings["actions"], scored) if loaded is None else decoded(line, loaded, settings, scored)
    return (
        f'<details class="row"{" open" * opened}><summary><b>{escape(about[0])}</b> {escape(" · ".join(about[1:]))}'
        f"<span><bdi>{brief}</bdi></span></summary><div>"
        f'<h4>prompt</h4><p class="text" dir="auto">{_cut(prompt)}</p>'
        + (_plain(turns, found) if isinstance(found, str) else _shaded(found, scored))
        + "</div></details>"
    )


def beginning(line: Mapping[str, Any]) -> str:
    """The first line of a row's text."""
    prompt, turns = _texts(line)
    return (prompt or (turns[0] if turns else "")).strip().split("\n")[0]


def pieces(turns: Sequence[str] | None, rule: str, scored: tuple[Values, NDArray[np.int64], str]) -> list[str] | str:
    """The text of each action, or why it is not known.

    The text is cut again by the rule. Where the tokenizer has put tokens on other sides of the cuts, or a template has
    changed the text, the actions are not these: their number says so, or that one has more tokens than bytes.

    Args:
        turns: The texts that are scored; None where a template writes more between them.
        rule: Of the actions.
        scored: The actions' log-probabilities (a,) and tokens (a,), and the row's status.
    """
    _, counts, status = scored
    if rule == "token":
        return "its actions are tokens, and which characters they have the tokenizer says: give --tokenizer"
    if turns is None:
        return "its completion is of several messages, and what the chat template writes between them belongs to them"
    found = [turn[a:b] for turn in turns for a, b in actions.spans(turn, rule).tolist()]
    if len(found) != len(counts):
        cut = ": the row was cut at the maximal length" if status == "truncated" else ""
        return f"it was scored as {len(counts)} actions, and its text has {len(found)}{cut}"
    # What is appended to a turn counts with its last action.
    last = set((np.cumsum([len(actions.spans(turn, rule)) for turn in turns]) - 1).tolist())
    for number, (text, count) in enumerate(zip(found, counts, strict=True)):
        if number not in last and count > len(text.encode()):
            return f"action {number + 1} was scored with {count} tokens, and its text has {len(text.encode())} bytes"
    return found


def tokenizer(name: str | Path, settings: Mapping[str, Any], line: Mapping[str, Any]) -> Any:
    """The tokenizer of that name.

    Args:
        name: A folder, a GGUF file or a Hugging Face id.
        settings: What the rows were scored with.
        line: One of them.

    Raises:
        InputError: There is none.
        MismatchError: It is not the one of the scores.
    """
    from p3select.scorers.checkpoints import describe

    _, loaded, _ = describe(name, None)
    if tokens.fingerprint(loaded, messages="messages" in line)["tokenizer"] != settings["tokenizer"]:
        raise MismatchError(f"{name}: not the tokenizer that the scores were made with; give that of the policy")
    return loaded


def decoded(
    line: Mapping[str, Any],
    loaded: Any,
    settings: Mapping[str, Any],
    scored: tuple[Values, NDArray[np.int64], str],
) -> list[str] | str:
    """The text of each action by its tokens, as far as it is shown, or why it is not known.

    Args:
        line: The row.
        loaded: The tokenizer.
        settings: What it was scored with.
        scored: Its actions' log-probabilities (a,) and tokens (a,), and its status.
    """
    (row,) = tokens.encode([line], loaded, **tokenised.rules(settings))
    counts = scored[1]
    if len(row.actions) == 0 or not np.array_equal(np.bincount(row.actions), counts):
        return "its tokens are not those that were scored"
    ids, found, before = row.ids[row.scored], [], ""
    for end in np.cumsum(counts):
        # All from the start: bytes of one character may be in two tokens, and it shows with the last of them.
        text = loaded.decode(ids[:end], clean_up_tokenization_spaces=False)
        text = text.rstrip("\ufffd") if end < len(ids) else text
        found.append(text[len(before) :])
        before = text
        if len(before) > SHOWN:
            break
    return found


def _shaded(found: Sequence[str], scored: tuple[Values, NDArray[np.int64], str]) -> str:
    logprobs, counts, status = scored
    certain = np.exp(np.minimum(logprobs, 0.0) / counts)
    shown, used = [], 0
    lines: list[Sequence[Any]] = []
    for number, (text, value, count) in enumerate(zip(found, certain, counts, strict=False)):
        if used >= SHOWN:
            break
        part = text[: SHOWN - used]
        used += len(part)
        shade = min(int((1 - value) * SHADES), SHADES - 1)
        shown.append(f'<i class="h{shade}" title="action {number + 1}: {value:.3f}, {count} tokens">{escape(part)}</i>')
        brief = " ".join(part.split())
        lines.append((number + 1, brief[:60] + ("…" if len(brief) > 60 else ""), int(count), f"{value:.4f}"))
    left = len(counts) - len(lines)
    cut = used < sum(map(len, found)) or left
    notes = [f"… and more: {left:,} further actions are not shown."] if cut else []
    notes += ["The row was cut at the maximal length: its last action was scored in part."] * (status == "truncated")
    return (
        f'<h4>target, by action</h4><p class="text" dir="auto">{"".join(shown)}</p>'
        + "".join(f"<p>{note}</p>" for note in notes)
        + "<details><summary>Actions as a table</summary>"
        + tables.html(("action", "text", "tokens", "mean probability of a token"), lines)
        + "</details>"
    )


def _plain(turns: Sequence[str] | None, why: str) -> str:
    text = "" if turns is None else _cut("\n\n".join(turns))
    return f'<h4>target</h4><p class="text" dir="auto">{text}</p><p>Not shaded: {escape(why)}.</p>'


def _texts(line: Mapping[str, Any]) -> tuple[str, list[str] | None]:
    """The prompt, and what is scored turn by turn; None where that is not the texts alone."""
    if "messages" in line:
        messages = line["messages"]
        turns = [_content(one) for one in messages if one.get("role") == "assistant"]
        return _conversation(one for one in messages if one.get("role") != "assistant"), [one for one in turns if one]
    prompt, completion = line["prompt"], line["completion"]
    before = prompt if isinstance(prompt, str) else _conversation(prompt)
    if isinstance(completion, str):
        return before, [completion]
    return before, [_content(completion[0])] if len(completion) == 1 else None


def _conversation(messages: Any) -> str:
    return "\n\n".join(f"{one.get('role')}: {_content(one)}" for one in messages)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _cut(text: str) -> str:
    more = f"… {len(text) - SHOWN:,} more characters" if len(text) > SHOWN else ""
    return escape(text[:SHOWN]) + more
