"""The suite bites: each wrong component fails the check that is meant for it, and no other."""

from dataclasses import replace

import pytest
from wrong import OFFERED, RIGHT, WRONG, conditioners, networks, plans, trajectories

import ldmkit
from ldmkit.registry import KINDS
from ldmkit.testing import checks, conformance, run_checks

DEPTH = conditioners.DEPTH
# What no component can do wrong alone: the library refuses the missing key, samplers never see the prediction.
WITHOUT_A_VICTIM = {
    "missing-key-is-refused",
    "predictions-lead-the-same-way",
    "runs-on-a-gpu",
    "its-model-writes-it-down-again",
    "survives-json",
}
MODULES = (conditioners, networks, trajectories, plans)


@pytest.fixture(autouse=True, scope="module")
def registered():
    for kind, name, factory in OFFERED:
        ldmkit.register(kind, name, factory, replace=True)


test_every_sound_component_passes = conformance(*RIGHT)


@pytest.mark.parametrize(("example", "check"), WRONG, ids=[f"{e.name}: {check}" for e, check in WRONG])
def test_a_wrong_component_is_caught_by_the_check_meant_for_it_and_by_no_other(example, check):
    results = {result.check.id: result for result in run_checks(example)}
    failed = {name: result.detail for name, result in results.items() if result.status == "fail"}
    assert failed.keys() == {check}, failed
    assert len(failed[check]) > 20, "the reason is a sentence"


def test_every_module_of_wrong_components_is_used_and_most_checks_bite():
    assert {cls.__module__ for _, _, cls in OFFERED} == {module.__name__ for module in MODULES}
    every = {check.id for kind in KINDS for check in checks(kind)}
    assert every - {check for _, check in WRONG} == WITHOUT_A_VICTIM


def test_an_expected_failure_is_no_failure_and_must_happen():
    expected = {"samples-are-independent": "it centres the batch"}
    statuses = {r.check.id: r.status for r in run_checks(replace(DEPTH, name="centres-the-batch", expected=expected))}
    assert statuses["samples-are-independent"] == "expected failure"
    assert "fail" not in statuses.values()
    (result,) = [r for r in run_checks(replace(DEPTH, expected=expected)) if r.status == "fail"]
    assert result.check.id == "samples-are-independent"
    assert "was expected to fail, because it centres the batch, and passes" in result.detail


def test_expecting_a_check_that_does_not_exist_to_fail_is_refused():
    with pytest.raises(ValueError, match="no such check; did you mean 'deterministic'"):
        run_checks(replace(DEPTH, expected={"determinstic": "a slip"}))


def test_what_cannot_be_built_fails_once_and_the_rest_is_not_run():
    results = run_checks(replace(DEPTH, name="does-not-build"))
    assert [r.check.id for r in results if r.status == "fail"] == ["builds"]
    assert {r.status for r in results} == {"fail", "not run"}
