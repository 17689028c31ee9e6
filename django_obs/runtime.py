"""What the processes of one project share: a directory, the names of their roles, and the control file in it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from .conf import Settings, get_settings

# -- The directory ----------------------------------------------------------------------------------------------------

SIGNPOST = "at"
CONTROL = "control.json"
# How a process that sends copies tells the admin port what it is.
ROLE_HEADER = "Django-Obs-Role"


class RuntimeDirError(OSError):
    """The runtime directory cannot be used; its text names the path, the reason and the way out."""

    def __init__(self, path: Path, reason: str, way_out: str) -> None:
        super().__init__(f"Runtime directory {path} {reason}; {way_out}.")
        self.path = path
        self.reason = reason
        self.way_out = way_out


def runtime_dir(settings: Settings | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the directory that all processes of this project and user share; make it if need be.

    The first of these that is given holds:

    1. the setting ``RUNTIME_DIR``, the directory itself;
    2. ``$RUNTIME_DIRECTORY``, which systemd sets for a unit with ``RuntimeDirectory=``;
    3. where another process of the project has settled already;
    4. ``$XDG_RUNTIME_DIR``, if it is this user's;
    5. the directory for temporary files.

    The environment of a cron job differs from that of a service or a login, so 2, 4 and 5 alone would scatter the
    processes. Hence whoever settles leaves a signpost in 5, and who comes later follows it (3).

    The directory belongs to this user alone: mode 0700 when made; a symlink, somebody else's directory, and one that
    others can write to are refused with a `RuntimeDirError`, as is whatever the file system refuses.
    """
    place, known, unsettled, move = _choice(settings or get_settings(), environ)
    if known is None:
        return _made(place, parents=True)
    if place != known or not unsettled:
        _made(place)
    if move:
        with contextlib.suppress(RuntimeDirError):  # Somebody sits there; a unit has no need of it.
            _settle(known, place, move=True)
        return place
    return _settle(known, place) if unsettled else place


def probe_runtime_dir(settings: Settings | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return what `runtime_dir` would, and raise what it would, but make nothing."""
    place, _, _, _ = _choice(settings or get_settings(), environ)
    try:
        if os.path.lexists(place):
            return _checked(place)
        parent = place.parent
        while not os.path.lexists(parent):
            parent = parent.parent
        if not parent.is_dir():
            raise _not_made(place, f"{parent} is not a directory")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise _not_made(place, f"{parent} cannot be written to")
    except RuntimeDirError:
        raise
    except OSError as error:
        raise _not_made(place, error.strerror) from error
    return place


class _Choice(NamedTuple):
    place: Path
    known: Path | None
    """Where the signpost is, if there need be one."""
    unsettled: bool = False
    """Whether the signpost has yet to be put up."""
    move: bool = False
    """Whether to put up the signpost though it points elsewhere."""


def _choice(settings: Settings, environ: Mapping[str, str]) -> _Choice:
    if settings.runtime_dir:
        return _Choice(Path(settings.runtime_dir), None)
    name = f"django_obs-{os.geteuid()}-{project_name()}"
    known = Path(_temporary(environ), name)
    # A unit may have several runtime directories, separated by colons: systemd.exec(5).
    if base := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return _Choice(Path(base, name), known, move=True)
    if settled := _followed(known):
        return _Choice(settled, known)
    if (base := environ.get("XDG_RUNTIME_DIR", "")) and _is_ours(base):
        return _Choice(Path(base, name), known, unsettled=True)
    return _Choice(known, known, unsettled=True)


def _temporary(environ: Mapping[str, str]) -> str:
    # Not tempfile.gettempdir(): where it can write nowhere it takes the current directory, which differs by process.
    given = environ.get("TMPDIR", "")
    return given if os.path.isdir(given) else "/tmp"


def project_name() -> str:
    """Return a name for the project, the same in all its processes: readable, then a hash of where it lives."""
    # Not at the top: under a bare interpreter this module serves with RUNTIME_DIR alone.
    from hashlib import blake2s

    from django.conf import settings

    base = getattr(settings, "BASE_DIR", None) or _settings_directory() or "."
    where = os.path.realpath(base)
    readable = "".join(each for each in os.path.basename(where) if each.isascii() and each.isalnum())[:32]
    return f"{readable or 'project'}-{blake2s(os.fsencode(where), digest_size=5).hexdigest()}"


def _settings_directory() -> str | None:
    # Not the module itself: the web's and the worker's settings may be two modules side by side.
    import sys

    from django.conf import settings

    module = sys.modules.get(getattr(settings, "SETTINGS_MODULE", None) or "")
    file = getattr(module, "__file__", None)
    return os.path.dirname(file) if file else None


def _is_ours(path: str) -> bool:
    # `su` without `-` leaves the variable of the user one came from.
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _made(path: Path, *, parents: bool = False) -> Path:
    """Return the directory at `path` when it is safe to use; make it when it is not there."""
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        return _checked(path)
    except RuntimeDirError:
        raise
    except OSError as error:
        raise _not_made(path, error.strerror) from error


def _not_made(path: Path, reason: str | None) -> RuntimeDirError:
    return RuntimeDirError(path, f"cannot be made ({reason})", "set DJANGO_OBS['RUNTIME_DIR'] to a directory that can")


def _checked(path: Path) -> Path:
    found = os.lstat(path)
    elsewhere = "remove it, or set DJANGO_OBS['RUNTIME_DIR'] to another directory"
    if stat.S_ISLNK(found.st_mode):
        raise RuntimeDirError(path, f"is a symlink (to {os.readlink(path)})", elsewhere)
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirError(path, "is not a directory", elsewhere)
    if found.st_uid != os.geteuid():
        theirs, ours = user_name(found.st_uid), user_name(os.geteuid())
        raise RuntimeDirError(
            path,
            f"belongs to {theirs}, while this process runs as {ours}",
            f"run as {theirs}, or set DJANGO_OBS['RUNTIME_DIR'] to another directory, inside it perhaps",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeDirError(
            path, f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod 700 {path}"
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise RuntimeDirError(path, "cannot be written to", "make it writable, or set DJANGO_OBS['RUNTIME_DIR']")
    return path


def user_name(uid: int) -> str:
    """Return the name of a user, or what one says of a user without a name."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _followed(known: Path) -> Path | None:
    """Return the safe directory that the signpost in `known` points to, if there is one."""
    try:
        _checked(known)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError, ValueError):
        place = Path((known / SIGNPOST).read_text())
        if place.is_absolute():
            return _checked(place)
    return None  # A login's directory goes with the login, a tidy machine sweeps old files: settle anew.


def _settle(known: Path, place: Path, *, move: bool = False) -> Path:
    """Put up the signpost to `place`, unless another process was faster: then go where its own points to.

    With `move` it is put up in any case.
    """
    try:
        if not _appear(known, place) and (move or not _followed(known)):
            _point(known, place)
    except RuntimeDirError:
        raise
    except OSError as error:
        if place == known:
            raise _not_made(known, error.strerror) from error
        return place  # Without a signpost only those with another environment lose their way.
    return place if move else _followed(known) or place


def _appear(known: Path, place: Path) -> bool:
    """Make `known` with its signpost inside, at once; return False if it is there already.

    Nobody can see the one without the other, and since it is not empty nobody's rename can replace it.
    """
    if os.path.lexists(known):
        return False
    draft = Path(tempfile.mkdtemp(prefix=f"{known.name}.", dir=known.parent))
    try:
        (draft / SIGNPOST).write_text(str(place))
        draft.rename(known)
    except OSError:
        with contextlib.suppress(OSError):
            (draft / SIGNPOST).unlink(missing_ok=True)
            draft.rmdir()
        if not os.path.lexists(known):
            raise
        return False
    return True


def _point(known: Path, place: Path) -> None:
    _made(known)
    with contextlib.suppress(OSError, ValueError):
        if (known / SIGNPOST).read_text() == str(place):
            return
    write_atomically(known / SIGNPOST, str(place).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` so that a reader sees the old content or the new, never a part; mode 0600."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


# -- The role ---------------------------------------------------------------------------------------------------------

_role = "process"


def role() -> str:
    """Return what kind of process this is: ``web``, ``task``, ``command``, ``runmetrics``; ``process`` until known."""
    return _role


def set_role(role: str) -> None:
    """Say what kind of process this is; whoever knows says so, nobody guesses from ``sys.argv``."""
    global _role
    _role = role


# -- The control file -------------------------------------------------------------------------------------------------


class FilterOrder(NamedTuple):
    """Directives that hold in place of the settings' own."""

    text: str
    """The directives."""
    until: float | None
    """When they expire, in seconds since the epoch; ``None`` for never."""
    source: str
    """Who ordered them, such as ``manage.py obs filter``."""

    def holds(self) -> bool:
        """Return whether the order has not expired."""
        return self.until is None or time.time() < self.until


class WatchOrder(NamedTuple):
    """Where every process sends a copy of its spans and lines, for a while."""

    url: str
    """Where ``/v1/traces`` and ``/v1/logs`` are to be found: scheme, host and port."""
    token: str
    """Proves to the other side who sends."""
    until: float
    """When it expires, in seconds since the epoch."""

    def holds(self) -> bool:
        """Return whether the order has not expired."""
        return time.time() < self.until


Order = TypeVar("Order", FilterOrder, WatchOrder)


class _Standing(Generic[Order]):
    """An order as it stands in the file, and until when by a clock that nobody sets back."""

    def __init__(self, read: Callable[[object], Order | None]) -> None:
        self._read: Callable[[object], Order | None] = read
        self._found: object = None
        self._order: Order | None = None
        self._deadline = math.inf

    def take(self, found: object) -> None:
        if found == self._found:
            return
        self._found = found
        self._order = self._read(found)
        until = self._order.until if self._order else None
        # Remembered, lest the order outlive its time when the clock of the machine is set back.
        self._deadline = math.inf if until is None else time.monotonic() + until - time.time()

    @property
    def order(self) -> Order | None:
        order = self._order
        return order if order and order.holds() and time.monotonic() < self._deadline else None


class ControlFile:
    """What an operator ordered at run time, as JSON that every process of the project polls.

    A file that is damaged, too large, not a plain file, or somebody else's counts as empty and is reported once.
    Keys that this version does not know are kept.
    """

    # An order is a line of directives; a file beyond this is none of ours and not worth the memory.
    MAX_BYTES = 65536

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        """The last content read."""
        self._seen: tuple[int, ...] | None = None
        self._filter = _Standing(_filter_order)
        self._watch = _Standing(_watch_order)
        self._reported: tuple[FilterOrder | None, WatchOrder | None] = (None, None)

    def poll(self) -> bool:
        """Look whether anything changed since the last call, an order's expiry included; one ``stat``, never raise."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
            seen: tuple[int, ...] | None = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        except OSError:
            seen = None
        changed = seen != self._seen
        if changed:
            self._seen = seen
            before = self.content
            self.content = {} if seen is None else self._read()
            changed = self.content != before
            self._filter.take(self.content.get("filter"))
            self._watch.take(self.content.get("watch"))
        holding = (self.filter, self.watch)
        changed = changed or holding != self._reported
        self._reported = holding
        return changed

    @property
    def filter(self) -> FilterOrder | None:
        """The filter order in force as of the last poll, by this process's clock."""
        return self._filter.order

    @property
    def watch(self) -> WatchOrder | None:
        """The watch order in force as of the last poll, by this process's clock."""
        return self._watch.order

    def set_filter(self, text: str | None, *, seconds: float | None = None, source: str) -> None:
        """Order `text`, for so many `seconds` or until further notice; ``None`` takes the order back.

        Raises OSError.
        """
        until = None if seconds is None else time.time() + seconds
        self.update(filter=None if text is None else {"text": text, "until": until, "source": source})

    def update(self, **changes: Any) -> None:
        """Set keys, drop those that are ``None``, keep all others. Raises OSError; ValueError if too large."""
        import json

        with _locked(self.path.parent):
            content = {} if not os.path.lexists(self.path) else self._read()
            content.update(changes)
            content = {key: value for key, value in content.items() if value is not None}
            encoded = json.dumps(content).encode()
            if len(encoded) > self.MAX_BYTES:
                raise ValueError(f"Too long: the control file may have {self.MAX_BYTES} bytes, not {len(encoded)}.")
            write_atomically(self.path, encoded)

    def _read(self) -> dict[str, Any]:
        import json

        try:
            content = json.loads(self._bytes())
            if not isinstance(content, dict):
                raise ValueError("not a JSON object")
            if content.get("filter") is not None and _filter_order(content["filter"]) is None:
                raise ValueError("its filter is none")
        except (OSError, ValueError, RecursionError) as error:
            # Runs when the file changed, so a damaged file is reported once.
            logging.getLogger("django_obs").warning("Ignored %s, it is damaged: %s", self.path, error)
            return {}
        return content

    def _bytes(self) -> bytes:
        # Neither follow a symlink nor wait at a fifo.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("not a plain file")
            if found.st_uid not in (os.geteuid(), 0):
                raise ValueError(f"belongs to {user_name(found.st_uid)}")
            content = file.read(self.MAX_BYTES + 1)
        if len(content) > self.MAX_BYTES:
            raise ValueError(f"larger than {self.MAX_BYTES} bytes")
        return content


def _filter_order(found: object) -> FilterOrder | None:
    match found:
        case {"text": str(text), "until": None | int() | float() as until, "source": str(source)}:
            with contextlib.suppress(OverflowError, UnicodeEncodeError):
                (text + source).encode()  # JSON can say what no terminal can print: half a surrogate pair.
                if until is None or math.isfinite(until):
                    return FilterOrder(text=text, until=None if until is None else float(until), source=source)
    return None


def _watch_order(found: object) -> WatchOrder | None:
    match found:
        case {"url": str(url), "token": str(token), "until": int() | float() as until}:
            # What is no address and no token could say more in a header than it should.
            if _ADDRESS.fullmatch(url) and _TOKEN.fullmatch(token):
                with contextlib.suppress(OverflowError):
                    if math.isfinite(until):
                        return WatchOrder(url, token, float(until))
    return None


_ADDRESS = re.compile(r"http://([0-9.]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other writers out; readers need no lock since content is replaced whole."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def control_file(settings: Settings | None = None) -> ControlFile:
    """Return the project's control file. Raises RuntimeDirError."""
    return ControlFile(runtime_dir(settings) / CONTROL)


class Orders:
    """The orders of the control file, as one process follows them: wherever the runtime directory is, or comes to be.

    `obey` is called with the filter order that has come into force, or ``None`` when the settings hold again; what it
    raises as ValueError is said and forgotten. `watch` is called with the watch order in the same way. With `silent`
    nothing is said of a runtime directory that cannot be used, because somebody else says so.
    """

    def __init__(
        self,
        obey: Callable[[FilterOrder | None], None] | None = None,
        *,
        watch: Callable[[WatchOrder | None], None] | None = None,
        silent: bool = False,
    ) -> None:
        self._obey = obey
        self._watch = watch
        self._silent = silent
        self._control: ControlFile | None = None
        self._obeyed: FilterOrder | None = None
        self._watched: WatchOrder | None = None
        self._said = ""

    def poll(self) -> None:
        """Look whether there is anything new, and obey. Never raise: a worker calls this by the clock."""
        try:
            control = self._found()
            if control.poll():
                self._follow(control)
        except RuntimeDirError as error:
            if not self._silent:
                self._say(f"No orders reach this process. {error}")
        except ValueError as error:
            self._say(f"Ignored the filter that was ordered: {error}")

    def _follow(self, control: ControlFile) -> None:
        # One order may change often, which is nothing to the other.
        watch = control.watch
        if watch != self._watched:
            self._watched = watch
            if self._watch is not None:
                self._watch(watch)
        order = control.filter
        if order != self._obeyed:
            self._obeyed = order
            if self._obey is not None:
                self._obey(order)

    def _found(self) -> ControlFile:
        control = self._control
        if control is None:
            control = self._control = control_file()
        elif not os.path.isdir(control.path.parent):
            # A login's directory goes with the login; the processes meet again elsewhere.
            control.path = control_file().path
        return control

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            logging.getLogger("django_obs").warning("%s", message)
