"""`python -m launch.docs.site`: builds the documents as a site that needs no network, in site/.

zensical checks every link. Its pages load one script from a network, which lets old browsers search
in files: it is taken out, as a page must not wait for a host that cannot be reached.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_FROM_A_NETWORK = re.compile(r'<script[^>]*\ssrc="https?://[^>]*></script>\s*')


def build(folder: Path) -> int:
    """Builds the site of a folder with zensical.toml; returns zensical's exit status."""
    zensical = Path(sys.executable).with_name("zensical")
    status = subprocess.run([zensical, "build", "--strict"], cwd=folder, check=False).returncode
    for page in (folder / "site").rglob("*.html") if status == 0 else ():
        text = page.read_text(encoding="utf-8")
        page.write_text(_FROM_A_NETWORK.sub("", text), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(build(Path.cwd()))
