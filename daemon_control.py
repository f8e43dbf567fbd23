#!/usr/bin/env python3
"""Start, stop and look at the KSI daemon: ``python3 daemon_control.py --help``."""

import bootstrap

bootstrap.enter()

import sys

from ksi_client.control.main import main

if __name__ == "__main__":
    sys.exit(main())
