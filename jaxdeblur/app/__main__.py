"""``python -m jaxdeblur.app``: the page for photographers, on this machine."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence

from absl import flags

from jaxdeblur.errors import InputError

PASSWORD_VARIABLE = "JAXDEBLUR_PASSWORD"


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen on; another than this machine's own needs --password.", flag_values=values
    )
    flags.DEFINE_integer("port", 7860, "Port; 0 for any that is free.", lower_bound=0, upper_bound=65535, flag_values=values)
    flags.DEFINE_string(
        "password",
        None,
        f"That visitors are asked for (also {PASSWORD_VARIABLE}, which other users do not see).",
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_megapixels", 50.0, "The largest photograph, in millions of pixels.", lower_bound=0.001, flag_values=values
    )
    flags.DEFINE_float("max_upload_mb", 200.0, "The largest file, in megabytes.", lower_bound=0.001, flag_values=values)
    flags.DEFINE_float(
        "session_minutes",
        60.0,
        "A visitor's files are removed when they have been silent for so long.",
        lower_bound=0.01,
        flag_values=values,
    )
    flags.DEFINE_integer("jobs", 1, "Computations at a time; others wait.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("cache_dir", None, "Folder for compiled programs, or 'off'.", flag_values=values)
    flags.DEFINE_bool("open", True, "Open the page in the browser.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this help and exit.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Serves the page until it is interrupted; returns the exit status."""
    values = define_flags()
    try:
        _, *unexpected = values(list(argv))
        if values.help:
            print("usage: python -m jaxdeblur.app [flags]\n" + values.main_module_help())
            return 0
        if unexpected:
            raise InputError(f"unexpected argument {unexpected[0]!r}; photographs are given on the page itself")
        return _serve(values)
    except (InputError, flags.Error) as error:
        print(f"jaxdeblur: {error}", file=sys.stderr)
        return 1


def _serve(values: flags.FlagValues) -> int:
    try:
        import uvicorn

        from jaxdeblur.app.server import Limits, make_app
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run pip install 'jaxdeblur[app]'") from None
    limits = Limits(values.max_megapixels, values.max_upload_mb, values.session_minutes, values.jobs)
    password = values.password or os.environ.get(PASSWORD_VARIABLE)
    app = make_app(limits, host=values.host, password=password, cache_dir=values.cache_dir)
    family = socket.AF_INET6 if ":" in values.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((values.host, values.port))
    except OSError as error:
        raise InputError(
            f"--host={values.host} --port={values.port}: cannot listen there ({error.strerror}); give another"
        ) from None
    shown = f"[{values.host}]" if ":" in values.host else values.host
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    print(f"jaxdeblur: the page is at {address} (Ctrl-C ends it)", flush=True)
    if values.open:
        opener = threading.Timer(1.0, webbrowser.open, [address])
        opener.daemon = True
        opener.start()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=200,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
