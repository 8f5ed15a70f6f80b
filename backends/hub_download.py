"""The child process that fetches one file from the Hugging Face hub; run by `backends.downloads`, never imported.

A process of its own, because it can be ended at any moment and takes the hub library's memory with it. Arguments:
repository, file, folder. An interrupted file is continued from where it stopped. The last line on standard error says
why it failed.
"""

import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

PROBE_TIMEOUT_S = 2.0
"""An unreachable hub costs this much, not the library's minutes of retries."""


def main(repo: str, filename: str, folder: str) -> int:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported at run time only

    if reason := unreachable(f"{constants.ENDPOINT}/api/models/{repo}"):
        return _fail(f"{constants.ENDPOINT} does not answer ({reason})")
    try:
        url = hf_hub_url(repo, filename)
        size = get_hf_file_metadata(url).size
        # not hf_hub_download: since its version 2 it begins anew in every process
        with (Path(folder) / filename).open("ab") as file:
            http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
    except Exception as error:  # noqa: BLE001 - the process ends here; its last line carries the reason
        return _fail(f"{constants.ENDPOINT}: {error}")
    return 0


def unreachable(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """Why nobody answers at `url`, or nothing. Any answer will do, and name look-ups are bounded too."""
    found = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the hub's own address, from its library
            with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
                found[0] = ""
        except urllib.error.HTTPError:
            found[0] = ""
        except (OSError, ValueError) as error:
            found[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    return found[0]


def _fail(reason: str) -> int:
    sys.stderr.write(" ".join(reason.split())[:300] + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
