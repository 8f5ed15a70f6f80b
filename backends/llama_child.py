"""The child process that holds the embedded model: llama.cpp's own server, on loopback. Run by path, never imported.

It gets one line of JSON on standard input and answers with one on standard output when the model is loaded. It ends
when its standard input does: also when its parent was killed and could not say goodbye.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_LOG_S = 0.5
"""The library writes its log from a thread of its own; its last lines, which say why, take a moment."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not look like our answer
    settings = json.loads(_first_line())
    for watch in (_end_with_input, _end_with_parent):
        threading.Thread(target=watch, daemon=True).start()
    _be_first_to_go()
    try:
        server = serve(settings)
    except (RuntimeError, ImportError, MemoryError) as error:
        time.sleep(_LOG_S)
        sys.stderr.write(f"{error}\n")
        os._exit(1)  # not sys.exit: the library's threads may be in no state to be wound up
    answers.write(json.dumps({"url": server.listening_address}) + "\n")
    answers.flush()
    threading.Event().wait()


def serve(settings: dict[str, Any]) -> Any:
    """Load the model and listen. Raises what the library raises."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["name"]}
    params.n_parallel = settings["places"]
    params.n_ctx = settings["places"] * settings["context_tokens"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.cache_ram_mib = settings["cache_mib"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["key"]]
    params.n_threads_http = 2 * settings["places"] + 2
    params.endpoint_slots = True
    params.ui = False
    params.offline = True
    params.warmup = False  # the first question warms it up, and need not wait for it twice
    params.fit_params = False  # the window stays as asked for; there is no device whose memory it should fit
    params.verbosity = 2
    return xllamacpp.Server(params)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _end_with_parent() -> None:
    """The input stays open when a fork of the parent outlives it; then this notices, a second later."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _be_first_to_go() -> None:
    """When memory runs out, let it cost the model and not the bot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


if __name__ == "__main__":
    main()
