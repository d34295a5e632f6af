"""The Supabase-shaped server of `campaigns/supabase_server`, run under Deno."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from campaigns.resource import Resource

ROOT = Path(__file__).parents[1]
SERVER = Path(__file__).parent / "supabase_server" / "server.ts"
INSTALLED = ROOT / ".venv" / "deno"
"""Where `scripts/install-deno` puts Deno and the packages of the server."""
PACKAGES = ("server", "file-store")
OPTIONS = (
    *("--quiet", "--no-prompt", "--cached-only", "--no-config", "--node-modules-dir=manual"),
    *("--allow-env", "--allow-net", "--allow-read", "--allow-write", "--allow-sys"),
)
STOP_S = 30.0
LEGACY_KEY = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"
"""A JWT with the role service_role."""


def find_deno() -> str | None:
    """The Deno binary: $DENO_BIN, the path, or what `scripts/install-deno` installed."""
    installed = INSTALLED / "node_modules" / ".bin" / "deno"
    return (
        os.environ.get("DENO_BIN") or shutil.which("deno") or (str(installed) if installed.exists() else None)
    )


class NotInstalled(RuntimeError):
    """Deno, or a package of the server, is missing."""


class SupabaseServer(Resource):
    """A server on a port of this machine, without buckets; use it as a context manager.

    What it stores is in memory. Entering raises `NotInstalled`.
    """

    def __init__(self, *, port: int = 0) -> None:
        super().__init__()
        self.secret_key = f"sb_secret_{secrets.token_urlsafe(16)}"
        self.legacy_key = LEGACY_KEY
        self.port = port
        """The port; 0 before it is started if any free one is to be taken."""

    def _open(self) -> None:
        deno, modules = find_deno(), INSTALLED / "supabase-server" / "node_modules"
        if deno is None or not modules.is_dir():
            raise NotInstalled("the server's packages are not installed: run scripts/install-deno")
        imports = {
            f"@tus/{name}": (modules / "@tus" / name / "dist" / "index.js").resolve().as_uri()
            for name in PACKAGES
        }
        import_map = f"data:application/json,{json.dumps({'imports': imports})}"
        process = subprocess.Popen(
            [deno, "run", *OPTIONS, f"--import-map={import_map}", str(SERVER)],
            env={
                **os.environ,
                "DENO_NO_UPDATE_CHECK": "1",
                "PORT": str(self.port),
                "SECRET_KEY": self.secret_key,
                "LEGACY_KEY": self.legacy_key,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        self._cleanup.callback(process.communicate, timeout=STOP_S)
        self._cleanup.callback(process.terminate)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {process.wait()}")
        ports = json.loads(line)
        self.port, self._control_url = int(ports["listening"]), f"http://127.0.0.1:{ports['control']}"

    @property
    def url(self) -> str:
        """What `SUPABASE_URL` is to be."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The settings with which an installation stores its files here."""
        return {
            "OURVIDZ_STORAGE": "supabase",
            "SUPABASE_URL": self.url,
            "SUPABASE_SERVICE_KEY": self.secret_key,
        }

    def fail(self, method: str, path: str, *, status: int, times: int) -> None:
        """Answer the next requests whose path begins with `path` (below `/storage/v1`) with `status`."""
        self._control("/faults", {"method": method, "path": path, "status": status, "left": times})

    def overload(self, on: bool) -> None:
        """Answer every request with 503, or none any more."""
        self._control("/overload", on)

    def cut_connections(self) -> None:
        """Close every connection, also those that carry a request."""
        self._control("/cut", {})

    def stored_keys(self) -> list[str]:
        """The keys of all objects."""
        return list(self._control("/keys", {}))

    def expire_uploads(self) -> None:
        """Forget every resumable upload, as the API does after a day."""
        self._control("/expire", {})

    def requests(self) -> list[str]:
        """Every request so far, such as `POST /object/copy`."""
        return list(self._control("/requests", {}))

    def _control(self, path: str, document: Any) -> Any:
        request = urllib.request.Request(
            self._control_url + path, data=json.dumps(document).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=STOP_S) as response:
            return json.load(response)
