"""Numbers of the arithmetic core, kept as they were: a change here is a change of every user's selections.

``python -m tests.test_golden`` writes them anew; look at the difference before you commit it.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from p3select import kernel
from p3select.difficulties import difficulty
from p3select.paces import eligible, pace
from p3select.selectors.dpp import dpp
from p3select.selectors.topk import topk
from p3select.selectors.uniform import uniform

GOLDEN = Path(__file__).parent / "golden" / "core.json"

SCHEDULES = ("linear:50:95", "cosine:50:95", "step:50:70:95", "constant:80", "paper-code")


def embeddings(n=96, d=12):
    """Unit rows from whole-number arithmetic, alike on every machine; near-duplicates and copies among them.

    Rows 72 to 87 are near-duplicates of rows 0 to 15, rows 88 to 95 exact copies of rows 0 to 7.
    """
    i, j = np.mgrid[:n, :d]
    x = ((i * 7919 + j * 104_729 + (i + 3) * (i + 3) * (j + 1) * 31) % 1009) / 1009 - 0.5
    x[72:88] = x[:16] + 0.01 * x[72:88]
    x[88:] = x[:8]
    return x / np.sqrt((x * x).sum(axis=1, keepdims=True))


def logprobs(n=96):
    """One to five actions a row, up to 400 tokens each: long ones would underflow as products."""
    tokens = [[(row * 37 + a * 101) % 400 + 1 for a in range(row % 5 + 1)] for row in range(n)]
    return [[-((row * 53 + a * 17) % 97 + 1) / 60 * t for a, t in enumerate(r)] for row, r in enumerate(tokens)], tokens


def compute():
    x = embeddings()
    d = difficulty(*logprobs())
    lam, mask = eligible(d, pace(2, 3))
    result = {
        "difficulty p3": d,
        "difficulty nll": difficulty(*logprobs(), "nll"),
        **{f"pace {s}": [pace(e, t, s) for t in (3, 5) for e in range(1, t + 1)] for s in SCHEDULES},
        "eligible": [lam, *np.flatnonzero(mask)],
        "scale": kernel.scale(x),
    }
    for direction, weight in (("harder", 1.0), ("harder", 4.0), ("easier", 1.0), ("none", 1.0)):
        q = kernel.quality(d, direction, weight)
        rows, gains = dpp(x, q, 96)
        result[f"dpp {direction} {weight:g}"] = {"rows": rows, "gains": gains}
    rows, gains = topk(None, kernel.quality(d), 20)
    result["topk"] = {"rows": rows, "gains": gains}
    result["uniform"] = uniform(None, np.ones(96), 20, seed=(5, 1))[0]
    return json.loads(json.dumps(result, default=lambda array: array.tolist()))


def test_golden():
    if not GOLDEN.is_file():
        pytest.fail(f"{GOLDEN} is missing: python -m tests.test_golden")
    expected, got = json.loads(GOLDEN.read_text()), compute()
    assert list(got) == list(expected)
    for name, value in got.items():
        if isinstance(value, dict):
            assert value["rows"] == expected[name]["rows"], name
            np.testing.assert_allclose(value["gains"], expected[name]["gains"], rtol=1e-6, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, err_msg=name)


def main():
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(compute(), indent=1) + "\n")


if __name__ == "__main__":
    main()
