"""A scheduler that diffusers does not have is refused from its list, which says what its import says."""

from __future__ import annotations

import diffusers
import pytest

from gacq_deploy.errors import UsageError
from gacq_deploy.sampling import scheduler_names
from gacq_deploy.sampling.scheduler_names import OWN, check_scheduler_name


def test_every_scheduler_of_diffusers_is_known() -> None:
    classes = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    for name in (None, *OWN, *classes):
        check_scheduler_name(name)


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match="no scheduler 'EulerDiscreteSheduler'") as caught:
        check_scheduler_name("EulerDiscreteSheduler")
    assert "Did you mean 'EulerDiscreteScheduler'?" in caught.value.hint


def test_without_a_list_nothing_is_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_names, "find_spec", lambda _: None)
    check_scheduler_name("Euler")
