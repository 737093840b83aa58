"""The conformance tests on vLLM's V2 model runner, and its n-gram drafts: last, as after them no
further engine can be started."""

import pytest

from tests.engine.test_own_process import run_alone


def test_conformance(pytestconfig: pytest.Config) -> None:
    run_alone("v2", ["conformance", "own_process/ngram.py"], pytestconfig)


@pytest.mark.full
def test_admission_and_adapters(pytestconfig: pytest.Config) -> None:
    run_alone("v2", ["test_admission.py"], pytestconfig)
