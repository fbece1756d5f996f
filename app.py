"""A web page for trying DeepCache: images with and without it, side by side.

python app.py                                                             the model shipped with this repository
python app.py --model stable-diffusion-v1-5/stable-diffusion-v1-5         any Stable Diffusion 1.x or 2.x
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from contextlib import suppress

from common import numbers
from common.command_line import Parser, RunError, run_cli
from common.device import add_device_arguments, resolve_device, resolve_dtype

LOCAL = ("127.0.0.1", "localhost", "::1")


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    p.add_argument("--host", default="127.0.0.1", help="address to serve on; any but this opens the page to others")
    p.add_argument("--port", type=numbers.whole(1, 65535), default=7860, help="port to serve on")
    add_device_arguments(p)
    p.add_argument("--quiet", action="store_true", help="print only errors")
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    if importlib.util.find_spec("gradio") is None:
        raise RunError("gradio is not installed; run `make app`, which installs it and starts this page")
    if args.host not in LOCAL and not args.quiet:
        print(f"warning: anyone who can reach {args.host} can use this page", file=sys.stderr)

    # 2. Load and serve. Imported late, since Gradio is in an environment of its own.
    from webui.engine import Engine
    from webui.page import serve

    engine = Engine(args.model, device, dtype)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        serve(engine, args.model, args.host, args.port, quiet=args.quiet)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
