"""What did building and trying the container show? Reads what build-without-docker.sh kept, writes one line of JSON."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

COMMAND = "docker/build-without-docker.sh"


def main(work: Path, out: Path) -> None:
    """Write ``out`` and print it; exit 1 when something that was tried did not pass."""
    said = work / "said"
    quickstart = json.loads((said / "quickstart.json").read_text())
    verdicts = {
        name: bool(json.loads((said / f"{name}.json").read_text())["passed"])
        for name in ("doctor", "quickstart", "release-doctor", "release-verify", "release-parity")
    }
    document = {
        "schema": "gacq-deploy/container/1",
        "date": datetime.now(UTC).date().isoformat(),
        "command": COMMAND,
        "how": "buildah, chroot isolation, offline, on a Debian base by debootstrap; run as UID 10001",
        "version": (said / "version").read_text().split()[-1],
        "passed": all(verdicts.values()),
        "verdicts": verdicts,
        "images": {
            "cpu": {"extras": "cpu,calibrate,sign", "bytes": int((said / "bytes-cpu").read_text())},
            "release": {"extras": "cpu,sign", "bytes": int((said / "bytes-release").read_text())},
        },
        "seconds": {path.name: float(path.read_text()) for path in sorted((work / "times").iterdir())},
        "quickstart": _shown(quickstart["rows"]),
    }
    text = json.dumps(document) + "\n"
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    sys.exit(0 if document["passed"] else 1)


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep of each row of quickstart's table what does not depend on the machine's load."""
    kept = ("engine", "file", "float_bytes", "int8_bytes", "eps_sqnr_db", "image_psnr_db", "passed")
    return [{key: row[key] for key in kept} for row in rows]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
