"""The command line: ``jaxdeblur photo.jpg``, or ``python -m jaxdeblur.main --image=photo.jpg``.

Exit status: 0 if every image succeeded, 1 if one failed or the command could not be understood, 130 after Ctrl-C, 143 after
SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import pathlib
import signal
import sys
import textwrap
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from absl import flags

from jaxdeblur.config import BLURS, FINALS, Config
from jaxdeblur.errors import InputError, Terminated, describe
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.imaging.reading import MAX_MEGAPIXELS, read_image
from jaxdeblur.imaging.selection import Outputs, ReportKinds, assign_outputs, find_images, prepare_folder, remove_if_empty
from jaxdeblur.imaging.staging import tidy
from jaxdeblur.jobs.batches import fits_together
from jaxdeblur.jobs.folder_index import NAME, FolderIndex
from jaxdeblur.jobs.images import Failures, Settings, run_job, run_jobs
from jaxdeblur.jobs.progress import write_line
from jaxdeblur.jobs.saved_run import LARGEST_SEED, SavedRun, read_saved_run, version_notes
from jaxdeblur.version import __version__

USAGE = "usage: jaxdeblur photo.jpg [more images] [flags]"
_RAISED_AGAIN_AFTER = 0.05  # seconds


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv, relaunch=True))


def main(argv: Sequence[str], *, relaunch: bool = False) -> int:
    """Runs a command line.

    Args:
      argv: the program's name and its arguments.
      relaunch: whether the process may start itself anew with a memory allocator that suits it (see ``--huge_pages``).

    Returns:
      The exit status.
    """
    _set_up_logging()
    values = define_flags()
    with _sigterm_interrupts():
        try:
            return _main(values, argv, relaunch)
        except (InputError, flags.Error) as error:
            _complain(str(error))
            return 1
        except KeyboardInterrupt as stop:
            _complain("interrupted; results of finished images are whole, no others were written")
            return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        except Exception as error:
            if values["debug"].value:
                raise
            _complain(f"failed, {describe(error)} (--debug shows where)")
            return 1


def define_flags() -> flags.FlagValues:
    """The flags, unparsed. None means that the preset's or the library's own default holds."""
    values = flags.FlagValues()

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    def switch(name: str, text: str) -> None:
        flags.DEFINE_bool(name, False, text, flag_values=values)

    values.set_gnu_getopt(True)  # flags may follow images
    string("image", None, "What to deblur: a file, a folder, a glob, or several of these by comma; --image= may be left out.")
    string("output_dir", None, "Folder for the results (default: a folder 'deblurred' beside each image).")
    string("preset", "fast", "The method; --list_presets lists all of them.")
    string("config", None, "Report (NAME_report.json) of an earlier run: repeat that run, as changed by other flags.")
    string("kernel_size", None, "Side of the blur kernel: 'auto' or an odd number of pixels.")
    string("kernel", None, "PNG or NPY of a known kernel: only the sharp image is estimated.")
    flags.DEFINE_integer(
        "num_iterations",
        None,
        "Steps of the deep prior's fit; its schedules scale with them.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("num_restarts", None, "Independent fits; the best is kept.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "num_posterior_samples",
        None,
        "Samples of the deep prior; their mean and an uncertainty map are written. 0 for none.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Seed of all randomness.", lower_bound=0, upper_bound=LARGEST_SEED, flag_values=values)
    flags.DEFINE_enum(
        "stopping",
        None,
        ["off", "error", "variance"],
        "Stop the deep prior's fit early: when its error, or the moving variance of its image, no longer falls.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "stopping_patience", None, "Steps without improvement before it stops.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("stopping_from", None, "First step that counts.", lower_bound=0, flag_values=values)
    flags.DEFINE_enum("teacher", None, ["dmphn", "dwdn"], "Pre-trained network, in presets that use one.", flag_values=values)
    string("teacher_weights", None, "File or folder of that network's weights; they do not come with jaxdeblur.")
    flags.DEFINE_enum("final", None, FINALS, "How the final image is made from the kernel.", flag_values=values)
    flags.DEFINE_enum(
        "blur",
        None,
        BLURS,
        "'varying' for a camera that turned: a kernel for each part of the image; 'auto' where it explains the image better.",
        flag_values=values,
    )
    string(
        "region", None, "Part from which the kernel is estimated, as x,y,width,height in pixels; all of the image is restored."
    )
    flags.DEFINE_float(
        "smoothness",
        None,
        "Factor on the weight of the final image's prior: above 1 smoother, below 1 crisper and noisier.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "amount", None, "Share of the restored image in the result, 0 to 1; the rest is the input.", flag_values=values
    )
    flags.DEFINE_float(
        "minutes",
        None,
        "Time for an image: what the usual estimate leaves of it goes into further attempts at the kernel, until two agree. "
        "Ctrl-C takes the best so far.",
        flag_values=values,
    )
    string("reference", None, "The sharp image: aligned PSNR and SSIM are printed and recorded.")
    flags.DEFINE_float(
        "max_megapixels",
        MAX_MEGAPIXELS,
        "The largest image that is read, in millions of pixels; a larger one is refused before it takes memory.",
        lower_bound=0.001,
        upper_bound=1e6,
        flag_values=values,
    )
    switch("overwrite", "Replace results that exist already.")
    string("cache_dir", None, "Folder for compiled programs, or 'off' (default: a folder of the user's cache).")
    flags.DEFINE_enum(
        "huge_pages",
        "auto",
        ["auto", "off"],
        "On Linux CPUs, 'auto' restarts the process with huge memory pages, which makes it faster.",
        flag_values=values,
    )
    flags.DEFINE_integer("workers", 1, "Processes that share the images of a folder.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images of one size whose deep priors are fitted together. By default 1 on CPUs, on a GPU as many as its memory holds.",
        lower_bound=1,
        flag_values=values,
    )
    string("checkpoint_dir", None, "Folder for the state of an unfinished fit; the same command resumes it.")
    string("ray", None, "Address of a Ray cluster that shares the images, or 'local' (needs the extra 'cluster').")
    flags.DEFINE_enum(
        "report",
        "both",
        get_args(ReportKinds),
        "Which reports are written beside the results: a page (html), a file for programs (json), or both.",
        flag_values=values,
    )
    switch("open", "Show the report in the browser: of several images, the page over all of them.")
    switch("debug", "End with a stack trace on an unexpected error.")
    switch("list_presets", "List the presets and exit.")
    switch("version", "Print the version and exit.")
    switch("help", "Print this help and exit.")
    return values


def _main(values: flags.FlagValues, argv: Sequence[str], relaunch: bool) -> int:
    _, *named = values(list(argv))
    if values.help:
        print(_help(values))
    elif values.version:
        print(__version__)
    elif values.list_presets:
        print(_preset_list())
    else:
        return _deblur_all(values, named, relaunch)
    return 0


def _deblur_all(values: flags.FlagValues, named: Sequence[str], relaunch: bool) -> int:
    if named and values.image:
        raise InputError(
            f"{named[0]} and --image={values.image} are two ways to name images; give one, or flags as --name=value"
        )
    if values.open and values.report == "json":
        raise InputError("--open shows the HTML report, which --report=json leaves out; leave one of them out")
    saved = read_saved_run(pathlib.Path(values.config).expanduser()) if values.config else None
    messages: list[str] = []
    if named:
        images = list(dict.fromkeys(image for name in named for image in find_images(name, messages.append)))
    elif values.image:
        images = find_images(values.image, messages.append)
    elif saved is not None:
        images = [saved.image]
    else:
        raise InputError(f"no image is named, neither by itself nor with --image; {USAGE} (--help lists them)")
    settings = _settings(values, saved)
    if saved is not None:
        messages += version_notes(saved)
    if values.reference and len(images) > 1:
        raise InputError(f"--reference goes with one image, but {len(images)} are named; give one")
    if values.output_dir:
        remove_if_empty(prepare_folder(pathlib.Path(values.output_dir).expanduser()))
    if relaunch and values.huge_pages == "auto":
        from jaxdeblur import runtime

        runtime.relaunch_with_huge_pages()  # does not return if it does anything
    for message in messages:
        _say(message)
    jobs = list(zip(images, assign_outputs(images, values.output_dir), strict=True))
    places = {outputs.folder for _, outputs in jobs if isinstance(outputs, Outputs)}
    if settings.checkpoint_dir is not None:
        places.add(settings.checkpoint_dir)
    for place in places:
        tidy(place)
    failures = Failures(_complain, values.debug)
    folders = [outputs.folder for _, outputs in jobs if isinstance(outputs, Outputs)]
    index = FolderIndex(folders if len(jobs) > 1 else (), _say)

    def say(message: str) -> None:
        _say(message)
        index.update()

    size = values.batch_size if settings.checkpoint_dir is None else 1  # a checkpoint is of one fit
    try:
        if values.ray or values.workers > 1 or (len(jobs) > 1 and fits_together(settings.config, size)):
            run_jobs(jobs, settings, say, failures, workers=values.workers, ray_address=values.ray, batch_size=size)
        else:
            for image, outputs in jobs:
                with failures.of(image):
                    run_job(image, outputs, settings, say)
    finally:  # also of a run that was cut
        index.write()
        for place in places:  # workers that were killed may have been writing
            tidy(place)
    pages = [outputs.html_report for _, outputs in jobs if isinstance(outputs, Outputs)]
    if len(jobs) > 1:
        pages = list(dict.fromkeys(folder / NAME for folder in folders))
    _show(pages, opens=values.open)
    if len(jobs) > 1:
        _say(f"{len(images) - failures.count} of {len(images)} images deblurred")
    return 1 if failures.count else 0


def _show(pages: Sequence[pathlib.Path], *, opens: bool) -> None:
    """Names the pages to look at, and opens them in the browser if it is asked for."""
    for page in filter(pathlib.Path.exists, pages):
        if not opens:
            _say(f"look at {page} (--open shows it in the browser)")
        elif not webbrowser.open(page.resolve().as_uri()):
            _say(f"no browser could be started; open {page}")


def _settings(values: flags.FlagValues, saved: SavedRun | None) -> Settings:
    if values.kernel and values.kernel_size:
        raise InputError("--kernel and --kernel_size exclude each other; give one of them")
    kernel = pathlib.Path(values.kernel).expanduser() if values.kernel else None
    seed = values.seed
    region = _region(values.region) if values.region else None
    if saved is not None:
        region = region or saved.region
        kernel = kernel or saved.kernel
        seed = seed if values["seed"].present else saved.seed
    config = _config(values, saved)
    if config.needs_kernel and kernel is None:
        raise InputError(f"preset {config.name} restores the image for a known kernel only; give --kernel=FILE")
    if values.minutes is not None and not values.minutes >= 0:
        raise InputError(f"--minutes={values.minutes} is no time; give a number of minutes, 0 or more")
    if values.minutes is not None and not config.can_search:
        raise InputError(
            f"preset {config.name} makes no further attempts at a kernel; leave --minutes out, or take --preset=fast"
        )
    if values.minutes is not None and kernel is not None:
        raise InputError("--minutes is for the search of a kernel, and the kernel is given; leave one of them out")
    checkpoint_dir = pathlib.Path(values.checkpoint_dir).expanduser() if values.checkpoint_dir else None
    if checkpoint_dir is not None:
        if values.ray:
            raise InputError("--checkpoint_dir is a folder of this machine and --ray works on others; leave one out")
        if (values.batch_size or 1) > 1:
            raise InputError("--checkpoint_dir keeps the fit of one image at a time; leave it or --batch_size out")
        remove_if_empty(prepare_folder(checkpoint_dir))
    limit = values.max_megapixels
    reference = pathlib.Path(values.reference).expanduser() if values.reference else None
    return Settings(
        config=config,
        seed=seed,
        kernel=read_kernel(kernel, max_megapixels=limit) if kernel else None,
        reference=read_image(reference, max_megapixels=limit) if reference else None,
        overwrite=values.overwrite,
        cache_dir=values.cache_dir,
        checkpoint_dir=checkpoint_dir,
        max_megapixels=limit,
        region=region,
        time_budget=None if values.minutes is None else 60.0 * values.minutes,
        reports=values.report,
    )


def _region(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--region={text} is no region; give four numbers of pixels, x,y,width,height") from None
    return x, y, width, height


def _config(values: flags.FlagValues, saved: SavedRun | None) -> Config:
    from jaxdeblur.presets import PRESETS

    if saved is not None:
        if values["preset"].present:
            raise InputError("--config and --preset exclude each other; give one of them")
        config = saved.config
    elif values.preset in PRESETS:
        config = PRESETS[values.preset]
    else:
        close = difflib.get_close_matches(values.preset, PRESETS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"unknown preset {values.preset!r}{hint} (--list_presets lists all of them)")
    kernel_size = None
    if values.kernel_size == "auto":
        config = dataclasses.replace(config, kernel_size=None)
    elif values.kernel_size is not None:
        try:
            kernel_size = int(values.kernel_size)
        except ValueError:
            raise InputError(f"--kernel_size={values.kernel_size} is no size; give 'auto' or an odd number of pixels") from None
    return config.override(
        kernel_size=kernel_size,
        num_iterations=values.num_iterations,
        num_restarts=values.num_restarts,
        num_posterior_samples=values.num_posterior_samples,
        final=values.final,
        blur=values.blur,
        teacher=values.teacher,
        teacher_weights=values.teacher_weights,
        stopping=values.stopping,
        stopping_patience=values.stopping_patience,
        stopping_from=values.stopping_from,
        smoothness=values.smoothness,
        amount=values.amount,
    )


def _help(values: flags.FlagValues) -> str:
    """Our flags in the order of their definition, without those that absl adds of its own."""
    modules = values.flags_by_module_dict()
    own = [flag for module, flags_of_it in modules.items() if not module.startswith("absl") for flag in flags_of_it]
    lines = [USAGE, ""]
    for flag in own:
        text = flag.help if flag.default is None or flag.default is False else f"{flag.help} Default: {flag.default}."
        lines += textwrap.wrap(text, width=100, initial_indent=f"  --{flag.name:<15} ", subsequent_indent=" " * 20)
    return "\n".join(lines)


def _preset_list() -> str:
    """The presets by paper: name, steps, published figure, and what they are."""
    from jaxdeblur.presets import ABOUT, PRESETS

    papers: dict[tuple[str, str], list[str]] = {}
    for name, about in ABOUT.items():
        fit = PRESETS[name].fit
        steps = f"{fit.num_iterations} steps" if fit is not None else "no steps"
        line = f"  {name:<32} {steps:>10}  {about.figure or '-':<28} {about.summary}"
        papers.setdefault((about.paper, about.hardware), []).append(line)
    blocks = [f"{paper} -- needs {hardware}:\n" + "\n".join(lines) for (paper, hardware), lines in papers.items()]
    return "\n\n".join(["Name, steps, PSNR/SSIM (published unless it says ours), what it is", *blocks])


class _SayHandler(logging.Handler):
    """Log records of the library as plain lines among the command line's own."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


def _set_up_logging() -> None:
    logger = logging.getLogger("jaxdeblur")
    if not logger.handlers:
        logger.addHandler(_SayHandler())
        logger.setLevel(logging.INFO)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Has SIGTERM raise an interrupt as Ctrl-C does, so that what is half done is removed on the way out."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread see to signals
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one shall not disturb the removal
        raise Terminated

    def on_unraisable(failure: Any) -> None:
        if isinstance(failure.exc_value, Terminated):  # it fell into a finaliser, from which nothing can be raised
            signal.signal(signal.SIGTERM, stop)
            threading.Timer(_RAISED_AGAIN_AFTER, signal.pthread_kill, [threading.get_ident(), signal.SIGTERM]).start()
        elif signal.getsignal(signal.SIGTERM) is stop:
            hook_before(failure)
        # Else an object whose making was interrupted cannot be finalised: its trace would tell the user nothing.

    hook_before, sys.unraisablehook = sys.unraisablehook, on_unraisable
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        sys.unraisablehook = hook_before


def _say(message: str) -> None:
    write_line(message, sys.stdout)


def _complain(message: str) -> None:
    write_line(f"jaxdeblur: {message}", sys.stderr)


if __name__ == "__main__":
    run()
