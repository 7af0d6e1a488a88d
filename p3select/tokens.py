"""Rows to token ids, the positions that are scored, and the action of each scored token.

The tokens are those that TRL's SFTTrainer (1.16) trains on for the same row, and the scored positions those that it
puts a loss on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p3select.actions import spans
from p3select.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TRUNCATE = ("keep-start", "error", "skip")

_CHUNK = 2048  # rows tokenised at a time: their offsets are Python objects, some 20 KB a row
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Arguments of apply_chat_template that are no variables of a template: they would change the tokens or their mask.
_NOT_VARIABLES = frozenset(
    {"add_generation_prompt", "continue_final_message", "max_length", "padding", "return_assistant_tokens_mask"}
    | {"return_dict", "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "truncation"}
)


class TokenRow(NamedTuple):
    """One row as a scorer needs it."""

    ids: NDArray[np.int32]
    """(length,) the tokens of the row, cut to the maximal length."""
    scored: NDArray[np.int32]
    """(m,) the positions whose token is scored, ascending, each at least 1: the first token has no probability."""
    actions: NDArray[np.int32]
    """(m,) the action of each scored token: from 0, never falling, without gaps."""
    status: str
    """``ok``, ``truncated``, ``empty``, ``too_long`` or ``error: …``; but for the first two, the arrays are empty."""
    shift: int
    """Tokens at the prompt's end that come out differently before the completion; 0 where they do not."""


class _Text(NamedTuple):
    """One row as the text that is tokenised."""

    full: str
    prompt: str | None
    """None for ``messages``: there, ``mask`` or ``turns`` say what is scored."""
    rendered: bool
    """By a chat template, which writes the special tokens itself."""
    mask: NDArray[np.bool_] | None = None
    """(length,) the assistant's tokens, as the template's own marks say."""
    turns: tuple[tuple[int, int], ...] = ()
    """The assistant's turns, [start, end) in characters."""


class _Unscored(Exception):  # noqa: N818 - no error: an empty row comes here too
    """The row is not scored; the message is its status."""


def encode(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    actions: str = "line",
    max_length: int | None = None,
    truncate: str = "keep-start",
    first_row: int = 0,
) -> list[TokenRow]:
    """Tokenise rows, find the tokens that TRL's SFTTrainer puts a loss on, and assign them to actions.

    A row whose ``prompt`` and ``completion`` are strings is plain text: the tokenizer's end-of-sequence token is
    appended unless the completion ends with it, and no chat template is applied. A row of messages goes through the
    tokenizer's chat template, with the row's ``tools`` and ``chat_template_kwargs``. Scored is what follows the
    common prefix of the tokenised prompt and the tokenised prompt + completion.

    Of a row with ``messages`` the assistant's turns are scored, as with TRL's ``assistant_only_loss=True``: where the
    chat template's ``{% generation %}`` marks say; or, if it has none, where those of TRL's training variant of
    the template say, if TRL is installed and has one; or else what the template adds for each of these turns to
    the generation prompt before it.

    A token belongs to the action that its first character lies in, white space at its start not counted (it counts
    for a token of white space alone). A token across the boundary belongs to the first action; what the template or
    the tokenizer appends to a turn belongs to the turn's last. No action crosses turns; a completion is one turn, even
    of several messages, as TRL scores it all. With ``actions="token"`` every scored token is an action.

    Args:
        rows: Rows as TRL takes them.
        tokenizer: A fast Hugging Face tokenizer.
        actions: A rule of :func:`p3select.actions.spans`.
        max_length: The longest row, in tokens; None for no limit.
        truncate: What becomes of longer rows. ``keep-start`` cuts off the end when the boundary is found, as TRL
            does: ``truncated`` if scored tokens were lost and some remain, ``too_long`` if none remains (TRL drops
            such rows). ``skip`` makes every longer row ``too_long``; ``error`` raises.
        first_row: The number of the first row, for messages.

    Returns:
        One :class:`TokenRow` per row, in order. A completion of white space only is ``empty``; a row that cannot be
        tokenised is ``error: …``.

    Raises:
        InputError: A setting is not valid; the tokenizer is a slow one, or has no end-of-sequence token or no chat
            template and a row needs it; or a row is longer than ``max_length`` and ``truncate="error"``.
    """
    _check(tokenizer, actions, max_length, truncate)
    conversations = any(isinstance(row, Mapping) and "messages" in row for row in rows)
    template = _training_template(tokenizer) if conversations else None
    endings = _endings(tokenizer)
    prompts: dict[tuple[str, bool], NDArray[np.int32]] = {}
    result: list[TokenRow] = []
    for start in range(0, len(rows), _CHUNK):
        numbers = range(start, min(start + _CHUNK, len(rows)))
        texts = {number: _text(rows[number], tokenizer, template, first_row + number) for number in numbers}
        whole = {number: text for number, text in texts.items() if isinstance(text, _Text)}
        tokens = _tokenise(tokenizer, whole, prompts)
        for number in numbers:
            text = texts[number]
            if isinstance(text, str):
                result.append(_unscored(text))
                continue
            row = _scored(text, *tokens[number], actions, endings)
            result.append(_cut(row, max_length, truncate, first_row + number))
    return result


def fingerprint(tokenizer: Any, *, messages: bool = True) -> dict[str, str]:
    """What the tokens of a row depend on, but for the row itself.

    The padding token and the state of padding and truncation, which trainers set, are left out.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        messages: Whether rows with ``messages`` count: they may be tokenised by TRL's variant of the chat template,
            if TRL is installed. False for other rows, whose scores do not depend on that.

    Returns:
        ``tokenizer``: SHA-256 of vocabulary, merges, normalisation and special tokens. ``template``: SHA-256 of the
        chat template (and the variant), or ``none``.

    Raises:
        InputError: The tokenizer is a slow one.
    """
    _check_fast(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):
        backend.pop(state, None)
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    template = "none"
    if tokenizer.chat_template is not None:
        template = _sha256([tokenizer.chat_template, _training_template(tokenizer) if messages else None])
    return {"tokenizer": _sha256([backend, special, tokenizer.split_special_tokens]), "template": template}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _check(tokenizer: Any, actions: str, max_length: int | None, truncate: str) -> None:
    _check_fast(tokenizer)
    spans("", actions)
    if truncate not in TRUNCATE:
        raise InputError(f"truncate={truncate!r}: use one of {', '.join(TRUNCATE)}")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length={max_length}: a row needs two tokens at least, the first is never scored")


def _check_fast(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer {type(tokenizer).__name__} is a slow one, which does not say where in the text a token "
            "stands; load a fast one (a folder with tokenizer.json)"
        )


# --- rows to text


def _text(row: Mapping[str, Any], tokenizer: Any, template: str | None, number: int) -> _Text | str:
    """The row as text, or its status if it is not scored."""
    try:
        if not isinstance(row, Mapping):
            raise _Unscored(f"error: the row is {_kind(row)}, not a mapping of columns")
        if "prompt" in row and isinstance(row["prompt"], str):
            return _plain(row["prompt"], row.get("completion"), tokenizer, number)
        if "prompt" not in row and "messages" not in row:
            raise _Unscored("error: the row has neither prompt and completion nor messages")
        if tokenizer.chat_template is None:
            raise InputError(
                f"row {number} is a conversation and the tokenizer has no chat template; give it one, or use rows "
                "whose prompt and completion are strings"
            )
        if "prompt" in row:
            return _pair(row, tokenizer)
        return _conversation(row, tokenizer, template)
    except _Unscored as reason:
        return str(reason)


def _plain(prompt: str, completion: Any, tokenizer: Any, number: int) -> _Text:
    if completion is None or (isinstance(completion, str) and not completion.strip()):
        raise _Unscored("empty")
    if not isinstance(completion, str):
        raise _Unscored(f"error: prompt is a string and completion is {_kind(completion)}")
    eos = tokenizer.eos_token
    if eos is None:
        raise InputError(f"row {number} needs an end-of-sequence token; set tokenizer.eos_token")
    full = _encodable(prompt + completion + ("" if completion.endswith(eos) else eos))
    return _Text(full, prompt, rendered=False)


def _pair(row: Mapping[str, Any], tokenizer: Any) -> _Text:
    prompt = _messages(row, "prompt")
    if row.get("completion") is None or row["completion"] == []:
        raise _Unscored("empty")
    completion = _messages(row, "completion")
    if all(map(_blank, completion)):
        raise _Unscored("empty")
    variables = _variables(row)
    before = _render(tokenizer, prompt, add_generation_prompt=True, **variables)
    return _Text(_render(tokenizer, prompt + completion, **variables), before, rendered=True)


def _conversation(row: Mapping[str, Any], tokenizer: Any, template: str | None) -> _Text:
    messages = _messages(row, "messages")
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise _Unscored("error: messages has no turn of the assistant")
    if all(_blank(messages[number]) for number in turns):
        raise _Unscored("empty")
    variables = {"chat_template": template} | _variables(row)
    full = _render(tokenizer, messages, **variables)
    if not _MARKED.search(tokenizer.get_chat_template(variables["chat_template"], variables["tools"])):
        found = tuple(_turn(tokenizer, messages, number, full, variables) for number in turns)
        return _Text(full, None, rendered=True, turns=found)
    output = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}, **variables
    )
    mask = np.array(output["assistant_masks"], bool)
    if not mask.any():
        raise _Unscored("error: the chat template's generation marks hold no token of the assistant's")
    return _Text(full, None, rendered=True, mask=mask)


def _turn(
    tokenizer: Any, messages: list[dict[str, Any]], number: int, full: str, variables: dict[str, Any]
) -> tuple[int, int]:
    """Where a turn of the assistant stands in the rendered conversation: what it adds to the generation prompt."""
    if number == 0:
        raise _Unscored("error: the assistant's turn comes first, and the chat template marks no {% generation %}")
    before = _render(tokenizer, messages[:number], add_generation_prompt=True, **variables)
    after = _render(tokenizer, messages[: number + 1], **variables)
    if not (after.startswith(before) and full.startswith(after)):
        raise _Unscored(
            f"error: the chat template renders message {number} differently within the whole conversation, so that "
            "the assistant's turn cannot be found; mark it with {% generation %} in the template"
        )
    return len(before), len(after)


def _messages(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    messages = row[column]
    if not isinstance(messages, list | tuple) or not messages:
        expected = "a list of messages" if column == "messages" else "a string or a list of messages"
        raise _Unscored(f"error: {column} is {_kind(messages)}, not {expected}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise _Unscored(f"error: {column} holds {_kind(message)}, not a message with a role")
    return [dict(message) for message in messages]


def _kind(value: Any) -> str:
    return "None" if value is None else f"an empty {type(value).__name__}" if value == [] else type(value).__name__


def _blank(message: Mapping[str, Any]) -> bool:
    """Whether a message says nothing: white space for content, and no tool call, reasoning or the like."""
    content = message.get("content")
    says = [value for key, value in message.items() if key not in ("role", "content", "name") and value]
    return not says and (not content or (isinstance(content, str) and not content.strip()))


def _variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the row passes to the chat template."""
    tools, variables = row.get("tools"), row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError as error:
        raise _Unscored(f"error: tools is not JSON: {error}") from None
    if not isinstance(variables, Mapping):
        raise _Unscored(f"error: chat_template_kwargs is {_kind(variables)}, not a mapping")
    if reserved := sorted(_NOT_VARIABLES & variables.keys()):
        raise _Unscored(f"error: chat_template_kwargs holds {reserved[0]!r}, which is no variable of a template")
    return {"tools": tools, **variables}


def _render(tokenizer: Any, messages: list[dict[str, Any]], **variables: Any) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **variables)
    except Exception as error:  # a template is a program: what it raises is about this row's messages
        raise _Unscored(f"error: the chat template fails: {type(error).__name__}: {error}") from None
    return _encodable(text)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
        raise _Unscored(f"error: the text is no Unicode: {error}") from None
    return text


def _training_template(tokenizer: Any) -> str | None:
    """The template that TRL renders ``messages`` with in place of the tokenizer's own; None where it keeps that."""
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template is None or _MARKED.search(template):
        return None
    try:
        from trl.chat_template_utils import get_training_chat_template

        return get_training_chat_template(tokenizer)  # type: ignore[no-any-return]
    except (ImportError, ValueError):  # not installed, or it does not know the template
        return None


# --- text to tokens


def _tokenise(
    tokenizer: Any, texts: Mapping[int, _Text], prompts: dict[tuple[str, bool], NDArray[np.int32]]
) -> dict[int, tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32] | None]]:
    """Per text: its ids (length,), [start, end) of each in characters (length, 2), and its prompt's ids.

    ``prompts`` keeps the ids of the prompts tokenised so far, by prompt and ``rendered``.
    """
    result = {}
    for rendered in (False, True):
        options = {"add_special_tokens": not rendered, "return_attention_mask": False, "verbose": False}
        chosen = {number: text for number, text in texts.items() if text.rendered is rendered}
        needed = dict.fromkeys(text.prompt for text in chosen.values() if text.prompt is not None)
        new = [prompt for prompt in needed if (prompt, rendered) not in prompts]
        if new:
            for prompt, ids in zip(new, tokenizer(new, **options)["input_ids"], strict=True):
                prompts[prompt, rendered] = np.array(ids, np.int32)
        if chosen:
            output = tokenizer([text.full for text in chosen.values()], return_offsets_mapping=True, **options)
            for row, ids, offsets in zip(chosen.items(), output["input_ids"], output["offset_mapping"], strict=True):
                number, text = row
                pairs = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids)).reshape(-1, 2)
                before = None if text.prompt is None else prompts[text.prompt, rendered]
                result[number] = (np.array(ids, np.int32), pairs, before)
    return result


def _scored(
    text: _Text,
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    prompt: NDArray[np.int32] | None,
    rule: str,
    endings: tuple[str, ...],
) -> TokenRow:
    """The whole row: its scored positions and their actions."""
    shift = 0
    if prompt is not None and text.prompt is not None:
        boundary = _common_prefix(prompt, ids)
        shift = len(prompt) - boundary
        run = np.arange(max(1, boundary), len(ids))
        prefix = text.full.startswith(text.prompt)
        runs = [(run, len(text.prompt) if prefix else int(offsets[run[0], 0]))] if len(run) else []
    else:
        scored = np.flatnonzero(_assistant(text, offsets)[1:]) + 1
        turns = np.split(scored, np.flatnonzero(np.diff(scored) > 1) + 1)
        runs = [(turn, int(offsets[turn[0], 0])) for turn in turns if len(turn)]
    actions = np.empty(0, np.int64)
    for run, begin in runs:
        numbers = _assign(text.full, begin, offsets[run], rule, endings)
        actions = np.concatenate((actions, numbers + (actions[-1] + 1 if len(actions) else 0)))
    if not len(actions):
        return _unscored("empty")
    scored = np.concatenate([run for run, _ in runs])
    return TokenRow(ids, scored.astype(np.int32), actions.astype(np.int32), "ok", shift)


def _assistant(text: _Text, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each token (length,) is the assistant's, of a row with ``messages``."""
    if text.mask is not None:
        return text.mask
    mask = np.zeros(len(offsets), bool)
    for start, end in text.turns:
        mask |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return mask


def _common_prefix(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _unscored(status: str) -> TokenRow:
    none = np.empty(0, np.int32)
    return TokenRow(none, none, none, status, 0)


def _cut(row: TokenRow, max_length: int | None, truncate: str, number: int) -> TokenRow:
    """The row as its maximal length leaves it."""
    if max_length is None or len(row.ids) <= max_length:
        return row
    if truncate == "error":
        raise InputError(
            f"row {number} has {len(row.ids)} tokens, more than the maximal length of {max_length}; raise "
            "--max-length, or give --truncate keep-start or skip"
        )
    kept = int(np.searchsorted(row.scored, max_length)) if truncate == "keep-start" else 0
    if not kept:
        return _unscored("too_long")
    status = "truncated" if kept < len(row.scored) else "ok"
    return TokenRow(row.ids[:max_length], row.scored[:kept], row.actions[:kept], status, row.shift)


# --- tokens to actions


def _assign(
    text: str, begin: int, offsets: NDArray[np.int64], rule: str, endings: tuple[str, ...]
) -> NDArray[np.int64]:
    """The action (m,) of each token of a turn, from 0 without gaps.

    Args:
        text: The whole row.
        begin: Where the turn begins in it.
        offsets: [start, end) of the turn's tokens in the text (m, 2).
        rule: A rule of :func:`p3select.actions.spans`.
        endings: What :func:`_endings` gives.
    """
    if rule == "token" or not len(offsets):
        return np.arange(len(offsets))
    end = _body_end(text, begin, max(begin, int(offsets[:, 1].max())), endings)
    begins = begin + spans(text[begin:end], rule)[1:, 0]
    starts, ends = offsets.T
    actions = np.searchsorted(begins, starts, "right")
    for across in np.flatnonzero(np.searchsorted(begins, ends - 1, "right") > actions):
        token = text[starts[across] : ends[across]]
        if stripped := token.lstrip():  # " Then" is the first word of its sentence, not the end of the one before
            actions[across] = np.searchsorted(begins, ends[across] - len(stripped), "right")
    actions[starts >= end] = 0  # what is appended joins the last action that has a token of its own
    # The tokenizer's own additions stand at (0, 0): they join the action before them likewise.
    actions = np.maximum.accumulate(actions)
    numbers = np.zeros(len(actions), np.int64)
    np.cumsum(actions[1:] > actions[:-1], out=numbers[1:])
    return numbers


def _body_end(text: str, begin: int, end: int, endings: tuple[str, ...]) -> int:
    """Where the turn's own text ends and what the template or the tokenizer appends to it begins."""
    while True:
        stop = begin + len(text[begin:end].rstrip())
        if not text.endswith(endings, begin, stop):
            return end
        end = stop - next(len(ending) for ending in endings if text.endswith(ending, begin, stop))


def _endings(tokenizer: Any) -> tuple[str, ...]:
    """What may end a turn besides its own text: special tokens, and the end that the chat template writes."""
    endings = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    endings.add(tokenizer.eos_token or "")
    if tokenizer.chat_template is not None:
        answer = "The answer is 42"
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            rendered = _render(tokenizer, messages)
        except _Unscored:  # a template for other conversations; its rows say what is wrong, if anything is
            rendered = ""
        endings.add(rendered.rpartition(answer)[2].strip() if answer in rendered else "")
    return tuple(sorted((ending for ending in endings if ending.strip()), key=len, reverse=True))
