"""Reading off the system calls of a process."""

import shutil
import subprocess


def can_trace() -> bool:
    """Tell whether strace is there, and may trace."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False)
    return tried.returncode == 0
