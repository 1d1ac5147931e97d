"""Signals arrive, however the tests were started.

A script's background jobs are started with SIGINT ignored, `nohup` has SIGHUP ignored, and all programs that they start
inherit it. The tests send both to programs that they start, and SIGINT to themselves, as a terminal would.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # still nothing here; the default in what is started
