"""One stranger for all that strangers do: their environment takes a while to make."""

from collections.abc import Iterator

import pytest

from tests.support.stranger import Stranger


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """An environment with KSI from a wheel."""
    made = Stranger(tmp_path_factory.mktemp("stranger"))
    made.set_up()
    return made


@pytest.fixture
def stranger(machine: Stranger) -> Iterator[Stranger]:
    """The stranger, who has nothing installed but KSI and no daemon that runs."""
    yield machine
    machine.run("ksi", "daemon", "stop", "--now")
    machine.leave()
