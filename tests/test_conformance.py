"""Every built-in keeps the laws of its kind, and the suite is what its own documentation says."""

import subprocess
import sys

import pytest

from ldmkit import builtin
from ldmkit.registry import KINDS
from ldmkit.testing import Example, checks, conformance, run_checks
from ldmkit.testing.examples import BUILTIN, examples


def of(kind):
    return [example for example in BUILTIN if example.kind == kind]


test_first_stages = conformance(*of("first-stage"))
test_backbones = conformance(*of("backbone"))
test_conditioners = conformance(*of("conditioner"))
test_processes = conformance(*of("process"))
test_samplers = conformance(*of("sampler"))
test_guidances = conformance(*of("guidance"))
test_tasks = conformance(*of("task"))
test_recipes = conformance(*of("recipe"))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in builtin.TABLE[kind]])
def test_every_builtin_has_examples_told_apart_by_their_labels(kind, name):
    labels = [example.label for example in examples(kind, name)]
    assert labels
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_has_its_own_id_and_a_law_in_one_sentence(kind):
    found = checks(kind)
    assert len({check.id for check in found}) == len(found)
    assert all(check.law.endswith(".") and len(check.law) > 20 for check in found)


def test_every_check_needs_only_checks_that_exist():
    known = {check.id for kind in KINDS for check in checks(kind)}
    assert {name for kind in KINDS for check in checks(kind) for name in check.needs} <= known


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown kind 'sampeler'; did you mean 'sampler'"):
        checks("sampeler")
    with pytest.raises(ValueError, match="of one of the kinds"):
        Example("sampeler", "ddim")


def test_a_conditioner_needs_a_batch():
    with pytest.raises(ValueError, match=r"conditioner 'low-res' needs batch="):
        Example("conditioner", "low-res")


def test_results_say_what_was_not_applicable_and_why():
    (result,) = [r for r in run_checks(examples("process", "vp")[0]) if r.check.id == "builds"]
    assert (result.status, result.detail, result.error) == ("pass", "", None)
    (result,) = [r for r in run_checks(examples("sampler", "ddim")[0]) if r.check.id == "noise-is-drawn-once-per-level"]
    assert (result.status, result.detail) == ("not applicable", "it draws no noise")


def test_the_suite_imports_without_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None; import ldmkit.testing as t; "
        "print({r.status for r in t.run_checks(t.Example('process', 'vp'))})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'pass'}"
