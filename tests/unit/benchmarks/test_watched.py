"""What a command took is what it and all that it starts took, stage by stage."""

from __future__ import annotations

from pathlib import Path

from benchmarks.watched import watch

PROGRAM = """
import json, subprocess, sys, time
from pathlib import Path

hold = "held = bytearray(b'1') * (60 << 20); import time; time.sleep(0.5)"
print("first ...", file=sys.stderr, flush=True)
subprocess.run([sys.executable, "-S", "-c", hold])
print("second ... (1 of 2)", file=sys.stderr, flush=True)
began = time.process_time()
while time.process_time() - began < 0.3:
    pass
(Path(sys.argv[1]) / "file").write_bytes(bytes(3 << 20))
time.sleep(0.3)
print(json.dumps({"done": True}))
sys.exit(3)
"""


def test_a_command_is_watched_with_its_children(tmp_path: Path) -> None:
    seen = watch([str(tmp_path)], tmp_path, module=("-S", "-c", PROGRAM))
    assert seen.code == 3
    assert seen.document() == {"done": True}
    stages = seen.facts["stages"]
    assert list(stages) == ["start", "first", "second"]
    assert 60 <= stages["first"]["anon_mb"] == seen.facts["anon_mb"] <= seen.facts["peak_mb"] < 200
    assert stages["second"]["anon_mb"] < 60
    assert seen.facts["cpu_s"] >= stages["second"]["cpu_s"] >= 0.2
