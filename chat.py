#!/usr/bin/env python3
"""Talk with a language model through KSI: ``python3 chat.py --help``."""

import bootstrap

bootstrap.enter()

from ksi_client.chat.main import main

if __name__ == "__main__":
    bootstrap.imported()
    main()
