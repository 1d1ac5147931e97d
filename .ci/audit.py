"""Look up the known holes of what is installed here, with pip-audit; 0: none, 1: some, 2: it could not be looked up.

pip-audit counts a package that its source does not know, or cannot be asked about, as passed over and not as a
failure: so what was looked up is counted here.
"""

import json
import subprocess
import sys

COMMAND = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner=off", "--format=json"]


def main() -> int:
    """Print a line for each hole, and how many packages were looked up."""
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        packages = []
    known = [package for package in packages if "vulns" in package]
    if not known:
        reason = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"audit: the list of known holes cannot be reached from here, so nothing was looked up ({reason})")
        return 2
    holes = 0
    for package in known:
        for hole in package["vulns"]:
            holes += 1
            mended = ", ".join(hole.get("fix_versions") or []) or "no version yet"
            print(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    print(f"audit: {holes} known holes in {len(known)} packages; {len(packages) - len(known)} are not in the list")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
