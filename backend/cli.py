"""The command line, ``roi-inspector``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from backend import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status of the process."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roi-inspector", description="Anomaly inspection of canonical ROI images.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    serve = commands.add_parser("serve", help="start the HTTP service")
    serve.add_argument("--host", help="address to bind to (BDI_BACKEND_HOST)")
    serve.add_argument("--port", type=int, help="port to bind to (BDI_BACKEND_PORT)")
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="start a server, show it at work, and write a page about it")
    demo.add_argument("--data", type=Path, help="real images: train/good, test/good, test/<defect>")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="where the page goes (%(default)s)")
    demo.add_argument("--n-good", type=int, default=30, help="good images to render (%(default)s)")
    demo.add_argument("--mm-per-px", type=float, default=0.2, help="scale of the images (%(default)s)")
    demo.add_argument("--keep-models", action="store_true", help="keep the fitted artefacts in the output folder")
    demo.set_defaults(run=_demo)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    # Imported here, as below: the other commands do not need what one command needs.
    import uvicorn

    from backend.app import create_app
    from backend.settings import Settings

    settings = Settings()
    uvicorn.run(
        create_app(settings),
        host=arguments.host or settings.backend_host,
        port=settings.backend_port if arguments.port is None else arguments.port,
        server_header=False,
        # A client that stalls in the middle of an upload must not keep the service from stopping.
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from backend.demo import run_demo

    return run_demo(
        data=arguments.data,
        out=arguments.out,
        n_good=arguments.n_good,
        mm_per_px=arguments.mm_per_px,
        keep_models=arguments.keep_models,
    )
