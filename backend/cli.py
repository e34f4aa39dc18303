"""The command line, ``roi-inspector``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backend import __version__

if TYPE_CHECKING:
    from backend.settings import Settings

_BAD_SETTING = 2
"""Exit status, as argparse's for a bad argument."""


class _BadSetting(Exception):
    """A setting's value cannot be used; says which in a sentence, a line for each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status of the process."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except _BadSetting as error:
        print(error, file=sys.stderr)
        return _BAD_SETTING
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
    demo.add_argument("--seed", type=int, help="render other parts, with other defects; default 0")
    demo.add_argument("--n-good", type=int, default=30, help="good images to render (%(default)s)")
    demo.add_argument("--mm-per-px", type=float, default=0.2, help="scale of the images (%(default)s)")
    demo.add_argument("--keep-models", action="store_true", help="keep the fitted artefacts in the output folder")
    demo.add_argument("--serve", action="store_true", help="keep the server running, with its page to look at")
    demo.set_defaults(run=_demo)

    samples = commands.add_parser("samples", help="write rendered parts as a data set for benchmarks.accuracy")
    samples.add_argument("--out", type=Path, required=True, help="folder for the data set; must be new or empty")
    samples.add_argument("--sizes", choices=("usual", "small"), default="usual", help="of the defects (%(default)s)")
    samples.add_argument("--good", type=int, default=100, help="good parts in train and in test, each (%(default)s)")
    samples.add_argument("--per-kind", type=int, default=20, help="defective parts of each kind (%(default)s)")
    samples.add_argument("--seed", type=int, default=0, help="another seed gives other parts (%(default)s)")
    samples.add_argument("--mm-per-px", type=float, default=0.2, help="scale of the images (%(default)s)")
    samples.set_defaults(run=_samples)

    verify = commands.add_parser("verify", help="check every file of a models folder; exit status 1 if one is wrong")
    verify.set_defaults(run=_verify)

    backup = commands.add_parser("backup", help="write ROIs to one archive file")
    backup.add_argument("out", type=Path, help="the archive, a zip file")
    backup.add_argument("--recipe", help="only of this recipe")
    backup.add_argument("--role", help="only of this role")
    backup.add_argument("--roi", help="only ROIs of this id")
    backup.add_argument("--without-versions", action="store_true", help="only what is in force, no earlier versions")
    backup.set_defaults(run=_backup)

    restore = commands.add_parser("restore", help="bring the ROIs of an archive back")
    restore.add_argument("archive", type=Path, help="what `backup` wrote")
    restore.add_argument("--replace", action="store_true", help="put them in the place of ROIs that are there")
    restore.set_defaults(run=_restore)

    refit = commands.add_parser(
        "refit", help="make memories anew from the stored images, after an update; exit status 1 if one fails"
    )
    refit.add_argument("rois", nargs="*", metavar="ROI", help="ROLE/ROI, RECIPE/ROLE/ROI or RECIPE/ROLE/ROI/MODEL_KEY")
    refit.add_argument("--all", action="store_true", help="all models of all recipes that need it")
    refit.add_argument("--force", action="store_true", help="also those that are up to date")
    refit.set_defaults(run=_refit)

    for command in (verify, backup, restore, refit):
        command.add_argument("--models", type=Path, help="the models folder (BDI_MODELS_DIR)")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings()
    # Imported here, as below: the other commands do not need what one command needs.
    from backend.server import address_fault, serve
    from backend.wiring import settings_faults

    port = settings.backend_port if arguments.port is None else arguments.port
    host = arguments.host or settings.backend_host
    _end_if([*settings_faults(settings), *address_fault(host, port)])
    return serve(settings, host=host, port=port)


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from backend.demo.tour import run_demo
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        print(f'The demo needs {package}, which is not installed: pip install ".[demo]"', file=sys.stderr)
        return 2
    return run_demo(
        data=arguments.data,
        out=arguments.out,
        seed=arguments.seed,
        n_good=arguments.n_good,
        mm_per_px=arguments.mm_per_px,
        keep_models=arguments.keep_models,
        serves=arguments.serve,
    )


def _samples(arguments: argparse.Namespace) -> int:
    from backend.demo.sample_set import SampleSet, run_samples

    wanted = SampleSet(
        sizes=arguments.sizes,
        n_good=arguments.good,
        per_kind=arguments.per_kind,
        seed=arguments.seed,
        mm_per_px=arguments.mm_per_px,
    )
    return run_samples(wanted, arguments.out)


def _verify(arguments: argparse.Namespace) -> int:
    from backend.maintenance.archive_commands import run_verify

    return run_verify(_models_dir(arguments))


def _backup(arguments: argparse.Namespace) -> int:
    from backend.maintenance.archive_commands import run_backup

    return run_backup(
        _models_dir(arguments),
        arguments.out,
        recipe_id=arguments.recipe,
        role_id=arguments.role,
        roi_id=arguments.roi,
        with_versions=not arguments.without_versions,
    )


def _restore(arguments: argparse.Namespace) -> int:
    from backend.maintenance.archive_commands import run_restore

    return run_restore(arguments.archive, _models_dir(arguments), replace=arguments.replace)


def _refit(arguments: argparse.Namespace) -> int:
    from backend.maintenance.refit_command import run_refit
    from backend.wiring import build_service, extractor_faults, folder_faults

    settings = _settings(arguments.models)
    _end_if([*extractor_faults(settings), *folder_faults(settings)])
    _name_folder(settings.models_dir)
    service = build_service(settings)
    try:
        return run_refit(service, arguments.rois, of_all=arguments.all, force=arguments.force)
    finally:
        service.close()


def _models_dir(arguments: argparse.Namespace) -> Path:
    models_dir = Path(arguments.models or _settings().models_dir)
    _name_folder(models_dir)
    return models_dir


def _name_folder(models_dir: Path) -> None:
    """Say on which folder a command works: a relative path means another one in another folder."""
    print(f"the models folder is {models_dir.absolute()}", file=sys.stderr)


def _end_if(faults: Sequence[str]) -> None:
    if faults:
        raise _BadSetting("\n".join(faults))


def _settings(models_dir: Path | None = None) -> Settings:
    """Return the settings of the environment, with another models folder if one is given.

    Raises:
        _BadSetting: If a value cannot be used.
    """
    from pydantic import ValidationError

    from backend.settings import Settings
    from backend.utils import reason_of

    try:
        return Settings() if models_dir is None else Settings(models_dir=models_dir)
    except ValidationError as error:
        sentences = [
            f"{_named(str(each['loc'][0]), each['input'])} cannot be used: {reason_of(each['msg'])}."
            for each in error.errors()
        ]
        raise _BadSetting("\n".join(sentences)) from error


def _named(field: str, value: object) -> str:
    """Return the name of a setting and its value, unless that is a secret."""
    shown = field != "api_keys" and isinstance(value, str | int | float)
    return f"BDI_{field.upper()} {f'is {value!r}, which' if shown else 'has a value that'}"


if __name__ == "__main__":
    sys.exit(main())
