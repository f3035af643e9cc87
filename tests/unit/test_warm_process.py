"""Is a forked process what a fresh interpreter would be, but for the imports?"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import warm_server
from tests.support.programs.commands import child_environment
from tests.support.programs.warm_process import WarmProcess, serving


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("warm"), "import colorsys") as served:
        yield served


ENDS = {
    "normally": ("print('done')", 0),
    "with a code": ("raise SystemExit(3)", 3),
    "with words": ("raise SystemExit('why')", 1),
    "by an exception": ("1 / 0", 1),
    "by an interrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "by a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "after its last words": ("import atexit; atexit.register(print, 'bye')", 0),
}


@pytest.mark.parametrize("case", ENDS)
def test_it_ends_and_speaks_as_an_interpreter_does(address: str, case: str) -> None:
    code, expected = ENDS[case]
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    with WarmProcess(address, code) as warm:
        stdout, stderr = warm.communicate(timeout=60)
    assert warm.returncode == fresh.returncode == expected
    assert stdout == fresh.stdout
    assert stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_it_finds_arguments_environment_folder_and_input(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "here")
    code = "import os, sys; print(__name__, sys.argv[1:], os.environ['WORD'], os.getcwd(), sys.stdin.read())"
    with WarmProcess(address, code, "a", "b") as warm:
        warm.stdin.write("given")
        stdout, stderr = warm.communicate(timeout=60)
    assert stdout == f"__main__ ['a', 'b'] here {tmp_path} given\n", stderr


def test_the_imports_are_done_and_no_two_processes_share_what_they_do(address: str) -> None:
    code = "import sys; module = sys.modules['colorsys']; print(hasattr(module, 'mark')); module.mark = 1"
    for _ in range(2):
        with WarmProcess(address, code) as warm:
            assert warm.communicate(timeout=60)[0] == "False\n"


def test_signals_reach_the_process_itself(address: str) -> None:
    with WarmProcess(address, "import os, time; print(os.getpid(), flush=True); time.sleep(60)") as warm:
        assert int(warm.stdout.readline()) == warm.pid
        assert warm.poll() is None
        warm.send_signal(signal.SIGKILL)
        assert warm.wait(timeout=60) == -signal.SIGKILL


def test_a_command_can_stand_in_for_it(address: str) -> None:
    command = (sys.executable, "-I", "-S", warm_server.__file__, "ask", address)
    code = "import sys; print(sys.argv[1]); sys.exit(int(sys.argv[2]))"
    done = subprocess.run(
        [*command, code, "word", "7"], env=child_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, "word\n")
    killed = subprocess.run([*command, ENDS["by a signal"][0]], env=child_environment(), check=False)
    assert killed.returncode == -signal.SIGTERM
