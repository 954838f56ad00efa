"""The test hub, and what the client and the processes that tests start find in their environment."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import torch
from support.hub_server import HubServer

# The client reads its surroundings when it is imported: no test, and no process that a test starts,
# reaches another hub than this one, uses somebody's token, or writes into their cache.
HUB = HubServer().start()
atexit.register(HUB.stop)
HOME = tempfile.mkdtemp(prefix="hub-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
# There are as many workers as cores; more threads only get in their way, unless they are what is tested.
_threads = os.environ.get("SAM3LITE_TEST_THREADS") or ("1" if "PYTEST_XDIST_WORKER" in os.environ else None)
if _threads:
    torch.set_num_threads(int(_threads))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = _threads
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": HOME,
    "HF_HUB_DISABLE_XET": "1",  # the storage protocol that the test hub does not speak
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "SSL_CERT_DIR": HOME,  # no certificates: the client would read all that there are for each test
}
for _name in (
    "SSL_CERT_FILE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "COLUMNS",
    "LINES",
):
    os.environ.pop(_name, None)
