#!/usr/bin/env python3
"""Start, stop and look at the KSI daemon: ``python3 daemon_control.py --help``."""

import sys

import bootstrap

bootstrap.enter("dev" if "--reload" in sys.argv else "run")

from ksi_client.control.main import main

if __name__ == "__main__":
    bootstrap.imported()
    sys.exit(main())
