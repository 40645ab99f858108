from __future__ import annotations

import warnings

import pytest
from graphs import RULES

from fxpar import yamlfile
from fxpar.axes.oprule import OpRule, read
from fxpar.axes.proof import TOLERANCE, prove, prove_all
from fxpar.errors import RuleError


def rule(text: str) -> OpRule:
    (entry,) = yamlfile.parse(text, "rules/ops/mine.yaml", RuleError).list()
    (found,) = read(entry)
    return found


@pytest.mark.parametrize("op", sorted(RULES))
@pytest.mark.filterwarnings("ignore")
def test_shipped_rules_are_right(op: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proof = prove(RULES[op])
    assert proof.worst <= TOLERANCE
    assert proof.samples or RULES[op].shape in ("create", "whole")


def test_a_proof_says_what_was_split() -> None:
    proof = prove(RULES["aten.linear.default"])
    assert proof.roles == ("...", "i", "o")
    assert str(proof).startswith("aten.linear.default: ..., i, o; 3 samples, worst error ")


def test_whole_ops_need_no_sample() -> None:
    assert str(prove(RULES["aten.arange.default"])).startswith("aten.arange.default: whole; 0 samples")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            '- op: aten.layer_norm.default\n  equation: "... h, h?, h? -> ... h"\n  proof: ["f[4,6], [6]"]\n',
            "rules/ops/mine.yaml:1:7: `aten.layer_norm.default` split on role `h` does not run\n"
            "  1 | - op: aten.layer_norm.default\n    |       ^\n"
            "  rules/ops/mine.yaml:3: f[4,6], [6]\n"
            "  Given normalized_shape=[6], expected input with shape [*, 6], but got input of size[4, 3]",
        ),
        (
            '- op: aten.mm.default\n  equation: "n i, i o -> n o"\n  whole: [i]\n',
            "rules/ops/mine.yaml:1:7: no sample splits `aten.mm.default` on role `n`\n"
            "  1 | - op: aten.mm.default\n    |       ^\n"
            "  add one to `proof`",
        ),
        (
            '- op: aten.mm.default\n  equation: "n i, i o -> n o"\n  whole: [i]\n  proof: ["f[4,6], f[6,5]"]\n',
            "rules/ops/mine.yaml:1:7: no sample splits `aten.mm.default` on role `o`\n"
            "  1 | - op: aten.mm.default\n    |       ^\n"
            "  add one to `proof`",
        ),
        (
            '- op: aten.linear.default\n  equation: "... i, o i, o? -> ... o"\n  sum: [i]\n  terms: [bia]\n'
            '  proof: ["f[4,6], f[8,6], f[8]"]\n',
            "rules/ops/mine.yaml:1:7: `aten.linear.default` has no argument `bia`\n"
            "  1 | - op: aten.linear.default\n    |       ^\n"
            "  did you mean `bias`?\n  allowed: bias, input, weight",
        ),
        (
            '- op: aten.mm.default\n  equation: "n i, i o -> o n"\n  sum: [i]\n  proof: ["f[4,6], f[6,8]"]\n',
            "rules/ops/mine.yaml:1:7: `aten.mm.default` makes [4, 8] here, the rule says [8, 4]\n"
            "  1 | - op: aten.mm.default\n    |       ^\n"
            "  mm_default in the model",
        ),
        (
            '- op: aten.mm.default\n  equation: "n i, i o, o -> n o"\n  sum: [i]\n  proof: ["f[4,6], f[6,8]"]\n',
            "rules/ops/mine.yaml:1:7: no sample splits `aten.mm.default` on role `i`\n"
            "  1 | - op: aten.mm.default\n    |       ^\n"
            "  add one to `proof`",
        ),
    ],
)
def test_wrong_rules(text: str, wanted: str) -> None:
    with pytest.raises(RuleError) as error:
        print(prove(rule(text)))
    assert str(error.value) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (  # softmax needs its dim whole
            '- op: aten.softmax.int\n  equation: "... h -> ... h"\n  proof: ["f[4,6], -1"]\n',
            "`aten.softmax.int` split on role `h` differs from the whole op by ",
        ),
        (  # a bias is added once, not on every rank
            '- op: aten.linear.default\n  equation: "... i, o i, o? -> ... o"\n  sum: [i]\n'
            '  proof: ["f[4,6], f[8,6], f[8]"]\n',
            "`aten.linear.default` split on role `i` differs from the whole op by ",
        ),
        (  # mean of summands, but the sum of means
            '- op: aten.mean.dim\n  shape: reduce\n  meaning: sum\n  proof: ["f[4,6], [-1]"]\n',
            "`aten.mean.dim` split on role `d1` differs from the whole op by ",
        ),
        (  # each zero adds log 2
            '- op: aten.binary_cross_entropy_with_logits.default\n  equation: "d, d ->"\n  sum: [d]\n'
            '  proof: ["f[6], u[6], reduction=2"]\n',
            "`aten.binary_cross_entropy_with_logits.default` on zeros along `d` differs from the whole op by ",
        ),
        (  # exp(a + b) is not exp(a) + exp(b)
            '- op: aten.add.Tensor\n  equation: "..., ... -> ..."\n  factors: [self]\n  proof: ["f[4,6], f[6]"]\n',
            "`aten.add.Tensor` on summands differs from the whole op by ",
        ),
        (
            '- op: aten.exp.default\n  equation: "... -> ..."\n  linear: true\n  proof: ["f[4,6]"]\n',
            "`aten.exp.default` on summands differs from the whole op by ",
        ),
    ],
)
def test_wrong_meanings(text: str, wanted: str) -> None:
    wrong = rule(text)
    with pytest.raises(RuleError) as error:
        prove(wrong)
    head, *_, sample = str(error.value).splitlines()
    assert head.startswith(f"rules/ops/mine.yaml:1:7: {wanted}")
    assert float(head.rsplit(" ", 1)[1]) > 0.01
    assert sample.strip() == f"rules/ops/mine.yaml:{wrong.proof[0].place.line}: {wrong.proof[0].text()}"


def test_all_errors_are_found() -> None:
    wrong = rule('- op: aten.exp.default\n  equation: "... -> ..."\n')
    proofs, errors = prove_all([RULES["aten.neg.default"], wrong, RULES["aten.mm.default"]])
    assert [proof.rule.op for proof in proofs] == ["aten.neg.default", "aten.mm.default"]
    assert [error.what for error in errors] == ["no sample splits `aten.exp.default` on role `...`"]
