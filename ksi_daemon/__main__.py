"""Run the daemon in the foreground: ``python -m ksi_daemon``; see ``ksi_daemon.main``."""

import gc
import signal
import sys

if __name__ == "__main__":
    # What is loaded stays: looking for garbage in it again and again would be work for nothing.
    gc.set_threshold(10_000, 1_000, 1_000)
    # It asks for the settings to be read again: here they are yet to be read.
    signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        from ksi_daemon.main import exit_soon, main

        code = main()
    except KeyboardInterrupt:  # Ctrl-C before it serves: it ends as whoever asks expects, and says nothing
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    else:
        exit_soon(code)
        sys.exit(code)
